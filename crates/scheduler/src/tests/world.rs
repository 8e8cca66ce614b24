//! A world for the scheduler to act in: a KV cache that knows exactly what was computed in each
//! slot, a deterministic model, and clients that notice every event.

use crate::{AdapterSpec, NewSequence, Scheduler, SchedulerConfig, SequenceEvent};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weft_types::{
    AdapterId, BlockId, ContentHash, ExecuteError, ExecutorLimits, FinishReason, PlannedSequence,
    SeqId, SequenceOutput, StepOutput, StepPlan, StopConditions, TokenEvent, TokenId, TokenLogprob,
    TokenLogprobs,
};

/// Tokens of the model's vocabulary.
pub(super) const VOCAB_SIZE: u32 = 4;

/// How a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Computed,
    /// All of it fails.
    Failed,
    /// Only the planned sequence with this index (modulo their number) fails.
    OneFailed(usize),
    /// The live sequence with this index (modulo their number) is aborted before the commit.
    AbortedMeanwhile(usize),
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) plan: StepPlan,
    limits: ExecutorLimits,
    /// Every prefix that was ever computed, exactly: (prefix before, token).
    prefixes: HashMap<(usize, TokenId), usize>,
    roots: Vec<Option<ContentHash>>,
    /// Which prefix was computed in each slot of each block.
    slots: Vec<Option<usize>>,
    /// Adapters of live sequences, by the names that the scheduler gave them.
    names: HashMap<AdapterId, ContentHash>,
    device: HashMap<AdapterId, OnDevice>,
    /// Steps that a load takes.
    pub(super) load_steps: usize,
    /// Every so many loads the device refuses to begin one; 0 is never.
    pub(super) refuse_every: usize,
    num_loads: usize,
    now_ms: u64,
    pub(super) live: BTreeMap<SeqId, Client>,
    pub(super) ended: BTreeMap<SeqId, Client>,
    num_added: u64,
}

/// An adapter that was loaded, or is.
struct OnDevice {
    hash: ContentHash,
    chunks: Box<[BlockId]>,
    /// Steps until it is there.
    steps_left: usize,
}

/// What the client of one sequence knows.
pub(super) struct Client {
    pub(super) new: NewSequence,
    adapter: Option<AdapterId>,
    pub(super) tokens: Vec<TokenId>,
    prompt_logprobs: Vec<TokenId>,
    pub(super) end: Option<TokenEvent>,
}

impl World {
    pub(super) fn new(limits: ExecutorLimits, enable_prefix_caching: bool) -> Self {
        Self::with_config(SchedulerConfig { enable_prefix_caching, ..SchedulerConfig::new(limits) })
    }

    pub(super) fn with_config(config: SchedulerConfig) -> Self {
        let limits = config.limits.clone();
        Self {
            scheduler: Scheduler::new(config),
            plan: StepPlan::default(),
            prefixes: HashMap::new(),
            roots: Vec::new(),
            slots: vec![None; limits.num_blocks * limits.block_size],
            names: HashMap::new(),
            device: HashMap::new(),
            load_steps: 1,
            refuse_every: 0,
            num_loads: 0,
            now_ms: 0,
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
            num_added: 0,
            limits,
        }
    }

    /// Adds a sequence under the next id; `None` if it is refused.
    pub(super) fn add(&mut self, mut new: NewSequence) -> Option<SeqId> {
        new.id = SeqId(self.num_added);
        self.num_added += 1;
        let adapter = self.scheduler.add(new.clone()).ok()?;
        let id = new.id;
        let tokens = new.prompt.to_vec();
        if let (Some(id), Some(spec)) = (adapter, new.adapter) {
            self.names.insert(id, spec.hash);
        }
        let client = Client { new, adapter, tokens, prompt_logprobs: Vec::new(), end: None };
        self.live.insert(id, client);
        self.check();
        Some(id)
    }

    /// Aborts the live sequence with this index, modulo their number.
    pub(super) fn abort(&mut self, index: usize) {
        let Some(&id) = self.live.keys().nth(index % self.live.len().max(1)) else { return };
        assert!(self.scheduler.abort(id));
        assert!(!self.scheduler.abort(id), "a sequence ends once");
        self.live.remove(&id);
        self.check();
    }

    /// Lets time pass.
    pub(super) fn expire(&mut self, ms: u64) {
        self.now_ms += ms;
        let mut events = Vec::new();
        self.scheduler.expire(self.now_ms, &mut events);
        for event in events {
            assert_eq!(event.event, TokenEvent::Expired);
            let client = self.live.remove(&event.seq).expect("it was alive");
            assert!(client.new.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms));
            assert_eq!(client.num_drawn(), 0, "nothing of it was computed");
        }
        self.check();
    }

    pub(super) fn pin(&mut self, hash: ContentHash, is_pinned: bool) {
        self.scheduler.set_pinned(hash, is_pinned);
        self.check();
    }

    /// Evicts and begins to load what the plan says, and ends the loads whose time has come.
    fn move_adapters(&mut self, plan: &StepPlan) {
        for id in &plan.evictions {
            let gone = self.device.remove(id).expect("only what is there can leave");
            assert_eq!(gone.steps_left, 0, "it left before it came");
        }
        for load in &plan.loads {
            let hash = self.names[&load.adapter];
            for chunk in &load.chunks {
                assert!(self.device.values().all(|other| !other.chunks.contains(chunk)));
                let first = chunk.0 as usize * self.limits.block_size;
                self.slots[first..first + self.limits.block_size].fill(None);
            }
            self.num_loads += 1;
            if self.refuse_every > 0 && self.num_loads.is_multiple_of(self.refuse_every) {
                self.scheduler.load_refused(load.adapter);
                continue;
            }
            let (chunks, steps_left) = (load.chunks.clone(), self.load_steps.max(1));
            let before = self.device.insert(load.adapter, OnDevice { hash, chunks, steps_left });
            assert!(before.is_none(), "it is there already");
        }
        assert!(
            plan.block_tables.iter().all(|block| {
                self.device.values().all(|adapter| !adapter.chunks.contains(block))
            }),
            "a KV block is a page of an adapter"
        );
    }

    fn end_loads(&mut self) {
        let mut loading: Vec<AdapterId> =
            self.device.iter().filter(|(_, one)| one.steps_left > 0).map(|(id, _)| *id).collect();
        loading.sort();
        for id in loading {
            let one = self.device.get_mut(&id).expect("just found");
            one.steps_left -= 1;
            if one.steps_left == 0 {
                self.scheduler.adapter_loaded(id);
            }
        }
    }

    pub(super) fn step(&mut self, outcome: Outcome) {
        let mut plan = std::mem::take(&mut self.plan);
        self.end_loads();
        self.scheduler.plan(&mut plan);
        self.move_adapters(&plan);
        let is_waiting = self.scheduler.is_loading() || !plan.loads.is_empty();
        assert!(!plan.is_empty() || self.live.is_empty() || is_waiting);
        assert!(plan.is_empty() || !self.live.is_empty());
        self.check_plan(&plan);
        let mut output = self.compute(&plan);
        let mut events = Vec::new();
        let error = ExecuteError { message: "broken".to_owned() };
        match outcome {
            Outcome::Computed => {}
            Outcome::Failed => self.scheduler.fail(&plan, &error, &mut events),
            Outcome::OneFailed(index) => {
                let index = index % plan.sequences.len().max(1);
                if let Some(output) = output.sequences.get_mut(index) {
                    output.failed = Some(error);
                    self.overwrite_with_garbage(&plan, &plan.sequences[index]);
                }
            }
            Outcome::AbortedMeanwhile(index) => self.abort(index),
        }
        if outcome == Outcome::Failed {
            plan.sequences.iter().for_each(|chunk| self.overwrite_with_garbage(&plan, chunk));
        } else {
            self.scheduler.commit(&plan, &mut output, &mut events);
        }
        events.into_iter().for_each(|event| self.receive(event));
        self.check();
        self.plan = plan;
    }

    /// Steps until nothing is left. The sequence that began first gains a token with each step, and
    /// an adapter is loaded for one that is first in line or for one that runs soon.
    pub(super) fn run_to_the_end(&mut self) {
        let longest =
            |client: &Client| client.new.prompt.len() + client.new.stop.max_tokens as usize;
        let lengths: usize = self.live.values().map(longest).sum();
        let load_steps = self.load_steps + usize::from(self.refuse_every > 0);
        let bound = lengths + 2 * self.live.len() * (load_steps + 1) + load_steps;
        for _ in 0..bound {
            if !self.live.is_empty() {
                self.step(Outcome::Computed);
            }
        }
        assert_eq!(self.live.len(), 0, "after {bound} steps some sequence has not finished");
        assert!(self.scheduler.is_empty());
        assert_eq!(self.scheduler.pool_use().kv, 0, "all blocks return");
    }

    fn check(&self) {
        self.scheduler.check_integrity().unwrap();
        assert_eq!(self.scheduler.num_running() + self.scheduler.num_waiting(), self.live.len());
    }

    fn check_plan(&self, plan: &StepPlan) {
        assert!(plan.tokens.len() <= self.limits.max_num_batched_tokens);
        assert!(plan.sequences.len() <= self.limits.max_num_seqs);
        let planned: Vec<SeqId> = plan.sequences.iter().map(|chunk| chunk.seq).collect();
        let distinct: std::collections::HashSet<_> = planned.iter().collect();
        assert_eq!(distinct.len(), planned.len(), "each at most once");
        let running: Vec<SeqId> = self.scheduler.running().collect();
        let mut in_order = running.iter();
        assert!(planned.iter().all(|id| in_order.any(|other| other == id)), "in order of running");
        let first_gains = planned.is_empty() || running.first() == planned.first();
        assert!(first_gains, "before the first waits, all others gave it their blocks");
        let (mut num_tokens, mut num_blocks) = (0, 0);
        for chunk in &plan.sequences {
            let client = &self.live[&chunk.seq];
            if let (Some(id), Some(spec)) = (client.adapter, client.new.adapter) {
                let adapter = &self.device[&id];
                assert_eq!(
                    (adapter.hash, adapter.steps_left),
                    (spec.hash, 0),
                    "its adapter is there"
                );
            }
            let end = chunk.start + chunk.tokens.len();
            assert!(!chunk.tokens.is_empty() && end <= client.tokens.len());
            assert_eq!((chunk.tokens.start, chunk.blocks.start), (num_tokens, num_blocks));
            (num_tokens, num_blocks) = (chunk.tokens.end, chunk.blocks.end);
            assert_eq!(chunk.blocks.len(), end.div_ceil(self.limits.block_size));
            assert_eq!(plan.tokens[chunk.tokens.clone()], client.tokens[chunk.start..end]);
            let draws = end == client.tokens.len() && client.new.stop.max_tokens > 0;
            assert_eq!(chunk.sample, draws);
        }
        assert_eq!((num_tokens, num_blocks), (plan.tokens.len(), plan.block_tables.len()));
    }

    /// Stores what the step computes, then checks that each sequence finds all of its own prefix.
    fn compute(&mut self, plan: &StepPlan) -> StepOutput {
        for chunk in &plan.sequences {
            for position in chunk.start..chunk.start + chunk.tokens.len() {
                let prefix = self.prefix(chunk.seq, position);
                let slot = self.slot(plan, chunk, position);
                self.slots[slot] = Some(prefix);
            }
        }
        let sequences = plan.sequences.iter().map(|chunk| self.compute_chunk(plan, chunk));
        StepOutput { sequences: sequences.collect() }
    }

    fn compute_chunk(&mut self, plan: &StepPlan, chunk: &PlannedSequence) -> SequenceOutput {
        let end = chunk.start + chunk.tokens.len();
        for position in 0..end {
            let slot = self.slot(plan, chunk, position);
            let wanted = self.prefix(chunk.seq, position);
            assert_eq!(self.slots[slot], Some(wanted), "{:?} at {position}", chunk.seq);
        }
        let client = &self.live[&chunk.seq];
        let token = chunk.sample.then(|| next_token(client));
        let of_prompt = |position: usize| {
            let chosen = TokenLogprob { token: client.new.prompt[position], logprob: 0.0 };
            TokenLogprobs { chosen, top: Vec::new() }
        };
        let prompt_logprobs = match client.new.uses_cache {
            true => Vec::new(),
            false => {
                let first = chunk.start.max(client.new.num_virtual_tokens) + 1;
                (first..=end.min(client.new.prompt.len() - 1)).map(of_prompt).collect()
            }
        };
        SequenceOutput { token, prompt_logprobs, ..SequenceOutput::default() }
    }

    /// A failed step may have written anything where it was to write.
    fn overwrite_with_garbage(&mut self, plan: &StepPlan, chunk: &PlannedSequence) {
        for position in chunk.start..chunk.start + chunk.tokens.len() {
            let slot = self.slot(plan, chunk, position);
            self.slots[slot] = None;
        }
    }

    fn receive(&mut self, SequenceEvent { seq, event }: SequenceEvent) {
        let client = self.live.get_mut(&seq).expect("no event comes after the last one");
        match event {
            TokenEvent::PromptLogprobs(logprobs) => {
                assert!(!logprobs.is_empty());
                assert_eq!(client.tokens.len(), client.new.prompt.len(), "before the first token");
                client.prompt_logprobs.extend(logprobs.iter().map(|one| one.chosen.token));
            }
            TokenEvent::Token { token, .. } => client.tokens.push(token),
            TokenEvent::Expired => panic!("only time ends a sequence so"),
            TokenEvent::Finished { .. } | TokenEvent::Failed(_) => {
                let mut client = self.live.remove(&seq).unwrap();
                if let TokenEvent::Finished { reason, usage } = event {
                    let num_given = client.new.prompt.len() - client.new.num_virtual_tokens;
                    assert_eq!(usage.prompt_tokens, num_given);
                    assert_eq!(usage.completion_tokens, client.num_drawn());
                    assert!(usage.cached_tokens < usage.prompt_tokens);
                    client.check_finished(reason, &self.limits);
                }
                client.end = Some(event);
                self.ended.insert(seq, client);
            }
        }
    }

    /// The exact name of tokens `..= position` of `seq`, of its adapter as far as it is active in them,
    /// and of nothing else.
    fn prefix(&mut self, seq: SeqId, position: usize) -> usize {
        let client = &self.live[&seq];
        let adapter = client.new.adapter.map(|adapter| adapter.hash);
        let mut root = |adapter| {
            self.roots.iter().position(|root| *root == adapter).unwrap_or_else(|| {
                self.roots.push(adapter);
                self.roots.len() - 1
            })
        };
        // Roots and prefixes share one space of names: roots take the last ones.
        let (base, activated) = (usize::MAX - root(None), root(adapter));
        let tokens = client.tokens[..=position].iter().enumerate();
        tokens.fold(base, |parent, (index, &token)| {
            let mut then = |parent, token| {
                let next = self.prefixes.len();
                *self.prefixes.entry((parent, token)).or_insert(next)
            };
            let is_begin = index == client.new.active_from && adapter.is_some();
            let parent = if is_begin { then(parent, u32::MAX - activated as u32) } else { parent };
            then(parent, token)
        })
    }

    fn slot(&self, plan: &StepPlan, chunk: &PlannedSequence, position: usize) -> usize {
        let table = &plan.block_tables[chunk.blocks.clone()];
        let block = table[position / self.limits.block_size];
        block.0 as usize * self.limits.block_size + position % self.limits.block_size
    }
}

impl Client {
    pub(super) fn num_drawn(&self) -> usize {
        self.tokens.len() - self.new.prompt.len()
    }

    /// It ended where it had to, not earlier and not later, and missed nothing.
    fn check_finished(&self, reason: FinishReason, limits: &ExecutorLimits) {
        let StopConditions { max_tokens, min_tokens, stop_token_ids } = &self.new.stop;
        let drawn = &self.tokens[self.new.prompt.len()..];
        let may_stop = drawn.iter().skip(*min_tokens as usize);
        let num_stops = may_stop.filter(|token| stop_token_ids.contains(token)).count();
        match reason {
            FinishReason::Stop(token) => {
                assert_eq!((num_stops, drawn.last()), (1, Some(&token)));
            }
            FinishReason::Length => {
                assert_eq!(num_stops, 0);
                let room = limits.max_model_len - self.new.prompt.len();
                assert_eq!(drawn.len(), room.min(*max_tokens as usize));
            }
        }
        if !self.new.uses_cache {
            let first = self.new.num_virtual_tokens + 1;
            assert_eq!(self.prompt_logprobs, self.new.prompt[first..]);
        }
    }
}

/// A function of the adapter and of all tokens, as a model is.
fn next_token(client: &Client) -> TokenId {
    let seed = client.new.adapter.map_or(99, |adapter| u32::from(adapter.hash.0[0]));
    let fold =
        |hash: u32, &token: &TokenId| (hash ^ token).wrapping_mul(0x0100_0193).rotate_left(9);
    (client.tokens.iter().fold(seed, fold) >> 8) % VOCAB_SIZE
}

/// A sequence of the bare base that stops at nothing. `World::add` gives it its id.
pub(super) fn plain(prompt: &[TokenId], max_tokens: u32) -> NewSequence {
    NewSequence {
        id: SeqId(0),
        prompt: Arc::from(prompt),
        stop: StopConditions { max_tokens, ..StopConditions::default() },
        num_virtual_tokens: 0,
        adapter: None,
        active_from: 0,
        tenant: Arc::from(""),
        priority: 0,
        deadline_ms: None,
        cache_salt: None,
        uses_cache: true,
    }
}

/// An adapter of so many chunks; its rank is as large.
pub(super) fn adapter(byte: u8, num_chunks: usize) -> AdapterSpec {
    AdapterSpec { hash: ContentHash([byte; 32]), num_chunks, rank: num_chunks }
}
