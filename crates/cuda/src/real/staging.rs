//! The way between the program's memory and the device's: pinned memory, which the device reads and
//! writes by itself. Copies to the device go through a ring and do not wait for the device unless the
//! ring is full; copies from it wait.

use super::api::Context;
use super::events::Pool;
use super::pinned::Pinned;
use crate::driver::{DevicePtr, DriverError};
use cudarc::driver::sys;
use std::collections::VecDeque;
use std::sync::Arc;

/// Of a ring. A load of weights or of an adapter keeps four pieces of this quarter under way.
const RING_BYTES: usize = 16 << 20;
/// What is copied at once.
const PIECE_BYTES: usize = RING_BYTES / 4;
/// Where pieces begin.
const ALIGNMENT: usize = 256;

/// To the device, in one stream. Who drops it has waited for that.
#[derive(Debug)]
pub(super) struct UploadRing {
    pinned: Pinned,
    /// Bytes that were ever put in, gaps at the end of the ring included.
    head: usize,
    /// Bytes that have left it.
    tail: usize,
    /// Ends of pieces, and the events after their copies, oldest first.
    under_way: VecDeque<(usize, sys::CUevent)>,
    events: Pool,
}

// SAFETY: handles may be used by all threads; the memory is this ring's own.
unsafe impl Send for UploadRing {}

impl UploadRing {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let pinned = Pinned::new(context, RING_BYTES)?;
        let under_way = VecDeque::new();
        Ok(Self { pinned, head: 0, tail: 0, under_way, events: Pool::untimed() })
    }

    /// Copies `from`, which may change when this returns.
    ///
    /// # Safety
    /// The target is as long, and only this stream touches it.
    pub(super) unsafe fn upload(
        &mut self,
        context: &Context,
        stream: sys::CUstream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError> {
        for (index, piece) in from.chunks(PIECE_BYTES).enumerate() {
            let offset = self.make_room(context, piece.len())?;
            let to = to.add(index * PIECE_BYTES);
            // SAFETY: inside the ring, where no copy is under way; the target is the caller's promise.
            let result = unsafe {
                let staged = self.pinned.start().as_ptr().add(offset);
                staged.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                sys::cuMemcpyHtoDAsync_v2(to.0, staged.cast(), piece.len(), stream)
            };
            context.check_with(result, || format!("copying {} bytes to it", piece.len()))?;
            let event = self.events.record(context, stream)?;
            self.head += piece.len().next_multiple_of(ALIGNMENT);
            self.under_way.push_back((self.head, event));
        }
        Ok(())
    }

    /// Where so many bytes lie next to each other and free; waits for older copies if need be.
    fn make_room(&mut self, context: &Context, num_bytes: usize) -> Result<usize, DriverError> {
        let gap = RING_BYTES - self.head % RING_BYTES;
        if num_bytes > gap {
            self.head += gap;
        }
        while self.head + num_bytes > self.tail + RING_BYTES {
            let Some((end, event)) = self.under_way.pop_front() else {
                self.tail = self.head;
                break;
            };
            // SAFETY: recorded.
            let result = unsafe { sys::cuEventSynchronize(event) };
            self.events.give_back(event);
            context.check(result, "waiting for an earlier copy to it")?;
            self.tail = end;
        }
        Ok(self.head % RING_BYTES)
    }
}

impl Drop for UploadRing {
    fn drop(&mut self) {
        if self.pinned.context().enter().is_err() {
            return;
        }
        for (_, event) in self.under_way.drain(..) {
            self.events.give_back(event);
        }
        self.events.clear();
    }
}

/// From the device.
#[derive(Debug)]
pub(super) struct Landing {
    pinned: Pinned,
}

impl Landing {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        Ok(Self { pinned: Pinned::new(context, PIECE_BYTES)? })
    }

    /// Copies, after all that is in the stream, and waits.
    ///
    /// # Safety
    /// The source is as long, and no other stream writes it.
    pub(super) unsafe fn download(
        &mut self,
        context: &Context,
        stream: sys::CUstream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        for (index, piece) in to.chunks_mut(PIECE_BYTES).enumerate() {
            let (from, len) = (from.add(index * PIECE_BYTES), piece.len());
            let landing = self.pinned.start().as_ptr();
            // SAFETY: the landing holds a piece; the source is the caller's promise.
            let result = unsafe { sys::cuMemcpyDtoHAsync_v2(landing.cast(), from.0, len, stream) };
            context.check_with(result, || format!("copying {len} bytes from it"))?;
            // SAFETY: a stream of ours.
            let result = unsafe { sys::cuStreamSynchronize(stream) };
            context.check(result, "finishing what was asked of it")?;
            // SAFETY: the copy has ended.
            unsafe { piece.as_mut_ptr().copy_from_nonoverlapping(landing, len) };
        }
        Ok(())
    }
}
