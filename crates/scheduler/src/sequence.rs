//! One sequence: its tokens, how far they are computed, and the blocks that hold them.
//! Knows no other sequence.

use crate::memory::Memory;
use crate::prefix_cache::{Activation, PrefixChain, PrefixHasher};
use crate::queue::TenantId;
use crate::residency::AdapterSpec;
use std::sync::Arc;
use weft_types::{
    AdapterId, BlockId, ExecutorLimits, FinishReason, SeqId, StepPlan, StopConditions, TokenId,
    Usage, plan::PlannedSequence,
};

/// A sequence to be queued.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// Never used before.
    pub id: SeqId,
    /// The virtual tokens of the adapter, then at least one token.
    pub prompt: Arc<[TokenId]>,
    /// How many tokens of the prompt are virtual: computed and cached like others, and told of to nobody.
    pub num_virtual_tokens: usize,
    /// When it ends.
    pub stop: StopConditions,
    /// Whose keys and values it computes; `None` is the bare base.
    pub adapter: Option<AdapterSpec>,
    /// The position from which on they are the adapter's; before it they are the base's.
    pub active_from: usize,
    /// Who asks: service is shared out evenly among tenants, by their weights.
    pub tenant: Arc<str>,
    /// Lower ones run first, whoever asks.
    pub priority: i32,
    /// Milliseconds, on the clock of [`crate::Scheduler::expire`]: if it does not run by then, it
    /// is not wanted any more.
    pub deadline_ms: Option<u64>,
    /// Cached blocks are shared only between sequences of equal salt.
    pub cache_salt: Option<Arc<str>>,
    /// Whether cached blocks may stand in for computing. False when the log probabilities of the
    /// prompt are asked for: they exist only where the prompt is computed.
    pub uses_cache: bool,
}

pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    /// Order in which sequences came.
    pub(crate) arrival: u64,
    /// The prompt and what was drawn.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt_tokens: usize,
    /// Of those, how many are virtual.
    pub(crate) num_virtual: usize,
    pub(crate) stop: StopConditions,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) tenant: TenantId,
    pub(crate) priority: i32,
    pub(crate) deadline_ms: Option<u64>,
    /// Admissions of others up to when it was passed over first.
    pub(crate) passed_at: Option<u64>,
    /// Whether it had to wait for its adapter.
    pub(crate) missed: bool,
    /// Block `i` holds positions `i * block_size ..`.
    pub(crate) blocks: Vec<BlockId>,
    /// Positions `..num_computed` are in `blocks`.
    pub(crate) num_computed: usize,
    /// The most that `num_computed` ever was; more than it after a preemption.
    pub(crate) max_computed: usize,
    /// Prompt tokens that the cache gave when it ran first; `None` before.
    pub(crate) num_cached: Option<usize>,
    /// Tokens of it in the step that is being planned or computed.
    pub(crate) num_planned: usize,
    uses_cache: bool,
    chain: PrefixChain,
    /// Blocks `..num_registered` were offered to the cache, or came from it.
    num_registered: usize,
}

/// The leading blocks of a sequence that the cache holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PrefixMatch {
    pub(crate) num_blocks: usize,
    /// Of those, how many count as available as long as nobody takes them.
    pub(crate) num_idle: usize,
}

impl Sequence {
    pub(crate) fn new(
        new: NewSequence,
        arrival: u64,
        adapter: Option<AdapterId>,
        tenant: TenantId,
        hasher: &PrefixHasher,
    ) -> Self {
        let hash = new.adapter.map(|adapter| adapter.hash);
        let salt = new.cache_salt.as_deref();
        let chain = match hash {
            Some(adapter) if new.active_from > 0 => {
                let activation = Activation { adapter, position: new.active_from };
                PrefixChain::new(hasher.root(None, salt)).activated(activation)
            }
            _ => PrefixChain::new(hasher.root(hash, salt)),
        };
        Self {
            id: new.id,
            adapter,
            tenant,
            priority: new.priority,
            deadline_ms: new.deadline_ms,
            passed_at: None,
            missed: false,
            arrival,
            num_prompt_tokens: new.prompt.len(),
            num_virtual: new.num_virtual_tokens,
            tokens: new.prompt.to_vec(),
            stop: new.stop,
            blocks: Vec::new(),
            num_computed: 0,
            max_computed: 0,
            num_cached: None,
            num_planned: 0,
            uses_cache: new.uses_cache,
            chain,
            num_registered: 0,
        }
    }

    pub(crate) fn uses_cache(&self) -> bool {
        self.uses_cache
    }

    /// Known tokens that are not in the cache yet: 1 for a decode.
    pub(crate) fn num_uncomputed(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    fn num_drawn(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Makes room in all lists for as long as the sequence can become: its steps allocate nothing.
    pub(crate) fn reserve_lists(&mut self, max_model_len: usize, block_size: usize) {
        let longest = self.num_prompt_tokens.saturating_add(self.stop.max_tokens as usize);
        let longest = longest.min(max_model_len).max(self.tokens.len());
        self.tokens.reserve_exact(longest - self.tokens.len());
        let num_blocks = longest.div_ceil(block_size);
        self.blocks.reserve_exact(num_blocks.saturating_sub(self.blocks.len()));
        self.chain.reserve(num_blocks);
    }

    /// How much of this sequence could be taken from the cache. Never the last known token: its
    /// logits are needed. Without `uses_cache`, only what was computed once already.
    pub(crate) fn match_prefix(
        &mut self,
        memory: &Memory,
        hasher: &PrefixHasher,
        block_size: usize,
    ) -> PrefixMatch {
        let known = self.tokens.len() - 1;
        let usable = if self.uses_cache { known } else { known.min(self.max_computed) };
        let mut matched = PrefixMatch::default();
        for index in 0..usable / block_size {
            let hash = self.chain.hash_of(index, hasher, &self.tokens, block_size);
            let Some(found) = memory.find(hash) else { break };
            matched.num_blocks += 1;
            matched.num_idle += usize::from(found.is_idle);
        }
        matched
    }

    /// Takes the first `num_blocks` blocks from the cache, as [`Self::match_prefix`] found them.
    pub(crate) fn take_prefix(
        &mut self,
        num_blocks: usize,
        memory: &mut Memory,
        hasher: &PrefixHasher,
        block_size: usize,
    ) {
        for index in 0..num_blocks {
            let hash = self.chain.hash_of(index, hasher, &self.tokens, block_size);
            let Some(found) = memory.find(hash) else { break };
            memory.acquire(found);
            self.blocks.push(found.id);
        }
        self.num_computed = self.blocks.len() * block_size;
        self.num_registered = self.blocks.len();
        self.num_cached.get_or_insert(self.num_computed);
    }

    /// Takes blocks until `num_tokens` more positions have room, all or none.
    pub(crate) fn reserve(
        &mut self,
        num_tokens: usize,
        memory: &mut Memory,
        block_size: usize,
    ) -> bool {
        let wanted = (self.num_computed + num_tokens).div_ceil(block_size);
        let num_missing = wanted.saturating_sub(self.blocks.len());
        if num_missing > memory.num_available() {
            return false;
        }
        self.blocks.extend((0..num_missing).map_while(|_| memory.allocate()));
        true
    }

    /// Writes the planned tokens into `plan`, if there are any.
    pub(crate) fn write_chunk(&self, plan: &mut StepPlan) {
        let (start, num_tokens) = (self.num_computed, self.num_planned);
        if num_tokens == 0 {
            return;
        }
        let (first_token, first_block) = (plan.tokens.len(), plan.block_tables.len());
        plan.tokens.extend_from_slice(&self.tokens[start..start + num_tokens]);
        plan.block_tables.extend_from_slice(&self.blocks);
        plan.sequences.push(PlannedSequence {
            seq: self.id,
            start,
            tokens: first_token..plan.tokens.len(),
            blocks: first_block..plan.block_tables.len(),
            sample: start + num_tokens == self.tokens.len() && self.stop.max_tokens > 0,
        });
    }

    /// Notes that positions `..num_computed` are in the blocks.
    pub(crate) fn advance_to(&mut self, num_computed: usize) {
        self.num_computed = num_computed;
        self.max_computed = self.max_computed.max(num_computed);
    }

    /// Makes the blocks that became full findable.
    pub(crate) fn register_full_blocks(
        &mut self,
        memory: &mut Memory,
        hasher: &PrefixHasher,
        block_size: usize,
    ) {
        for index in self.num_registered..self.num_computed / block_size {
            let hash = self.chain.hash_of(index, hasher, &self.tokens, block_size);
            memory.register(self.blocks[index], hash);
            self.num_registered = index + 1;
        }
    }

    /// Whether and why it ends, after its last step.
    pub(crate) fn finish_reason(&self, limits: &ExecutorLimits) -> Option<FinishReason> {
        if self.num_drawn() == 0 {
            let done = self.stop.max_tokens == 0 && self.num_uncomputed() == 0;
            return done.then_some(FinishReason::Length);
        }
        let last = self.tokens[self.tokens.len() - 1];
        if self.num_drawn() > self.stop.min_tokens as usize
            && self.stop.stop_token_ids.contains(&last)
        {
            return Some(FinishReason::Stop(last));
        }
        let is_long = self.num_drawn() >= self.stop.max_tokens as usize
            || self.tokens.len() >= limits.max_model_len;
        is_long.then_some(FinishReason::Length)
    }

    /// Without virtual tokens.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.num_prompt_tokens - self.num_virtual,
            cached_tokens: self.num_cached.unwrap_or(0).saturating_sub(self.num_virtual),
            completion_tokens: self.num_drawn(),
        }
    }

    /// Gives all blocks back. The last ones first, so that of a cached prefix the tail goes before
    /// the head, without which it could not be found.
    pub(crate) fn release_blocks(&mut self, memory: &mut Memory) {
        for block in self.blocks.drain(..).rev() {
            memory.release(block);
        }
        self.num_computed = 0;
        self.num_registered = 0;
    }
}
