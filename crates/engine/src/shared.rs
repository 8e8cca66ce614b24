//! What the loop thread and the handles both see. Atomics only: neither waits for the other.

use crate::stats::EngineStats;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use weft_types::{ExecutorLimits, SeqId};

/// How long the loop goes on. Only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Open = 0,
    /// No new requests; those accepted are completed.
    Draining = 1,
    /// Those accepted are failed.
    Stopping = 2,
}

pub(crate) struct Shared {
    pub(crate) limits: ExecutorLimits,
    pub(crate) stats: EngineStats,
    phase: AtomicU8,
    is_alive: AtomicBool,
    num_ids: AtomicU64,
}

impl Shared {
    pub(crate) fn new(limits: ExecutorLimits) -> Self {
        Self {
            stats: EngineStats::new(limits.num_blocks),
            limits,
            phase: AtomicU8::new(Phase::Open as u8),
            is_alive: AtomicBool::new(true),
            num_ids: AtomicU64::new(0),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    pub(crate) fn move_to(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Acquire)
    }

    pub(crate) fn next_id(&self) -> SeqId {
        SeqId(self.num_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Counts one more request, unless `max_waiting` are accepted and do not run yet.
    pub(crate) fn take_slot(self: &Arc<Self>, max_waiting: usize) -> Option<LiveSlot> {
        let running = self.stats.running();
        let may_enter =
            |live: usize| (live.saturating_sub(running) < max_waiting).then(|| live + 1);
        self.stats.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, may_enter).ok()?;
        Some(LiveSlot { shared: Arc::clone(self) })
    }
}

/// The count of one accepted request, wherever it ends.
pub(crate) struct LiveSlot {
    shared: Arc<Shared>,
}

impl Drop for LiveSlot {
    fn drop(&mut self) {
        self.shared.stats.live.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Notes the end of the loop thread, also when it panics.
pub(crate) struct AliveGuard(pub(crate) Arc<Shared>);

impl Drop for AliveGuard {
    fn drop(&mut self) {
        self.0.is_alive.store(false, Ordering::Release);
    }
}
