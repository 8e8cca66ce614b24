//! Host memory that the device reads and writes by itself. In: a context and a size. Out: memory that
//! goes back when its owner does, and for any bytes whether they lie in memory that was lent.

use super::api::Context;
use crate::driver::DriverError;
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

/// Pinned memory. Who drops it has waited for its copies.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    num_bytes: usize,
}

// SAFETY: nothing is done with the memory here; who uses it says how.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Its contents are whatever was there.
    pub(super) fn new(context: &Arc<Context>, num_bytes: usize) -> Result<Self, DriverError> {
        let mut start = std::ptr::null_mut();
        // SAFETY: writes one address.
        let result = context
            .apart_from_recording(|| unsafe { sys::cuMemHostAlloc(&raw mut start, num_bytes, 0) });
        let doing = format!("pinning {num_bytes} bytes of host memory");
        context.check(result, &doing)?;
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| DriverError(format!("the GPU gave nothing, {doing}")))?;
        Ok(Self { context: Arc::clone(context), start, num_bytes })
    }

    /// Where it begins.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// What it belongs to.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            let start = self.start.as_ptr().cast();
            // SAFETY: allocated above, and this was its owner.
            self.context.apart_from_recording(|| unsafe { sys::cuMemFreeHost(start) });
        }
    }
}

/// Pinned memory that others use.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// By address.
    blocks: BTreeMap<usize, Pinned>,
}

impl Lent {
    pub(super) fn insert(&mut self, block: Pinned) {
        self.blocks.insert(block.start.as_ptr().addr(), block);
    }

    /// What begins there, to be dropped without a lock.
    pub(super) fn remove(&mut self, start: NonNull<u8>) -> Option<Pinned> {
        self.blocks.remove(&start.as_ptr().addr())
    }

    /// Whether all of these bytes lie in one block.
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        let start = bytes.as_ptr().addr();
        let block = self.blocks.range(..=start).next_back();
        block.is_some_and(|(first, block)| start - first + bytes.len() <= block.num_bytes)
    }
}
