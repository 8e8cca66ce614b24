//! Device memory in chunks: each is a block of the KV cache or a page of an adapter.
//!
//! Whoever holds an [`Arena`] owns all chunks but those that it lent. [`LentChunks`] are their
//! holder's alone until it drops them. So nobody reads a chunk while another writes it, and no other
//! crate needs unsafe code for that. Who gets which chunk is the scheduler's business: should it give
//! one away twice, that is a panic here, not a torn read.

use crate::pool::DisjointMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use weft_types::BlockId;

/// Chunks begin at multiples of this: a cache line.
pub const ALIGNMENT: usize = 64;

/// The memory and the chunks of it that are not lent.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Memory {
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first multiple of [`ALIGNMENT`] in the allocation.
    start: NonNull<u8>,
    chunk_bytes: usize,
    /// One a chunk. Set through a `&mut Arena` only, so that it does not change under a borrow.
    is_lent: Box<[AtomicBool]>,
}

// SAFETY: bytes are reached through `Arena` and `LentChunks` alone, each only its own chunks, under
// the rules of their borrows.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Arena {
    /// Zeroed memory, provided by the system when it is first touched.
    ///
    /// # Panics
    /// When `chunk_bytes` is not a multiple of [`ALIGNMENT`] or the size overflows.
    #[must_use]
    pub fn new(num_chunks: usize, chunk_bytes: usize) -> Self {
        assert!(chunk_bytes.is_multiple_of(ALIGNMENT), "chunks are whole cache lines");
        let num_bytes = num_chunks.checked_mul(chunk_bytes).expect("fits the address space");
        // Aligned by hand: a larger alignment makes the allocator clear the memory itself.
        let layout = Layout::array::<u8>(num_bytes + ALIGNMENT).expect("fits the address space");
        // SAFETY: the layout is not empty.
        let Some(allocation) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let offset = allocation.addr().get().wrapping_neg() % ALIGNMENT;
        // SAFETY: less than `ALIGNMENT` bytes into the allocation.
        let start = unsafe { allocation.add(offset) };
        advise_huge_pages(start, num_bytes);
        let is_lent = (0..num_chunks).map(|_| AtomicBool::new(false)).collect();
        Self { memory: Arc::new(Memory { allocation, layout, start, chunk_bytes, is_lent }) }
    }

    /// Chunks in all.
    #[must_use]
    pub fn num_chunks(&self) -> usize {
        self.memory.is_lent.len()
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        self.memory.chunk_bytes
    }

    /// Gives chunks away until the result is dropped. What they held is not cleared.
    ///
    /// # Panics
    /// When a chunk does not exist or is lent already.
    #[must_use]
    pub fn lend(&mut self, chunks: &[BlockId]) -> LentChunks {
        for chunk in chunks {
            let was_lent = self.memory.is_lent[chunk.0 as usize].swap(true, Ordering::Acquire);
            assert!(!was_lent, "{chunk:?} is lent already");
        }
        LentChunks { memory: Arc::clone(&self.memory), chunks: chunks.into() }
    }

    /// Whether a chunk exists and is not lent.
    #[inline]
    pub(crate) fn owns(&self, chunk: BlockId) -> bool {
        let is_lent = self.memory.is_lent.get(chunk.0 as usize);
        is_lent.is_some_and(|is_lent| !is_lent.load(Ordering::Acquire))
    }

    /// Bytes of a chunk that is not lent.
    ///
    /// # Panics
    /// When it is, or when it does not have these bytes.
    #[inline]
    pub(crate) fn bytes(&self, chunk: BlockId, range: Range<usize>) -> &[u8] {
        assert!(self.owns(chunk), "{chunk:?} is lent");
        // SAFETY: it is this arena's, and written only under `&mut self`.
        unsafe { self.memory.bytes(chunk, range) }
    }

    /// All memory as numbers: `chunk_bytes / size` of them in a chunk. Callers access only chunks
    /// that [`Self::owns`] names.
    pub(crate) fn numbers<T: Plain>(&mut self) -> DisjointMut<'_, T> {
        let len = self.num_chunks() * self.chunk_bytes() / size_of::<T>();
        // SAFETY: the memory is aligned, zeroed or written, and any bits are a number; whoever
        // accesses elements promises that they are nobody else's.
        unsafe { DisjointMut::from_raw(self.memory.start.cast().as_ptr(), len) }
    }
}

/// Numbers of any bit pattern, without padding, that [`ALIGNMENT`] aligns.
pub(crate) trait Plain {}
impl Plain for f32 {}
impl Plain for u8 {}
impl Plain for u16 {}

impl Memory {
    /// # Safety
    /// Nobody writes these bytes while the result lives.
    ///
    /// # Panics
    /// When the chunk does not exist or does not have these bytes.
    #[inline(always)]
    unsafe fn bytes(&self, chunk: BlockId, range: Range<usize>) -> &[u8] {
        let start = self.at(chunk, &range);
        // SAFETY: in bounds, as `at` asserts; initialized from the start; the caller's promise.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// Where bytes of a chunk lie, asserted to be in it.
    #[inline(always)]
    fn at(&self, chunk: BlockId, range: &Range<usize>) -> *mut u8 {
        let chunk = chunk.0 as usize;
        assert!(chunk < self.is_lent.len(), "no such chunk");
        assert!(range.start <= range.end && range.end <= self.chunk_bytes, "beyond the chunk");
        // SAFETY: in the allocation by the assertions.
        unsafe { self.start.add(chunk * self.chunk_bytes + range.start).as_ptr() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `Arena::new`.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

/// Chunks of an [`Arena`] that are the holder's alone.
#[derive(Debug)]
pub struct LentChunks {
    memory: Arc<Memory>,
    chunks: Box<[BlockId]>,
}

impl LentChunks {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of the `index`-th chunk.
    ///
    /// # Panics
    /// When there is no such chunk or it does not have these bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes(&self, index: usize, range: Range<usize>) -> &[u8] {
        // SAFETY: the chunk is this holder's, and written only under `&mut self`.
        unsafe { self.memory.bytes(self.chunks[index], range) }
    }

    /// Overwrites the front of the `index`-th chunk.
    ///
    /// # Panics
    /// When there is no such chunk or it is shorter than `bytes`.
    pub fn write(&mut self, index: usize, bytes: &[u8]) {
        let target = self.memory.at(self.chunks[index], &(0..bytes.len()));
        // SAFETY: in bounds, as `at` asserts; the chunk is this holder's, borrowed exclusively.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for LentChunks {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            self.memory.is_lent[chunk.0 as usize].store(false, Ordering::Release);
        }
    }
}

/// Fewer misses of the address cache when blocks are gathered from all over the memory.
#[cfg(target_os = "linux")]
pub(crate) fn advise_huge_pages(start: NonNull<u8>, num_bytes: usize) {
    const PAGE: usize = 4096;
    let skipped = start.addr().get().wrapping_neg() % PAGE;
    let Some(num_bytes) = num_bytes.checked_sub(skipped) else { return };
    // SAFETY: within the allocation; only a hint. A refusal changes nothing.
    unsafe {
        let start = start.add(skipped).as_ptr().cast();
        libc::madvise(start, num_bytes / PAGE * PAGE, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_chunks_come_back_with_what_was_written() {
        let mut arena = Arena::new(4, 128);
        let mut lent = arena.lend(&[BlockId(3), BlockId(1)]);
        assert!(lent.bytes(0, 0..1).as_ptr().addr().is_multiple_of(ALIGNMENT));
        lent.write(0, &[7; 128]);
        lent.write(1, &[9; 5]);
        assert_eq!(lent.bytes(0, 0..128), [7; 128]);
        assert_eq!(lent.bytes(1, 3..7), [9, 9, 0, 0]);
        let owned = |arena: &Arena| (0..5).map(|i| arena.owns(BlockId(i))).collect::<Vec<_>>();
        assert_eq!(owned(&arena), [true, false, true, false, false]);
        drop(lent);
        assert_eq!(owned(&arena), [true, true, true, true, false]);
        assert_eq!(arena.bytes(BlockId(3), 126..128), [7, 7]);
    }

    #[test]
    fn chunks_are_written_on_one_thread_and_read_on_others() {
        let mut arena = Arena::new(64, 64);
        let lent: Vec<LentChunks> =
            (0..64).map(|chunk| arena.lend(&[BlockId(63 - chunk)])).collect();
        std::thread::scope(|scope| {
            for (index, mut lent) in lent.into_iter().enumerate() {
                scope.spawn(move || lent.write(0, &[index as u8; 64]));
            }
        });
        for index in 0..64 {
            assert_eq!(arena.bytes(BlockId(63 - index), 0..64), [index as u8; 64]);
        }
    }

    #[test]
    #[should_panic(expected = "is lent already")]
    fn a_chunk_is_not_lent_twice() {
        let mut arena = Arena::new(2, 64);
        let _first = arena.lend(&[BlockId(1)]);
        let _second = arena.lend(&[BlockId(0), BlockId(1)]);
    }

    #[test]
    #[should_panic(expected = "is lent")]
    fn a_lent_chunk_is_not_read() {
        let mut arena = Arena::new(2, 64);
        let _lent = arena.lend(&[BlockId(1)]);
        let _ = arena.bytes(BlockId(1), 0..1);
    }
}
