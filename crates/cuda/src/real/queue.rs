//! A stream of the library's, and how bytes get into and out of it. Knows no kernel and no event.

use super::api::Context;
use super::staging::{Landing, UploadRing};
use crate::driver::DriverError;
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::sync::Arc;

/// A stream. Dropping it waits for all that is in it.
#[derive(Debug)]
pub(super) struct RawStream {
    pub(super) raw: sys::CUstream,
    context: Arc<Context>,
}

impl RawStream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        context.check(unsafe { sys::cuStreamCreate(&raw mut raw, flags) }, "making a stream")?;
        Ok(Self { raw, context: Arc::clone(context) })
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made above, and this was its owner.
            unsafe {
                sys::cuStreamSynchronize(self.raw);
                sys::cuStreamDestroy_v2(self.raw);
            }
        }
    }
}

/// A stream, and how bytes get into and out of it.
#[derive(Debug)]
pub(super) struct Queue {
    /// First: it ends before what its copies use.
    pub(super) stream: RawStream,
    pub(super) ring: Mutex<UploadRing>,
    pub(super) landing: Mutex<Landing>,
}

impl Queue {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverError> {
        let stream = RawStream::new(context)?;
        let (ring, landing) = (UploadRing::new(context)?, Landing::new(context)?);
        Ok(Self { stream, ring: Mutex::new(ring), landing: Mutex::new(landing) })
    }
}
