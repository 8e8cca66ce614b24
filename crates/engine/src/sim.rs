//! An executor without a model. In: step plans. Out: tokens that are a function of the tokens
//! before them and of the adapter, and of nothing else: batching, chunking, caching and preemption
//! cannot change them, or something is wrong.
//!
//! It holds every plan against what it knows: the tokens must be those of the sequence, and every
//! earlier position must be found in the planned blocks with just the content that this sequence
//! needs. A plan that asks for anything else is a bug, and panics.

mod adapters;
mod faults;
mod gate;
mod kv;

pub use faults::Fault;
pub use gate::StepGate;

use adapters::SimAdapters;
use faults::Faults;
use gate::Gate;
use kv::{PrefixHash, SimKv};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;
use weft_types::{
    AdapterId, AdapterLoad, ContentHash, ExecuteError, Executor, ExecutorLimits, PackedAdapter,
    PlannedSequence, SeqId, SequenceOutput, SequenceSpec, StepOutput, StepPlan, TokenId,
    TokenLogprob, TokenLogprobs,
};

/// Chooses a next token, instead of the hash: from all tokens so far, and the adapter.
pub type NextToken = Box<dyn FnMut(&[TokenId], Option<ContentHash>) -> TokenId + Send>;

/// See the module. `SimExecutor::new(limits, vocab_size)` is enough for most tests.
pub struct SimExecutor {
    limits: ExecutorLimits,
    vocab_size: usize,
    sequences: FxHashMap<SeqId, SimSequence>,
    kv: SimKv,
    adapters: SimAdapters,
    next_token: Option<NextToken>,
    step_latency: Duration,
    token_latency: Duration,
    faults: Faults,
    gate: Option<Gate>,
}

struct SimSequence {
    spec: SequenceSpec,
    tokens: Vec<TokenId>,
    /// Entry `p` stands for the adapter and tokens `..= p`: what the KV cache holds at `p`.
    prefixes: Vec<PrefixHash>,
}

/// Limits with room for 16 sequences of up to 512 tokens in 256 blocks of 16.
#[must_use]
pub fn sim_limits() -> ExecutorLimits {
    ExecutorLimits {
        block_size: 16,
        num_blocks: 256,
        chunk_bytes: 4096,
        max_model_len: 512,
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
    }
}

impl SimExecutor {
    /// Without latency and without faults.
    #[must_use]
    pub fn new(limits: ExecutorLimits, vocab_size: usize) -> Self {
        Self {
            kv: SimKv::new(limits.num_blocks, limits.block_size),
            limits,
            vocab_size,
            adapters: SimAdapters::default(),
            sequences: FxHashMap::default(),
            next_token: None,
            step_latency: Duration::ZERO,
            token_latency: Duration::ZERO,
            faults: Faults::default(),
            gate: None,
        }
    }

    /// Every step takes `step`, and `token` for each of its tokens.
    #[must_use]
    pub fn with_latency(mut self, step: Duration, token: Duration) -> Self {
        (self.step_latency, self.token_latency) = (step, token);
        self
    }

    /// Every load takes so long, from its begin on.
    #[must_use]
    pub fn with_load_latency(mut self, latency: Duration) -> Self {
        self.adapters.latency = latency;
        self
    }

    /// Draws what `next_token` says. It should depend on its arguments only.
    #[must_use]
    pub fn with_next_token(mut self, next_token: NextToken) -> Self {
        self.next_token = Some(next_token);
        self
    }

    /// Fails, once or always, as `fault` says. May be called several times.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.faults.add(fault);
        self
    }

    /// Every step waits until the gate lets it pass, so that a test decides what happens between
    /// and during steps.
    #[must_use]
    pub fn with_gate(mut self) -> (Self, StepGate) {
        let (gate, outside) = gate::pair();
        self.gate = Some(gate);
        (self, outside)
    }

    /// What this executor generates for a request when nothing disturbs it.
    #[must_use]
    pub fn expected_tokens(&mut self, spec: SequenceSpec, num_tokens: usize) -> Vec<TokenId> {
        let mut seq = SimSequence::new(spec);
        for _ in 0..num_tokens {
            let token = draw(&seq, self.vocab_size, &mut self.next_token);
            seq.push(token);
        }
        seq.tokens.split_off(seq.spec.prompt.len())
    }

    fn compute(&mut self, plan: &StepPlan, chunk: &PlannedSequence) -> SequenceOutput {
        let unknown = || panic!("{:?} is planned and was never added", chunk.seq);
        let seq = self.sequences.get_mut(&chunk.seq).unwrap_or_else(unknown);
        let end = chunk.start + chunk.tokens.len();
        assert!(!chunk.tokens.is_empty(), "{:?} is planned without a token", chunk.seq);
        assert!(end <= seq.tokens.len(), "{:?} is planned past its end", chunk.seq);
        assert_eq!(plan.tokens[chunk.tokens.clone()], seq.tokens[chunk.start..end], "other tokens");
        if let Some(adapter) = seq.spec.adapter {
            self.adapters.check(adapter);
        }
        assert!(!chunk.sample || end == seq.tokens.len(), "{:?} draws too early", chunk.seq);
        self.kv.check(&plan.block_tables[chunk.blocks.clone()], &seq.prefixes[..chunk.start]);

        let prompt_logprobs = match seq.spec.sampling.prompt_logprobs {
            Some(num_top) => {
                let last = end.min(seq.spec.prompt.len() - 1);
                let num_virtual = seq.spec.adapter.map_or(0, |adapter| adapter.num_virtual_tokens);
                (chunk.start.max(num_virtual)..last)
                    .map(|at| seq.logprobs(at, num_top, self.vocab_size))
                    .collect()
            }
            None => Vec::new(),
        };
        let mut output = SequenceOutput { prompt_logprobs, ..SequenceOutput::default() };
        if chunk.sample {
            let token = draw(seq, self.vocab_size, &mut self.next_token);
            seq.push(token);
            output.token = Some(token);
            let num_top = seq.spec.sampling.logprobs;
            output.logprobs = num_top.map(|n| seq.logprobs(end - 1, n, self.vocab_size));
        }
        output
    }
}

impl Executor for SimExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>) {
        assert_eq!(load.chunks.len(), adapter.num_chunks, "a chunk for each page");
        self.adapters.load(load, adapter.content_hash);
        for &chunk in &load.chunks {
            self.kv.overwrite(chunk);
        }
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        self.adapters.finish(finished);
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        self.adapters.unload(adapter);
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        let before = self.sequences.insert(seq, SimSequence::new(spec));
        assert!(before.is_none(), "{seq:?} was added twice");
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        if let Some(gate) = &mut self.gate {
            gate.wait();
        }
        let latency = self.step_latency + self.token_latency * plan.tokens.len() as u32;
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        assert!(plan.tokens.len() <= self.limits.max_num_batched_tokens, "too many tokens");
        assert!(plan.sequences.len() <= self.limits.max_num_seqs, "too many sequences");
        self.faults.strike(plan)?;
        self.kv.check_private_writes(plan);
        self.adapters.check_chunks(&plan.block_tables);
        // All of a step's keys and values are stored before any is read, as kernels may do it.
        for chunk in &plan.sequences {
            if let Some(seq) = self.sequences.get(&chunk.seq) {
                let blocks = &plan.block_tables[chunk.blocks.clone()];
                let end = (chunk.start + chunk.tokens.len()).min(seq.prefixes.len());
                self.kv.store(blocks, chunk.start, &seq.prefixes[chunk.start.min(end)..end]);
            }
        }
        output.sequences.clear();
        for chunk in &plan.sequences {
            let computed = self.compute(plan, chunk);
            output.sequences.push(computed);
        }
        Ok(())
    }
}

impl SimSequence {
    fn new(spec: SequenceSpec) -> Self {
        let mut seq = Self { tokens: Vec::new(), prefixes: Vec::new(), spec };
        for &token in &*Arc::clone(&seq.spec.prompt) {
            seq.push(token);
        }
        seq
    }

    fn push(&mut self, token: TokenId) {
        let adapter = self.spec.adapter.filter(|one| one.active_from == self.tokens.len());
        let parent = self.prefixes.last().copied().unwrap_or(PrefixHash::ROOT);
        let parent = adapter.map_or(parent, |adapter| parent.activate(adapter.content_hash));
        self.prefixes.push(parent.then(token));
        self.tokens.push(token);
    }

    /// Of the token after position `at`. Token `best + i` has probability 2^-(i+1), where `best`
    /// is the hash's choice.
    fn logprobs(&self, at: usize, num_top: u32, vocab_size: usize) -> TokenLogprobs {
        let best = self.prefixes[at].pick(0, vocab_size);
        let logprob = |rank: u32| -((rank + 1) as f32) * std::f32::consts::LN_2;
        let token = self.tokens[at + 1];
        let size = vocab_size as u32;
        let chosen = TokenLogprob { token, logprob: logprob((token + size - best) % size) };
        let top = |rank| TokenLogprob { token: (best + rank) % size, logprob: logprob(rank) };
        TokenLogprobs { chosen, top: (0..num_top.min(size)).map(top).collect() }
    }
}

fn draw(seq: &SimSequence, vocab_size: usize, next_token: &mut Option<NextToken>) -> TokenId {
    let sampling = &seq.spec.sampling;
    let seed = if sampling.temperature == 0.0 { 0 } else { sampling.seed };
    let token = match next_token {
        Some(next_token) => {
            next_token(&seq.tokens, seq.spec.adapter.map(|adapter| adapter.content_hash))
        }
        None => seq.prefixes[seq.prefixes.len() - 1].pick(seed, vocab_size),
    };
    let num_drawn = seq.tokens.len() - seq.spec.prompt.len();
    if num_drawn >= seq.spec.min_tokens as usize {
        return token;
    }
    let size = vocab_size as u32;
    let mut others = (0..size).map(|offset| (token + offset) % size);
    others.find(|other| !seq.spec.stop_token_ids.contains(other)).unwrap_or(token)
}
