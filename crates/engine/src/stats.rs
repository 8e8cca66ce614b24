//! What the engine counts. Written by the loop once a step, read by anybody at any time; the
//! values of one reading may be a step apart.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use weft_scheduler::Scheduler;

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
    blocks_used: AtomicUsize,
    blocks_total: usize,
    steps: AtomicU64,
    failed_steps: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    preemptions: AtomicU64,
    prefix_queries: AtomicU64,
    adapters: Mutex<ActiveAdapters>,
}

impl EngineStats {
    pub(crate) fn new(blocks_total: usize) -> Self {
        Self {
            live: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            blocks_used: AtomicUsize::new(0),
            blocks_total,
            steps: AtomicU64::new(0),
            failed_steps: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            prefix_queries: AtomicU64::new(0),
            adapters: Mutex::default(),
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
        self.blocks_used.load(Ordering::Relaxed)
    }

    /// KV blocks in all.
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

    pub(crate) fn count_step(&self, is_ok: bool) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.failed_steps.fetch_add(u64::from(!is_ok), Ordering::Relaxed);
    }

    pub(crate) fn publish(&self, scheduler: &Scheduler) {
        let counters = scheduler.counters();
        self.running.store(scheduler.num_running(), Ordering::Relaxed);
        self.blocks_used.store(scheduler.num_used_blocks(), Ordering::Relaxed);
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
