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
    /// Of those, how many may be of prefills.
    prefill: usize,
    /// Tokens that the step's adapters take the time of.
    of_ranks: f64,
}

impl Budget {
    /// Tokens for a sequence with so many to compute. A decode always gets its one.
    fn chunk(&self, num_uncomputed: usize) -> usize {
        if num_uncomputed == 1 {
            return self.tokens.min(1);
        }
        let beside_ranks = self.tokens.saturating_sub(self.of_ranks as usize).max(MIN_CHUNK);
        num_uncomputed.min(beside_ranks).min(self.prefill).min(self.tokens)
    }

    fn take(&mut self, num_tokens: usize) {
        self.tokens -= num_tokens;
        if num_tokens > 1 {
            self.prefill -= num_tokens;
        }
    }

    /// Undoes [`Self::take`].
    fn give_back(&mut self, num_tokens: usize) {
        self.tokens += num_tokens;
        if num_tokens > 1 {
            self.prefill += num_tokens;
        }
    }

    fn has_prefill(&self) -> bool {
        self.tokens.min(self.prefill) > 0
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
        let tokens = self.limits.max_num_batched_tokens;
        let is_awaited = self.running.iter().any(|seq| seq.num_uncomputed() == 1);
        let prefill =
            if is_awaited { self.step_times.prefill_tokens().min(tokens) } else { tokens };
        let mut budget = Budget { tokens, prefill, of_ranks: 0.0 };
        let mut has_room = self.plan_decodes(&mut budget);
        if has_room {
            self.admit_overdue(plan, &mut budget);
        }
        has_room &= self.plan_prefills(&mut budget);
        self.scan_waiting(plan, &mut budget, has_room);
        self.running.iter().for_each(|seq| seq.write_chunk(plan));
        plan.evictions.append(&mut self.memory.evictions);
    }

    /// A token for each running sequence that decodes. False if one of them lacked a block: then a
    /// newcomer would only take what those need next.
    fn plan_decodes(&mut self, budget: &mut Budget) -> bool {
        let mut has_room = true;
        let mut index = 0;
        while index < self.running.len() && budget.tokens > 0 {
            // The first of all makes some progress in each step, whoever is more urgent.
            if index == 0 || self.running[index].num_uncomputed() == 1 {
                has_room &= self.plan_running(index, budget);
            }
            index += 1;
        }
        has_room
    }

    /// What is left for prefills that have begun: the most urgent first. False if one of them lacked
    /// a block.
    fn plan_prefills(&mut self, budget: &mut Budget) -> bool {
        let mut order = std::mem::take(&mut self.prefill_order);
        order.clear();
        let unplanned = self.running.iter().enumerate().filter(|(_, seq)| seq.num_planned == 0);
        order.extend(unplanned.map(|(index, seq)| (self.waiting.urgency(seq), index)));
        order.sort_unstable();
        let mut has_room = true;
        for &(_, index) in &order {
            // Those behind it may have been preempted meanwhile.
            if index < self.running.len() && budget.has_prefill() {
                has_room &= self.plan_running(index, budget);
            }
        }
        self.prefill_order = order;
        has_room
    }

    /// The next chunk of a running sequence. False if it lacked a block, and took those of the latest
    /// or has to wait.
    fn plan_running(&mut self, index: usize, budget: &mut Budget) -> bool {
        let mut has_room = true;
        self.count_ranks(self.running[index].adapter, budget);
        let mut num_tokens = budget.chunk(self.running[index].num_uncomputed());
        while !self.reserve(index, num_tokens) {
            has_room = false;
            let is_latest = index + 1 == self.running.len();
            if !is_latest {
                budget.give_back(self.preempt_at(self.running.len() - 1));
            } else if index > 0 || !self.pins_yield(None) {
                // It keeps its blocks and waits: an older one takes them if it must.
                num_tokens = self.num_tokens_in_reach(index).min(num_tokens);
            }
        }
        self.running[index].num_planned = num_tokens;
        budget.take(num_tokens);
        has_room
    }

    /// Admits the next in line, ahead of prefills that have begun, while it is of a tenant that is
    /// behind theirs; and in the place of a sequence of a tenant that has more than its share of the
    /// places. A tenant that floods the server delays only itself.
    fn admit_overdue(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        loop {
            self.waiting.begin_scan();
            let Some(seq) = self.waiting.candidate() else { return };
            let (tenant, adapter, priority) = (seq.tenant, seq.adapter, seq.priority);
            let is_there = adapter.is_none_or(|id| self.memory.residency.is_resident(id));
            if !is_there || !budget.has_prefill() {
                return;
            }
            let urgency = self.waiting.urgency_of(tenant, priority);
            let is_behind = |seq: &Sequence| urgency < self.waiting.urgency(seq);
            let yielding = if self.running.len() < self.max_num_seqs() {
                if !self.running.iter().any(|seq| seq.num_planned == 0 && is_behind(seq)) {
                    return;
                }
                None
            } else {
                let has_more = |seq: &Sequence| self.waiting.has_smaller_share(tenant, seq.tenant);
                let yields = |seq: &Sequence| is_behind(seq) && has_more(seq);
                // Not the first of all: it is sure to end.
                let Some(index) = self.running.iter().skip(1).rposition(yields) else { return };
                Some(index + 1)
            };
            let Verdict::Admit(matched) = self.judge(adapter, true, true, plan) else { return };
            self.admit(matched, budget);
            if let Some(index) = yielding {
                budget.give_back(self.preempt_at(index));
            }
        }
    }

    /// Not more than can all have a token in every step.
    fn max_num_seqs(&self) -> usize {
        self.limits.max_num_seqs.min(self.limits.max_num_batched_tokens)
    }

    /// Starts waiting sequences while tokens, places and chunks last, and the loads of adapters
    /// that the next in line need.
    fn scan_waiting(&mut self, plan: &mut StepPlan, budget: &mut Budget, has_room: bool) {
        let max_num_seqs = self.max_num_seqs();
        let may_admit = |this: &Self, budget: &Budget| {
            has_room && budget.has_prefill() && this.running.len() < max_num_seqs
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
                Verdict::Admit(matched) => self.admit(matched, budget),
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
    fn admit(&mut self, matched: PrefixMatch, budget: &mut Budget) {
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
        seq.reserve_lists(self.limits.max_model_len, block_size);
        seq.take_prefix(matched.num_blocks, &mut self.memory, &self.hasher, block_size);
        self.count_ranks(seq.adapter, budget);
        let num_tokens = budget.chunk(seq.num_uncomputed());
        let has_blocks = seq.reserve(num_tokens, &mut self.memory, block_size);
        debug_assert!(has_blocks, "the blocks were counted before");
        seq.num_planned = num_tokens;
        budget.take(num_tokens);
        self.running.push(seq);
        self.num_admissions += 1;
        self.roster_version += 1;
    }

    fn count_first_run(&mut self, seq: &Sequence, num_hits: usize) {
        let (num_tokens, num_virtual) = (seq.num_prompt_tokens, seq.num_virtual);
        let num_given = (num_tokens - num_virtual) as u64;
        self.counters.prompt_tokens += num_given;
        if self.enable_prefix_caching && seq.uses_cache() {
            self.counters.prefix_query_tokens += num_given;
            self.counters.prefix_hit_tokens += num_hits.saturating_sub(num_virtual) as u64;
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
