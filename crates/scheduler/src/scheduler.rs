//! The scheduler's state, and how sequences enter and leave it other than by finishing.

use crate::admission::{AddError, check_fits};
use crate::block_pool::BlockPool;
use crate::prefix_cache::PrefixHasher;
use crate::queue::WaitingQueue;
use crate::sequence::{NewSequence, Sequence};
use weft_types::{ExecutorLimits, SeqId};

/// What a scheduler may hand out.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Of the executor that runs the plans.
    pub limits: ExecutorLimits,
    /// Whether blocks of earlier sequences are reused for equal prefixes.
    pub enable_prefix_caching: bool,
}

/// What happened since the start. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerCounters {
    /// Sequences that lost their blocks and were queued again.
    pub num_preemptions: u64,
    /// Prompt tokens of sequences that have run.
    pub prompt_tokens: u64,
    /// Prompt tokens that were looked for in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Of those, how many were found.
    pub prefix_hit_tokens: u64,
    /// Tokens drawn.
    pub generation_tokens: u64,
}

/// Decides who runs. One call of [`Self::plan`] is followed by one of [`Self::commit`] or
/// [`Self::fail`] with the same plan; [`Self::add`] and [`Self::abort`] may come at any time.
pub struct Scheduler {
    pub(crate) limits: ExecutorLimits,
    pub(crate) enable_prefix_caching: bool,
    pub(crate) pool: BlockPool,
    pub(crate) hasher: PrefixHasher,
    /// By arrival, all earlier than those in `waiting`.
    pub(crate) running: Vec<Sequence>,
    pub(crate) waiting: WaitingQueue,
    pub(crate) counters: SchedulerCounters,
    pub(crate) roster_version: u64,
    num_arrivals: u64,
}

impl Scheduler {
    /// An empty scheduler.
    ///
    /// # Panics
    /// If a limit is zero: such an executor could run nothing.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        let SchedulerConfig { limits, enable_prefix_caching } = config;
        assert!(
            limits.block_size > 0 && limits.num_blocks > 0 && limits.max_model_len > 0,
            "an executor has room for at least one token: {limits:?}"
        );
        assert!(
            limits.max_num_seqs > 0 && limits.max_num_batched_tokens > 0,
            "an executor computes at least one token a step: {limits:?}"
        );
        Self {
            pool: BlockPool::new(limits.num_blocks),
            hasher: PrefixHasher::new(),
            running: Vec::with_capacity(limits.max_num_seqs.min(1024)),
            waiting: WaitingQueue::default(),
            counters: SchedulerCounters::default(),
            roster_version: 0,
            num_arrivals: 0,
            enable_prefix_caching,
            limits,
        }
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// As [`check_fits`].
    pub fn add(&mut self, new: NewSequence) -> Result<(), AddError> {
        check_fits(&self.limits, new.prompt.len(), &new.stop)?;
        self.num_arrivals += 1;
        self.waiting.push(Sequence::new(new, self.num_arrivals, &self.hasher));
        self.roster_version += 1;
        Ok(())
    }

    /// Forgets a sequence and frees its blocks, without an event. False if it is not known (any
    /// more). Between a plan and its commit, that part of the output is ignored.
    pub fn abort(&mut self, id: SeqId) -> bool {
        let removed = match self.running.iter().position(|seq| seq.id == id) {
            Some(index) => Some(self.running.remove(index)),
            None => self.waiting.remove(id),
        };
        let Some(mut seq) = removed else { return false };
        seq.release_blocks(&mut self.pool);
        self.roster_version += 1;
        true
    }

    /// Sequences that hold blocks.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that have not run yet, or were preempted.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nothing to plan.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.len() == 0
    }

    /// Running sequences, by arrival.
    pub fn running(&self) -> impl Iterator<Item = SeqId> {
        self.running.iter().map(|seq| seq.id)
    }

    /// Waiting sequences, next first.
    pub fn waiting(&self) -> impl Iterator<Item = SeqId> {
        self.waiting.iter().map(|seq| seq.id)
    }

    /// Changes whenever [`Self::running`] or [`Self::waiting`] may have.
    #[must_use]
    pub fn roster_version(&self) -> u64 {
        self.roster_version
    }

    /// KV blocks held by sequences. Cached blocks that nobody holds do not count.
    #[must_use]
    pub fn num_used_blocks(&self) -> usize {
        self.pool.num_blocks() - self.pool.num_available()
    }

    /// KV blocks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }
}
