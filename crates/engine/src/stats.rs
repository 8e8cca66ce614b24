//! What the engine counts. Written by the loop once a step, read by anybody at any time; the
//! values of one reading may be a step apart.

use crate::loop_times::{LoopClock, LoopTimes};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use weft_scheduler::{PoolUse, ResidencyCounters, ResidentAdapter, Scheduler};

/// Names of adapters in use, sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActiveAdapters {
    /// Of running sequences.
    pub running: Vec<String>,
    /// Of waiting sequences. A name may be in both.
    pub waiting: Vec<String>,
}

/// Gauges of now and counters since the start.
pub struct EngineStats {
    /// Requests that were accepted and have not ended.
    pub(crate) live: AtomicUsize,
    running: AtomicUsize,
    blocks_total: usize,
    steps: AtomicU64,
    failed_steps: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    preemptions: AtomicU64,
    prefix_queries: AtomicU64,
    adapters: Mutex<ActiveAdapters>,
    memory: Mutex<MemoryStats>,
    queue: Mutex<QueueRate>,
    expired: AtomicU64,
    damages: AtomicU64,
    pub(crate) clock: LoopClock,
}

/// What the device's memory holds, and what moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// How the chunks are used now.
    pub pool: PoolUse,
    /// Adapters' hits, loads and evictions since the start.
    pub counters: ResidencyCounters,
    /// Adapters on the device, on their way, or waited for.
    pub adapters: Vec<ResidentAdapter>,
    roster_version: u64,
}

/// How fast the queue moves.
#[derive(Debug, Default)]
struct QueueRate {
    began_ms: u64,
    began_admissions: u64,
    /// Requests that begin to run in a second while others wait; 0 is unknown.
    per_second: f64,
    num_waiting: usize,
}

/// Time over which the queue's speed is measured.
const RATE_MS: u64 = 500;

impl EngineStats {
    pub(crate) fn new(blocks_total: usize) -> Self {
        Self {
            live: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            blocks_total,
            steps: AtomicU64::new(0),
            failed_steps: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            prefix_queries: AtomicU64::new(0),
            adapters: Mutex::default(),
            memory: Mutex::default(),
            queue: Mutex::default(),
            expired: AtomicU64::new(0),
            damages: AtomicU64::new(0),
            clock: LoopClock::new(),
        }
    }

    /// Sequences that hold KV blocks.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Requests that were accepted and do not run (any more, after a preemption).
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.live.load(Ordering::Relaxed).saturating_sub(self.running())
    }

    /// KV blocks held by sequences. Cached blocks that nobody holds do not count.
    #[must_use]
    pub fn blocks_used(&self) -> usize {
        self.memory.lock().pool.kv
    }

    /// Chunks in all.
    #[must_use]
    pub fn blocks_total(&self) -> usize {
        self.blocks_total
    }

    /// Steps that were computed or failed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Steps that failed.
    #[must_use]
    pub fn failed_steps(&self) -> u64 {
        self.failed_steps.load(Ordering::Relaxed)
    }

    /// Tokens of the prompts that have run.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens.load(Ordering::Relaxed)
    }

    /// Of those, how many were found in the prefix cache.
    #[must_use]
    pub fn cached_tokens(&self) -> u64 {
        self.cached_tokens.load(Ordering::Relaxed)
    }

    /// Tokens drawn.
    #[must_use]
    pub fn generation_tokens(&self) -> u64 {
        self.generation_tokens.load(Ordering::Relaxed)
    }

    /// Sequences that lost their blocks and were queued again.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.preemptions.load(Ordering::Relaxed)
    }

    /// Prompt tokens that were looked for in the prefix cache.
    #[must_use]
    pub fn prefix_queries(&self) -> u64 {
        self.prefix_queries.load(Ordering::Relaxed)
    }

    /// Of those, how many were found.
    #[must_use]
    pub fn prefix_hits(&self) -> u64 {
        self.cached_tokens()
    }

    /// Adapters of running and waiting sequences.
    #[must_use]
    pub fn adapters(&self) -> ActiveAdapters {
        self.adapters.lock().clone()
    }

    /// What the device's memory holds.
    #[must_use]
    pub fn memory(&self) -> MemoryStats {
        self.memory.lock().clone()
    }

    /// Requests that were given up because they had waited too long.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// How often an audit of the memory pool found something wrong: a bug, if it is not 0.
    #[must_use]
    pub fn damages(&self) -> u64 {
        self.damages.load(Ordering::Relaxed)
    }

    /// Where the loop's time went.
    #[must_use]
    pub fn loop_times(&self) -> LoopTimes {
        self.clock.times()
    }

    /// How long a request that comes now would wait, if that is known: none, if nobody waits.
    pub(crate) fn expected_wait(&self) -> Option<Duration> {
        let queue = self.queue.lock();
        let is_known = queue.per_second > 0.0 && queue.num_waiting > 0;
        is_known.then(|| Duration::from_secs_f64(queue.num_waiting as f64 / queue.per_second))
    }

    pub(crate) fn report_damage(&self, message: &str) {
        self.damages.fetch_add(1, Ordering::Relaxed);
        tracing::error!(message, "the audit of the memory pool failed: this is a bug");
    }

    pub(crate) fn count_step(&self, is_ok: bool) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.failed_steps.fetch_add(u64::from(!is_ok), Ordering::Relaxed);
    }

    /// `adapters_changed`: whether any came, left or were pinned while the roster stayed as it was.
    pub(crate) fn publish(&self, scheduler: &Scheduler, now_ms: u64, adapters_changed: bool) {
        let counters = scheduler.counters();
        self.running.store(scheduler.num_running(), Ordering::Relaxed);
        self.expired.store(counters.num_expired, Ordering::Relaxed);
        self.memory.lock().update(scheduler, adapters_changed);
        self.queue.lock().update(scheduler, now_ms);
        self.prompt_tokens.store(counters.prompt_tokens, Ordering::Relaxed);
        self.cached_tokens.store(counters.prefix_hit_tokens, Ordering::Relaxed);
        self.generation_tokens.store(counters.generation_tokens, Ordering::Relaxed);
        self.preemptions.store(counters.num_preemptions, Ordering::Relaxed);
        self.prefix_queries.store(counters.prefix_query_tokens, Ordering::Relaxed);
    }

    pub(crate) fn publish_adapters(&self, adapters: ActiveAdapters) {
        *self.adapters.lock() = adapters;
    }
}

impl MemoryStats {
    fn update(&mut self, scheduler: &Scheduler, adapters_changed: bool) {
        self.pool = scheduler.pool_use();
        let counters = scheduler.residency_counters();
        let roster_changed = self.roster_version != scheduler.roster_version();
        if adapters_changed || roster_changed || self.counters != counters {
            self.counters = counters;
            self.roster_version = scheduler.roster_version();
            self.adapters.clear();
            self.adapters.extend(scheduler.adapters());
        }
    }
}

impl QueueRate {
    /// Measured only while somebody waits: else the clients are what limits it.
    fn update(&mut self, scheduler: &Scheduler, now_ms: u64) {
        let num_admissions = scheduler.num_admissions();
        self.num_waiting = scheduler.num_waiting();
        if self.num_waiting == 0 {
            (self.began_ms, self.began_admissions) = (now_ms, num_admissions);
            return;
        }
        let elapsed_ms = now_ms - self.began_ms;
        if elapsed_ms >= RATE_MS {
            let admitted = (num_admissions - self.began_admissions) as f64;
            let rate = admitted * 1e3 / elapsed_ms as f64;
            let is_new = self.per_second == 0.0;
            self.per_second = if is_new { rate } else { 0.5 * (self.per_second + rate) };
            (self.began_ms, self.began_admissions) = (now_ms, num_admissions);
        }
    }
}
