//! A model that repeats its prompt, byte for byte, over and over.
//!
//! `$` in the prompt is drawn as the end of the text, `!` fails its sequence, `~` makes each step
//! of its sequence slow. An adapter swaps upper and lower case.

use crate::tokenizer_files::{BOS, EOS, FIRST_BYTE, VOCAB_SIZE};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_types::{
    AdapterId, AdapterLoad, ExecuteError, Executor, ExecutorLimits, PackedAdapter, PlannedSequence,
    SeqId, SequenceOutput, SequenceSpec, StepOutput, StepPlan, TokenId, TokenLogprob,
    TokenLogprobs,
};

pub(crate) struct Parrot {
    limits: ExecutorLimits,
    sequences: HashMap<SeqId, SequenceSpec>,
    seen: Seen,
    /// Since the last question.
    loaded: Vec<AdapterId>,
}

/// Every sequence that the engine announced, in order.
pub(crate) type Seen = Arc<Mutex<Vec<SequenceSpec>>>;

pub(crate) fn token(byte: u8) -> TokenId {
    FIRST_BYTE + TokenId::from(byte)
}

impl Parrot {
    pub(crate) fn new(limits: ExecutorLimits, seen: Seen) -> Self {
        Self { limits, sequences: HashMap::new(), seen, loaded: Vec::new() }
    }

    fn run(&self, planned: &PlannedSequence) -> SequenceOutput {
        let spec = &self.sequences[&planned.seq];
        let known = planned.start + planned.tokens.len();
        if spec.prompt.contains(&token(b'~')) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let of_prompt = |k| {
            let range = planned.start + 1..(known + 1).min(spec.prompt.len());
            range.map(|at| logprobs(spec.prompt[at], -0.5, k)).collect()
        };
        let prompt_logprobs = spec.sampling.prompt_logprobs.map(of_prompt).unwrap_or_default();
        if !planned.sample {
            return SequenceOutput { prompt_logprobs, ..SequenceOutput::default() };
        }
        let drawn = next(spec, known - spec.prompt.len());
        let failed = (drawn == token(b'!'))
            .then(|| ExecuteError { message: "the parrot was asked to fail".into() });
        SequenceOutput {
            logprobs: spec.sampling.logprobs.map(|k| logprobs(drawn, -0.25, k)),
            token: Some(drawn),
            prompt_logprobs,
            failed,
        }
    }
}

/// Output token `index`.
fn next(spec: &SequenceSpec, index: usize) -> TokenId {
    let spoken: Vec<_> = spec.prompt.iter().copied().filter(|token| *token != BOS).collect();
    let repeated = spoken.get(index % spoken.len().max(1)).copied().unwrap_or(EOS);
    let drawn = if repeated == token(b'$') { EOS } else { repeated };
    if index < spec.min_tokens as usize && spec.stop_token_ids.contains(&drawn) {
        return token(b'x');
    }
    let is_letter =
        u8::try_from(drawn - FIRST_BYTE.min(drawn)).is_ok_and(|b| b.is_ascii_alphabetic());
    if spec.adapter.is_some() && is_letter {
        FIRST_BYTE + ((drawn - FIRST_BYTE) ^ 0x20)
    } else {
        drawn
    }
}

fn logprobs(token: TokenId, logprob: f32, k: u32) -> TokenLogprobs {
    let others = (1..).map(|rank| TokenLogprob {
        token: (token + rank) % VOCAB_SIZE as TokenId,
        logprob: logprob - rank as f32,
    });
    let chosen = TokenLogprob { token, logprob };
    TokenLogprobs { chosen, top: std::iter::once(chosen).chain(others).take(k as usize).collect() }
}

impl Executor for Parrot {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn load_adapter(&mut self, load: &AdapterLoad, _: Arc<PackedAdapter>) {
        self.loaded.push(load.adapter);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        finished.append(&mut self.loaded);
    }

    fn unload_adapter(&mut self, _: AdapterId) {}

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        self.seen.lock().unwrap().push(spec.clone());
        self.sequences.insert(seq, spec);
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        output.sequences.clear();
        output.sequences.extend(plan.sequences.iter().map(|planned| self.run(planned)));
        Ok(())
    }
}
