//! Zeroed memory for weights, carved from large pieces, so that the system backs it with huge pages: a step
//! reads all weights, and looks up an address for every page of them. In: a number of cache lines. Out: those
//! lines, until they are dropped. Knows no weight.

use crate::arena::advise_huge_pages;
use crate::weight_bytes::CacheLine;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// What is asked of the system at once; untouched, it costs addresses only.
const SLAB_BYTES: usize = 32 << 20;

/// Memory of the system, given back when no lines of it are left.
#[derive(Debug)]
struct Slab {
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first multiple of [`HUGE_PAGE`] in the allocation.
    start: NonNull<CacheLine>,
}

// SAFETY: a slab is only memory; lines of it are each their holder's.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(num_bytes: usize) -> Self {
        // Aligned by hand: a larger alignment makes the allocator clear the memory itself.
        let layout = Layout::array::<u8>(num_bytes + HUGE_PAGE).expect("fits the address space");
        // SAFETY: the layout is not empty.
        let Some(allocation) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let offset = allocation.addr().get().wrapping_neg() % HUGE_PAGE;
        // SAFETY: less than `HUGE_PAGE` bytes into the allocation.
        let start = unsafe { allocation.add(offset) };
        advise_huge_pages(start, num_bytes);
        Self { allocation, layout, start: start.cast() }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated so, and nobody holds lines of it.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

/// The slab that lines are taken from, and how many are.
static CURRENT: Mutex<Option<(Arc<Slab>, usize)>> = Mutex::new(None);

/// Cache lines in a slab.
#[derive(Debug)]
pub(crate) struct SlabLines {
    start: NonNull<CacheLine>,
    len: usize,
    /// Keeps them.
    _slab: Arc<Slab>,
}

// SAFETY: the lines are this holder's alone.
unsafe impl Send for SlabLines {}
// SAFETY: shared, they are only read.
unsafe impl Sync for SlabLines {}

impl SlabLines {
    /// So many lines of zeros.
    pub(crate) fn zeroed(num_lines: usize) -> Self {
        const LINES: usize = SLAB_BYTES / 64;
        if num_lines > LINES / 2 {
            let slab = Arc::new(Slab::new(num_lines * 64));
            return Self { start: slab.start, len: num_lines, _slab: slab };
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, used) = match current.take() {
            Some((slab, used)) if used + num_lines <= LINES => (slab, used),
            _ => (Arc::new(Slab::new(SLAB_BYTES)), 0),
        };
        // SAFETY: within the slab; no one else gets these lines.
        let start = unsafe { slab.start.add(used) };
        *current = Some((Arc::clone(&slab), used + num_lines));
        Self { start, len: num_lines, _slab: slab }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[CacheLine] {
        // SAFETY: zeroed or written, and this holder's.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [CacheLine] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Clone for SlabLines {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_their_holders_own_and_outlive_each_other() {
        let lengths = [1, 4096, 3 << 17, 7, (SLAB_BYTES / 64) + 1, 4096];
        let mut all: Vec<SlabLines> = lengths.map(SlabLines::zeroed).into();
        for (index, lines) in all.iter_mut().enumerate() {
            assert!(lines.as_slice().iter().all(|line| line.0 == [0; 64]));
            lines.as_mut_slice().fill(CacheLine([index as u8 + 1; 64]));
        }
        let copy = all[1].clone();
        drop(all.remove(0));
        for (index, lines) in all.iter().enumerate() {
            assert_eq!(lines.as_slice().len(), lengths[index + 1]);
            assert!(lines.as_slice().iter().all(|line| line.0 == [index as u8 + 2; 64]));
        }
        drop(all);
        assert!(copy.as_slice().iter().all(|line| line.0 == [2; 64]));
    }
}
