//! Points in streams: handles that are used again.

use super::api::Context;
use crate::driver::{DriverError, Event};
use cudarc::driver::sys::{self, CUresult};
use rustc_hash::FxHashMap;

/// Of one kind: with a time, or a little cheaper without.
#[derive(Debug)]
pub(super) struct Pool {
    flags: sys::CUevent_flags,
    spare: Vec<sys::CUevent>,
}

impl Pool {
    pub(super) fn timed() -> Self {
        Self { flags: sys::CUevent_flags::CU_EVENT_DEFAULT, spare: Vec::new() }
    }

    pub(super) fn untimed() -> Self {
        Self { flags: sys::CUevent_flags::CU_EVENT_DISABLE_TIMING, spare: Vec::new() }
    }

    /// A point after all that is in the stream.
    pub(super) fn record(
        &mut self,
        context: &Context,
        stream: sys::CUstream,
    ) -> Result<sys::CUevent, DriverError> {
        let event = match self.spare.pop() {
            Some(event) => event,
            None => {
                let mut event = std::ptr::null_mut();
                // SAFETY: writes one handle.
                let result = unsafe { sys::cuEventCreate(&raw mut event, self.flags as u32) };
                context.check(result, "making an event")?;
                event
            }
        };
        // SAFETY: both are there.
        let result = unsafe { sys::cuEventRecord(event, stream) };
        if let Err(error) = context.check(result, "recording an event") {
            self.spare.push(event);
            return Err(error);
        }
        Ok(event)
    }

    /// For the next.
    pub(super) fn give_back(&mut self, event: sys::CUevent) {
        self.spare.push(event);
    }

    /// Destroys what was given back.
    pub(super) fn clear(&mut self) {
        for event in self.spare.drain(..) {
            // SAFETY: nobody else has it.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

/// Events that somebody may still ask for.
#[derive(Debug)]
pub(super) struct Events {
    pool: Pool,
    pending: FxHashMap<u64, sys::CUevent>,
    num_events: u64,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { pool: Pool::timed(), pending: FxHashMap::default(), num_events: 0 }
    }

    pub(super) fn record(
        &mut self,
        context: &Context,
        stream: sys::CUstream,
    ) -> Result<Event, DriverError> {
        let raw = self.pool.record(context, stream)?;
        self.num_events += 1;
        self.pending.insert(self.num_events, raw);
        Ok(Event(self.num_events))
    }

    /// Its handle, unless it is known to have passed.
    pub(super) fn get(&self, event: Event) -> Option<sys::CUevent> {
        self.pending.get(&event.0).copied()
    }

    /// Forgets it if so.
    pub(super) fn has_passed(
        &mut self,
        context: &Context,
        event: Event,
    ) -> Result<bool, DriverError> {
        let Some(raw) = self.get(event) else { return Ok(true) };
        // SAFETY: recorded.
        match unsafe { sys::cuEventQuery(raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => {
                context.check(result, "asking for an event")?;
                self.forget(event);
                Ok(true)
            }
        }
    }

    /// Its time must not be asked for any more.
    pub(super) fn forget(&mut self, event: Event) {
        if let Some(raw) = self.pending.remove(&event.0) {
            self.pool.give_back(raw);
        }
    }

    /// Destroys all.
    pub(super) fn clear(&mut self) {
        let pending: Vec<_> = self.pending.drain().collect();
        pending.into_iter().for_each(|(_, raw)| self.pool.give_back(raw));
        self.pool.clear();
    }
}
