//! Who runs in the next step, how many tokens of each, and which adapters are fetched meanwhile.
//! Changes no tokens: chunks are handed out, and sequences move between running and waiting.

use crate::scheduler::Scheduler;
use crate::sequence::{PrefixMatch, Sequence};
use weft_types::{AdapterId, StepPlan};

/// Waiting sequences that a step looks at: how far ahead adapters are fetched.
const LOOK_AHEAD: usize = 64;
/// Chunks of adapters that are loaded or loading for sequences that wait, as a share of all: 1 in
/// so many. More would only be evicted again before their turn.
const FETCHED_SHARE: usize = 8;
/// A prefill chunk is not made smaller than this for the sake of adapters.
const MIN_CHUNK: usize = 16;

/// What is left of a step.
struct Budget {
    tokens: usize,
    /// Tokens that the step's adapters take the time of.
    of_ranks: f64,
}

impl Budget {
    /// Tokens for a chunk of a sequence with so many to compute. A decode always gets its one.
    fn chunk(&self, num_uncomputed: usize) -> usize {
        let beside_ranks = self.tokens.saturating_sub(self.of_ranks as usize).max(MIN_CHUNK);
        num_uncomputed.min(beside_ranks).min(self.tokens)
    }
}

/// What becomes of a candidate.
enum Verdict {
    Admit(PrefixMatch),
    /// Its adapter is not there yet: others may overtake it.
    Pass,
    /// Nobody may overtake it.
    Stop,
}

impl Scheduler {
    /// Fills `plan` (cleared first) with the next step. It has no sequences only if there are
    /// none, or if all wait for adapters that are being loaded.
    pub fn plan(&mut self, plan: &mut StepPlan) {
        plan.clear();
        self.num_steps += 1;
        let mut budget = Budget { tokens: self.limits.max_num_batched_tokens, of_ranks: 0.0 };
        let has_room = self.plan_running(plan, &mut budget);
        self.scan_waiting(plan, &mut budget, has_room);
        plan.evictions.append(&mut self.memory.evictions);
    }

    /// Running sequences, those that began first first. False if one of them lacked a block: then a
    /// newcomer would only take what those need next.
    fn plan_running(&mut self, plan: &mut StepPlan, budget: &mut Budget) -> bool {
        let mut has_room = true;
        let mut index = 0;
        while index < self.running.len() && budget.tokens > 0 {
            self.count_ranks(self.running[index].adapter, budget);
            let mut num_tokens = budget.chunk(self.running[index].num_uncomputed());
            while !self.reserve(index, num_tokens) {
                has_room = false;
                let is_latest = index + 1 == self.running.len();
                if !is_latest {
                    self.preempt_latest();
                } else if index > 0 || !self.pins_yield(None) {
                    // It keeps its blocks and waits: an older one takes them if it must.
                    num_tokens = self.num_tokens_in_reach(index).min(num_tokens);
                }
            }
            if num_tokens > 0 {
                self.running[index].plan_chunk(num_tokens, plan);
                budget.tokens -= num_tokens;
            }
            index += 1;
        }
        has_room
    }

    /// Starts waiting sequences while tokens, places and chunks last, and the loads of adapters
    /// that the next in line need.
    fn scan_waiting(&mut self, plan: &mut StepPlan, budget: &mut Budget, has_room: bool) {
        // Not more than can all have a token in every step.
        let max_num_seqs = self.limits.max_num_seqs.min(self.limits.max_num_batched_tokens);
        let may_admit = |this: &Self, budget: &Budget| {
            has_room && budget.tokens > 0 && this.running.len() < max_num_seqs
        };
        if !may_admit(self, budget) && !self.may_look_ahead {
            return;
        }
        self.may_look_ahead = false;
        self.waiting.begin_scan();
        // The first that is passed over holds its place: nobody gets too far ahead of it.
        let mut first_passed = None;
        let mut is_open = true;
        for num_seen in 0..LOOK_AHEAD {
            let Some(seq) = self.waiting.candidate() else { break };
            let (tenant, adapter) = (seq.tenant, seq.adapter);
            if let Some(first) = first_passed
                && self.waiting.lead(tenant, first) > self.quantum_tokens as f64
            {
                is_open = false;
            }
            is_open = is_open && may_admit(self, budget);
            match self.judge(adapter, num_seen == 0, is_open, plan) {
                Verdict::Admit(matched) => self.admit(matched, plan, budget),
                Verdict::Pass => {
                    first_passed.get_or_insert(tenant);
                    is_open = is_open && !self.was_passed_too_often();
                    self.waiting.pass();
                }
                Verdict::Stop => {
                    is_open = false;
                    self.waiting.pass();
                }
            }
        }
    }

    /// Whether the candidate may run. Begins to load its adapter if that is absent and has room.
    fn judge(
        &mut self,
        adapter: Option<AdapterId>,
        is_first: bool,
        is_open: bool,
        plan: &mut StepPlan,
    ) -> Verdict {
        if let Some(id) = adapter
            && !self.memory.residency.is_resident(id)
        {
            self.fetch(id, is_first, plan);
            return Verdict::Pass;
        }
        if !is_open {
            return Verdict::Stop;
        }
        let (enable_prefix_caching, block_size) =
            (self.enable_prefix_caching, self.limits.block_size);
        let Some(seq) = self.waiting.candidate() else { return Verdict::Stop };
        let matched = if enable_prefix_caching {
            seq.match_prefix(&self.memory, &self.hasher, block_size)
        } else {
            PrefixMatch::default()
        };
        // Room for all of its tokens, not only for the first chunk, and a block for each running
        // sequence to grow into: else it would soon be preempted. Its own adapter stays.
        let num_new = seq.tokens.len().div_ceil(block_size) - matched.num_blocks;
        let own = match adapter {
            Some(id) if self.memory.residency.is_idle(id) => {
                self.memory.residency.entry(id).spec.num_chunks
            }
            _ => 0,
        };
        let needed = num_new + matched.num_idle + own + self.running.len();
        let is_alone = is_first && self.running.is_empty();
        while needed > self.memory.num_available() {
            if !is_alone || !self.pins_yield(adapter) {
                return Verdict::Stop;
            }
        }
        Verdict::Admit(matched)
    }

    /// Begins to load an absent adapter, if its chunks can be had. The first in line may take those
    /// of adapters that others wait for.
    fn fetch(&mut self, id: AdapterId, is_first: bool, plan: &mut StepPlan) {
        let residency = &self.memory.residency;
        if !residency.is_absent(id) {
            return;
        }
        let num_wanted = residency.num_idle_chunks() - residency.num_unwanted_chunks();
        let num_fetched = num_wanted + residency.num_loading_chunks();
        let num_chunks = residency.entry(id).spec.num_chunks;
        if !is_first && num_fetched + num_chunks > self.memory.num_chunks() / FETCHED_SHARE {
            return;
        }
        let is_alone = is_first && self.running.is_empty();
        let mut load = self.memory.load(id, is_first);
        while load.is_none() && is_alone && self.pins_yield(None) {
            load = self.memory.load(id, true);
        }
        plan.loads.extend(load);
    }

    /// Evicts a pinned adapter, other than `but`, for a sequence beside which none runs: with no load
    /// to wait for either, only pins can be in its way. False if there is none.
    fn pins_yield(&mut self, but: Option<AdapterId>) -> bool {
        !self.is_loading() && self.memory.evict_pinned(but)
    }

    /// Runs the candidate.
    fn admit(&mut self, matched: PrefixMatch, plan: &mut StepPlan, budget: &mut Budget) {
        let block_size = self.limits.block_size;
        let Some(mut seq) = self.waiting.pop() else { return };
        if let Some(id) = seq.adapter {
            self.memory.begin_use(id);
        }
        if let Some(deadline) = seq.deadline_ms.take() {
            self.deadlines.remove(&(deadline, seq.id));
        }
        if seq.num_cached.is_none() {
            self.count_first_run(&seq, matched.num_blocks * block_size);
        }
        seq.take_prefix(matched.num_blocks, &mut self.memory, &self.hasher, block_size);
        self.count_ranks(seq.adapter, budget);
        let num_tokens = budget.chunk(seq.num_uncomputed());
        let has_blocks = seq.reserve(num_tokens, &mut self.memory, block_size);
        debug_assert!(has_blocks, "the blocks were counted before");
        seq.plan_chunk(num_tokens, plan);
        budget.tokens -= num_tokens;
        self.running.push(seq);
        self.num_admissions += 1;
        self.roster_version += 1;
    }

    fn count_first_run(&mut self, seq: &Sequence, num_hits: usize) {
        let num_tokens = seq.num_prompt_tokens;
        self.counters.prompt_tokens += num_tokens as u64;
        if self.enable_prefix_caching && seq.uses_cache() {
            self.counters.prefix_query_tokens += num_tokens as u64;
            self.counters.prefix_hit_tokens += num_hits as u64;
            self.memory.note_prefix(num_tokens, num_hits);
        }
        if seq.adapter.is_some() {
            let counters = &mut self.memory.residency.counters;
            counters.hits += u64::from(!seq.missed);
            counters.misses += u64::from(seq.missed);
        }
        self.waiting.charge(seq.tenant, (num_tokens - num_hits) as u64);
    }

    /// Whether so many sequences have overtaken the candidate that no more may.
    fn was_passed_too_often(&mut self) -> bool {
        let (now, max) = (self.num_admissions, self.max_bypasses);
        let Some(seq) = self.waiting.candidate() else { return false };
        seq.missed = true;
        now - *seq.passed_at.get_or_insert(now) >= max
    }

    /// The first sequence of a step with some adapter adds its rank to the step's cost.
    fn count_ranks(&mut self, adapter: Option<AdapterId>, budget: &mut Budget) {
        if let Some(id) = adapter
            && let Some(rank) = self.memory.residency.join_step(id, self.num_steps)
        {
            budget.of_ranks += self.memory.costs.tokens_of_rank(rank);
        }
    }

    fn reserve(&mut self, index: usize, num_tokens: usize) -> bool {
        self.running[index].reserve(num_tokens, &mut self.memory, self.limits.block_size)
    }

    /// Positions that running sequence `index` could fill with its own and the available blocks.
    fn num_tokens_in_reach(&self, index: usize) -> usize {
        let seq = &self.running[index];
        let num_blocks = seq.blocks.len() + self.memory.num_available();
        num_blocks * self.limits.block_size - seq.num_computed
    }
}
