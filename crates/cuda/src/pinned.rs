//! Pages of adapters in memory that the device reads by itself: between the host tier and the device
//! nobody copies them. In: a device. Out: a [`PageAllocator`]. Memory that comes back is kept for the
//! next page, because pinning takes milliseconds and the driver may stop all streams for it. Knows no
//! adapter.

use crate::driver::DriverError;
use crate::gpu::Gpu;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use weft_types::{HeapPages, PageAllocator, PageMemory};

/// Sizes are multiples of this, so that what comes back fits again.
const GRAIN_BYTES: usize = 64 << 10;
/// More is not kept: beside what `--adapter-host-memory` counts.
const MAX_SPARE_BYTES: usize = 128 << 20;

/// Called with the reason at the first page for which there is no pinned memory.
pub type OnRefusal = fn(&DriverError);

/// See the module. What cannot be pinned is ordinary memory, and works as well, only slower.
#[derive(Debug)]
pub struct PinnedPages {
    home: Arc<Home>,
    on_refusal: OnRefusal,
    was_refused: AtomicBool,
}

/// Where memory goes back to.
#[derive(Debug)]
struct Home {
    gpu: Gpu,
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    by_size: BTreeMap<usize, Vec<Block>>,
    num_bytes: usize,
}

/// Pinned memory with nobody in it.
#[derive(Debug)]
struct Block {
    start: NonNull<u8>,
    num_bytes: usize,
}

// SAFETY: it is its owner's alone.
unsafe impl Send for Block {}
// SAFETY: as above; who shares it only reads.
unsafe impl Sync for Block {}

impl PinnedPages {
    /// On a device.
    #[must_use]
    pub fn new(gpu: &Gpu, on_refusal: OnRefusal) -> Self {
        let home = Arc::new(Home { gpu: gpu.clone(), spare: Mutex::default() });
        Self { home, on_refusal, was_refused: AtomicBool::new(false) }
    }
}

impl PageAllocator for PinnedPages {
    fn lend(&self, num_bytes: usize) -> Box<dyn PageMemory> {
        let num_bytes = num_bytes.max(1).next_multiple_of(GRAIN_BYTES);
        match self.home.take(num_bytes) {
            Ok(block) => Box::new(PinnedPage { block, home: Arc::clone(&self.home) }),
            Err(error) => {
                if !self.was_refused.swap(true, Ordering::Relaxed) {
                    (self.on_refusal)(&error);
                }
                HeapPages.lend(num_bytes)
            }
        }
    }
}

impl Home {
    fn take(&self, num_bytes: usize) -> Result<Block, DriverError> {
        {
            let mut spare = self.spare.lock();
            if let Some(block) = spare.by_size.get_mut(&num_bytes).and_then(Vec::pop) {
                spare.num_bytes -= num_bytes;
                return Ok(block);
            }
        }
        let start = self.gpu.driver().alloc_pinned(num_bytes)?;
        Ok(Block { start, num_bytes })
    }

    fn give_back(&self, block: Block) {
        {
            let mut spare = self.spare.lock();
            if spare.num_bytes + block.num_bytes <= MAX_SPARE_BYTES {
                spare.num_bytes += block.num_bytes;
                spare.by_size.entry(block.num_bytes).or_default().push(block);
                return;
            }
        }
        self.free(&block);
    }

    /// The block must not be used any more.
    fn free(&self, block: &Block) {
        // SAFETY: nobody is in it, and who copied from it has waited.
        unsafe { self.gpu.driver().free_pinned(block.start) };
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let spare = std::mem::take(self.spare.get_mut());
        spare.by_size.into_values().flatten().for_each(|block| self.free(&block));
    }
}

/// Pinned memory with a page in it.
#[derive(Debug)]
struct PinnedPage {
    block: Block,
    home: Arc<Home>,
}

impl AsRef<[u8]> for PinnedPage {
    fn as_ref(&self) -> &[u8] {
        let Block { start, num_bytes } = self.block;
        // SAFETY: as long as this, initialized by the driver, and borrowed with its owner.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), num_bytes) }
    }
}

impl AsMut<[u8]> for PinnedPage {
    fn as_mut(&mut self) -> &mut [u8] {
        let Block { start, num_bytes } = self.block;
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), num_bytes) }
    }
}

impl Drop for PinnedPage {
    fn drop(&mut self) {
        let Block { start, num_bytes } = self.block;
        self.home.give_back(Block { start, num_bytes });
    }
}
