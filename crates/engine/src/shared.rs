//! What the loop thread and the handles both see. Atomics, and locks that are held for a moment.

use crate::stats::EngineStats;
use crate::submit::SubmitError;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;
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
    /// Unfinished requests of each tenant that has any.
    tenants: Mutex<FxHashMap<Arc<str>, usize>>,
    began: Instant,
}

impl Shared {
    pub(crate) fn new(limits: ExecutorLimits) -> Self {
        Self {
            stats: EngineStats::new(limits.num_blocks),
            limits,
            phase: AtomicU8::new(Phase::Open as u8),
            is_alive: AtomicBool::new(true),
            num_ids: AtomicU64::new(0),
            tenants: Mutex::default(),
            began: Instant::now(),
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

    /// Milliseconds since the start: the clock of deadlines.
    pub(crate) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Whether requests run, and some are unfinished of others than this tenant.
    pub(crate) fn others_run(&self, tenant: &str) -> bool {
        self.stats.running() > 0 && self.tenants.lock().keys().any(|other| **other != *tenant)
    }

    /// Counts one more request, unless `max_waiting` are accepted and do not run yet, or nearly all
    /// of them are this tenant's: an eighth is kept for others.
    pub(crate) fn take_slot(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        max_waiting: usize,
    ) -> Result<LiveSlot, SubmitError> {
        let running = self.stats.running();
        let may_enter =
            |live: usize| (live.saturating_sub(running) < max_waiting).then(|| live + 1);
        self.stats
            .live
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, may_enter)
            .map_err(|_| SubmitError::QueueFull { max: max_waiting })?;
        // From here on it is counted, and uncounted when dropped.
        *self.tenants.lock().entry(Arc::clone(tenant)).or_insert(0) += 1;
        let slot = LiveSlot { shared: Arc::clone(self), tenant: Arc::clone(tenant) };
        let max_of_tenant = max_waiting - max_waiting / 8 + running;
        if self.tenants.lock().get(tenant).is_some_and(|&count| count > max_of_tenant) {
            return Err(SubmitError::TenantQueueFull { max: max_of_tenant });
        }
        Ok(slot)
    }
}

/// The count of one accepted request, wherever it ends.
pub(crate) struct LiveSlot {
    shared: Arc<Shared>,
    tenant: Arc<str>,
}

impl Drop for LiveSlot {
    fn drop(&mut self) {
        let mut tenants = self.shared.tenants.lock();
        if let Some(count) = tenants.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                tenants.remove(&self.tenant);
            }
        }
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
