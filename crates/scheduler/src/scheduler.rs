//! The scheduler's state, and how sequences enter and leave it other than by finishing.

use crate::admission::{AddError, PromptLength, check_fits};
use crate::commit::SequenceEvent;
use crate::cost::CostModel;
use crate::eviction::EvictionKind;
use crate::memory::{Memory, PoolUse};
use crate::prefix_cache::PrefixHasher;
use crate::queue::{Urgency, WaitingQueue};
use crate::residency::{Place, ResidencyCounters, ResidentAdapter};
use crate::sequence::{NewSequence, Sequence};
use crate::step_times::StepTimes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use weft_types::{AdapterId, ContentHash, ExecutorLimits, SeqId, StepPlan, TokenEvent};

/// What a scheduler may hand out.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Of the executor that runs the plans.
    pub limits: ExecutorLimits,
    /// Whether blocks of earlier sequences are reused for equal prefixes.
    pub enable_prefix_caching: bool,
    /// What leaves the memory first.
    pub eviction: EvictionKind,
    /// What steps and loads cost on this device.
    pub costs: CostModel,
    /// How many tokens a tenant may get ahead of another whose turn it is while that one's adapter
    /// is loaded.
    pub quantum_tokens: u64,
    /// How many sequences may overtake one whose adapter is loaded; then nobody may.
    pub max_bypasses: u64,
    /// How many tokens of service a tenant keeps a claim to while it asks for less than its share,
    /// so that its next requests come at once.
    pub burst_tokens: u64,
    /// How long a step should take while sequences decode: prompts are computed in chunks that fit.
    /// Has an effect only where [`Scheduler::note_step`] is called.
    pub target_step: Option<Duration>,
    /// Shares of tenants; others have 1.
    pub tenant_weights: Vec<(Arc<str>, f64)>,
}

impl SchedulerConfig {
    /// With prefix caching and the default policies.
    #[must_use]
    pub fn new(limits: ExecutorLimits) -> Self {
        Self {
            limits,
            enable_prefix_caching: true,
            eviction: EvictionKind::default(),
            costs: CostModel::default(),
            quantum_tokens: 4096,
            max_bypasses: 64,
            burst_tokens: 1024,
            target_step: None,
            tenant_weights: Vec::new(),
        }
    }
}

/// What happened since the start. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerCounters {
    /// Sequences that lost their blocks and were queued again.
    pub num_preemptions: u64,
    /// Prompt tokens of sequences that have run. Like all counters here, without virtual tokens: they
    /// sum up what the usages of responses say.
    pub prompt_tokens: u64,
    /// Prompt tokens that were looked for in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Of those, how many were found.
    pub prefix_hit_tokens: u64,
    /// Tokens drawn.
    pub generation_tokens: u64,
    /// Sequences whose deadline came before they ran.
    pub num_expired: u64,
}

/// Decides who runs. One call of [`Self::plan`] is followed by one of [`Self::commit`] or
/// [`Self::fail`] with the same plan; [`Self::add`] and [`Self::abort`] may come at any time.
pub struct Scheduler {
    pub(crate) limits: ExecutorLimits,
    pub(crate) enable_prefix_caching: bool,
    pub(crate) quantum_tokens: u64,
    pub(crate) max_bypasses: u64,
    pub(crate) memory: Memory,
    pub(crate) hasher: PrefixHasher,
    /// In the order in which they began to run.
    pub(crate) running: Vec<Sequence>,
    pub(crate) waiting: WaitingQueue,
    /// Of the waiting that have one, soonest first.
    pub(crate) deadlines: BTreeSet<(u64, SeqId)>,
    pub(crate) counters: SchedulerCounters,
    pub(crate) roster_version: u64,
    pub(crate) num_admissions: u64,
    pub(crate) num_steps: u64,
    /// Whether loads may be worth beginning that were not before.
    pub(crate) may_look_ahead: bool,
    pub(crate) step_times: StepTimes,
    /// Kept for its memory.
    pub(crate) prefill_order: Vec<(Urgency, usize)>,
    num_arrivals: u64,
}

impl Scheduler {
    /// An empty scheduler.
    ///
    /// # Panics
    /// If a limit is zero: such an executor could run nothing.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        let limits = config.limits;
        assert!(
            limits.block_size > 0 && limits.num_blocks > 0 && limits.max_model_len > 0,
            "an executor has room for at least one token: {limits:?}"
        );
        assert!(
            limits.max_num_seqs > 0 && limits.max_num_batched_tokens > 0,
            "an executor computes at least one token a step: {limits:?}"
        );
        Self {
            memory: Memory::new(
                limits.num_blocks,
                limits.block_size,
                config.eviction.policy(),
                config.costs,
            ),
            hasher: PrefixHasher::new(),
            running: Vec::with_capacity(limits.max_num_seqs.min(1024)),
            waiting: WaitingQueue::new(&config.tenant_weights, config.burst_tokens),
            deadlines: BTreeSet::new(),
            counters: SchedulerCounters::default(),
            roster_version: 0,
            num_arrivals: 0,
            num_admissions: 0,
            num_steps: 0,
            may_look_ahead: false,
            step_times: StepTimes::new(config.target_step.map(|target| target.as_secs_f64())),
            prefill_order: Vec::with_capacity(limits.max_num_seqs.min(1024)),
            enable_prefix_caching: config.enable_prefix_caching,
            quantum_tokens: config.quantum_tokens,
            max_bypasses: config.max_bypasses,
            limits,
        }
    }

    /// Queues a sequence; tells the number under which plans will name its adapter.
    ///
    /// # Errors
    /// As [`check_fits`].
    pub fn add(&mut self, new: NewSequence) -> Result<Option<AdapterId>, AddError> {
        let adapter_chunks = new.adapter.map_or(0, |adapter| adapter.num_chunks);
        let num_virtual = new.num_virtual_tokens;
        let prompt = PromptLength { given: new.prompt.len() - num_virtual, num_virtual };
        check_fits(&self.limits, prompt, &new.stop, adapter_chunks)?;
        self.num_arrivals += 1;
        let adapter = new.adapter.map(|adapter| self.memory.add_waiting(adapter));
        let tenant = self.waiting.enter(&new.tenant);
        self.deadlines.extend(new.deadline_ms.map(|deadline| (deadline, new.id)));
        let seq = Sequence::new(new, self.num_arrivals, adapter, tenant, &self.hasher);
        self.waiting.push(seq);
        self.roster_version += 1;
        self.may_look_ahead = true;
        Ok(adapter)
    }

    /// Forgets a sequence and frees its blocks, without an event. False if it is not known (any
    /// more). Between a plan and its commit, that part of the output is ignored.
    pub fn abort(&mut self, id: SeqId) -> bool {
        if let Some(index) = self.running.iter().position(|seq| seq.id == id) {
            let mut seq = self.running.remove(index);
            release(&mut seq, &mut self.memory, &mut self.waiting);
        } else {
            let Some(seq) = self.waiting.remove(id) else { return false };
            if let Some(adapter) = seq.adapter {
                self.memory.residency.remove_waiting(adapter);
            }
            if let Some(deadline) = seq.deadline_ms {
                self.deadlines.remove(&(deadline, id));
            }
        }
        self.roster_version += 1;
        self.may_look_ahead = true;
        true
    }

    /// Ends the waiting sequences whose deadlines have come.
    pub fn expire(&mut self, now_ms: u64, events: &mut Vec<SequenceEvent>) {
        while let Some(&(deadline, seq)) = self.deadlines.first()
            && deadline <= now_ms
        {
            self.deadlines.pop_first();
            if self.abort(seq) {
                self.counters.num_expired += 1;
                events.push(SequenceEvent { seq, event: TokenEvent::Expired });
            }
        }
    }

    /// The step of `plan` took so long.
    pub fn note_step(&mut self, plan: &StepPlan, took: Duration) {
        self.step_times.note(plan, took.as_secs_f64());
    }

    /// The copy of an adapter to the device has ended.
    pub fn adapter_loaded(&mut self, id: AdapterId) {
        self.memory.end_load(id);
        self.may_look_ahead = true;
    }

    /// A load of the last plan could not be begun: its chunks are free again. Nothing was written to
    /// the device, so no plan will name it as evicted.
    pub fn load_refused(&mut self, id: AdapterId) {
        self.memory.undo_load(id);
        self.may_look_ahead = true;
    }

    /// Whether an adapter with this content, now or later, stays on the device once it is there.
    /// One that stands in the way of everything else leaves nevertheless.
    pub fn set_pinned(&mut self, hash: ContentHash, is_pinned: bool) {
        self.memory.set_pinned(hash, is_pinned);
        self.may_look_ahead = true;
    }

    /// Takes the adapter with this content off the device if no sequence names it. Unpins it.
    pub fn discard(&mut self, hash: ContentHash) {
        self.memory.set_pinned(hash, false);
        self.memory.discard(hash);
    }

    /// Adapters that waiting or running sequences name, and those on the device.
    pub fn adapters(&self) -> impl Iterator<Item = ResidentAdapter> {
        self.memory.residency.iter().map(|(_, entry)| ResidentAdapter {
            hash: entry.spec.hash,
            num_chunks: entry.spec.num_chunks,
            is_resident: matches!(entry.place, Place::Resident(_)),
            is_pinned: entry.is_pinned,
            num_running: entry.num_running,
            num_waiting: entry.num_waiting,
            num_uses: entry.num_uses,
        })
    }

    /// How the memory is used.
    #[must_use]
    pub fn pool_use(&self) -> PoolUse {
        self.memory.usage()
    }

    /// Whether copies to the device are under way.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        self.memory.residency.num_loading_chunks() > 0
    }

    /// Adapters' hits, loads and evictions since the start.
    #[must_use]
    pub fn residency_counters(&self) -> ResidencyCounters {
        self.memory.residency.counters
    }

    /// Weighted tokens that each tenant was served.
    pub fn tenant_counters(&self) -> impl Iterator<Item = (&Arc<str>, f64)> {
        self.waiting.counters()
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

    /// Sequences that began to run, again ones included.
    #[must_use]
    pub fn num_admissions(&self) -> u64 {
        self.num_admissions
    }

    /// Whether there is nothing to plan.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.len() == 0
    }

    /// Running sequences, in the order in which they began to run.
    pub fn running(&self) -> impl Iterator<Item = SeqId> {
        self.running.iter().map(|seq| seq.id)
    }

    /// Waiting sequences, tenant by tenant.
    pub fn waiting(&self) -> impl Iterator<Item = SeqId> {
        self.waiting.iter().map(|seq| seq.id)
    }

    /// Changes whenever [`Self::running`] or [`Self::waiting`] may have.
    #[must_use]
    pub fn roster_version(&self) -> u64 {
        self.roster_version
    }

    /// Chunks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.memory.num_chunks()
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }
}

/// Gives back what a sequence that ran holds.
pub(crate) fn release(seq: &mut Sequence, memory: &mut Memory, waiting: &mut WaitingQueue) {
    seq.release_blocks(memory);
    if let Some(adapter) = seq.adapter {
        memory.end_use(adapter, false);
    }
    waiting.leave(seq.tenant);
}
