//! Who runs in the next step, and how many tokens of each. Changes no tokens: only blocks are
//! handed out, and sequences move between running and waiting.

use crate::scheduler::Scheduler;
use weft_types::StepPlan;

impl Scheduler {
    /// Fills `plan` (cleared first) with the next step. It is empty only if there is no sequence.
    pub fn plan(&mut self, plan: &mut StepPlan) {
        plan.clear();
        let mut budget = self.limits.max_num_batched_tokens;
        let has_room = self.plan_running(plan, &mut budget);
        if has_room {
            self.admit_waiting(plan, &mut budget);
        }
    }

    /// Running sequences, oldest first. False if one of them lacked a block: then a newcomer
    /// would only take what those need next.
    fn plan_running(&mut self, plan: &mut StepPlan, budget: &mut usize) -> bool {
        let mut has_room = true;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let mut num_tokens = self.running[index].num_uncomputed().min(*budget);
            while !self.reserve(index, num_tokens) {
                has_room = false;
                let is_latest = index + 1 == self.running.len();
                if is_latest {
                    // It keeps its blocks and waits: an older one takes them if it must.
                    num_tokens = self.num_tokens_in_reach(index).min(num_tokens);
                } else {
                    self.preempt_latest();
                }
            }
            if num_tokens > 0 {
                self.running[index].plan_chunk(num_tokens, plan);
                *budget -= num_tokens;
            }
            index += 1;
        }
        has_room
    }

    /// Starts waiting sequences while tokens, places and blocks last, never out of order.
    fn admit_waiting(&mut self, plan: &mut StepPlan, budget: &mut usize) {
        let block_size = self.limits.block_size;
        // Not more than can all have a token in every step.
        let max_num_seqs = self.limits.max_num_seqs.min(self.limits.max_num_batched_tokens);
        while *budget > 0 && self.running.len() < max_num_seqs {
            let Some(seq) = self.waiting.next_mut() else { break };
            let matched = if self.enable_prefix_caching {
                seq.match_prefix(&self.pool, &self.hasher, block_size)
            } else {
                Default::default()
            };
            // Room for all of its tokens, not only for the first chunk, and a block for each
            // running sequence to grow into: else it would soon be preempted.
            let num_new = seq.tokens.len().div_ceil(block_size) - matched.num_blocks;
            if num_new + matched.num_idle + self.running.len() > self.pool.num_available() {
                break;
            }
            let Some(mut seq) = self.waiting.pop() else { break };
            if seq.num_cached.is_none() {
                let num_hits = matched.num_blocks * block_size;
                self.counters.prompt_tokens += seq.num_prompt_tokens as u64;
                if self.enable_prefix_caching && seq.uses_cache() {
                    self.counters.prefix_query_tokens += seq.num_prompt_tokens as u64;
                    self.counters.prefix_hit_tokens += num_hits as u64;
                }
            }
            seq.take_prefix(matched.num_blocks, &mut self.pool, &self.hasher, block_size);
            let num_tokens = seq.num_uncomputed().min(*budget);
            let has_blocks = seq.reserve(num_tokens, &mut self.pool, block_size);
            debug_assert!(has_blocks, "the blocks were counted above");
            seq.plan_chunk(num_tokens, plan);
            *budget -= num_tokens;
            self.running.push(seq);
            self.roster_version += 1;
        }
    }

    fn reserve(&mut self, index: usize, num_tokens: usize) -> bool {
        self.running[index].reserve(num_tokens, &mut self.pool, self.limits.block_size)
    }

    /// Positions that running sequence `index` could fill with its own and the available blocks.
    fn num_tokens_in_reach(&self, index: usize) -> usize {
        let seq = &self.running[index];
        let num_blocks = seq.blocks.len() + self.pool.num_available();
        num_blocks * self.limits.block_size - seq.num_computed
    }
}
