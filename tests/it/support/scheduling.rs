//! The real scheduler and the real executor without a thread: every step under the test's control.

use std::collections::HashMap;
use std::sync::Arc;
use weft_model::LoadedModel;
use weft_runner::{CpuExecutor, RunnerConfig};
use weft_scheduler::{NewSequence, Scheduler, SchedulerConfig};
use weft_types::{
    Executor, LoweredAdapter, SamplingParams, SeqId, SequenceSpec, StepOutput, StepPlan,
    StopConditions, TokenEvent, TokenId,
};

/// One request.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) adapter: Option<Arc<LoweredAdapter>>,
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: u32,
    /// The step before which it comes.
    pub(crate) arrival: usize,
}

/// What a request got: each token with the bits of its log probability.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<(TokenId, u32)>,
    pub(crate) prompt_logprobs: Vec<u32>,
    pub(crate) num_cached: usize,
}

/// How the engine is set up.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) num_blocks: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) enable_prefix_caching: bool,
    pub(crate) num_threads: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            num_blocks: 600,
            max_num_batched_tokens: 512,
            enable_prefix_caching: false,
            num_threads: 2,
        }
    }
}

/// Runs all requests to their end. Returns their answers and the number of preemptions.
pub(crate) fn run(model: &LoadedModel, setup: Setup, requests: &[Request]) -> (Vec<Answer>, u64) {
    let block_bytes =
        weft_model::cpu::kv_shape(&model.config).block_bytes(weft_kernels::KvDtype::F16);
    let mut executor = CpuExecutor::new(
        model.clone(),
        &RunnerConfig {
            memory_bytes: setup.num_blocks * block_bytes,
            max_model_len: (setup.num_blocks * 16).min(256),
            max_num_seqs: 64,
            max_num_batched_tokens: setup.max_num_batched_tokens,
            kv_dtype: Some(weft_kernels::KvDtype::F16),
            num_threads: setup.num_threads,
        },
    )
    .unwrap();
    let limits = executor.limits();
    let mut scheduler = Scheduler::new(SchedulerConfig {
        limits,
        enable_prefix_caching: setup.enable_prefix_caching,
    });
    let (mut plan, mut output, mut events) =
        (StepPlan::default(), StepOutput::default(), Vec::new());
    let mut answers: HashMap<SeqId, Answer> = HashMap::new();
    let mut num_finished = 0;
    for step in 0.. {
        assert!(step < 10_000, "requests do not end");
        for (index, request) in requests.iter().enumerate().filter(|(_, r)| r.arrival == step) {
            let id = SeqId(index as u64);
            executor.add_sequence(id, spec(request));
            scheduler.add(new_sequence(id, request)).unwrap();
        }
        plan.clear();
        scheduler.plan(&mut plan);
        if !plan.is_empty() {
            executor.execute(&plan, &mut output).unwrap();
            scheduler.commit(&plan, &mut output, &mut events);
        }
        scheduler.check_integrity().unwrap();
        for event in events.drain(..) {
            let answer = answers.entry(event.seq).or_default();
            match event.event {
                TokenEvent::Token { token, logprobs } => {
                    let logprob = logprobs.expect("asked for").chosen.logprob;
                    answer.tokens.push((token, logprob.to_bits()));
                }
                TokenEvent::PromptLogprobs(logprobs) => {
                    let bits = logprobs.iter().map(|logprobs| logprobs.chosen.logprob.to_bits());
                    answer.prompt_logprobs.extend(bits);
                }
                TokenEvent::Finished { usage, .. } => {
                    answer.num_cached = usage.cached_tokens;
                    executor.remove_sequence(event.seq);
                    num_finished += 1;
                }
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        if num_finished == requests.len() {
            break;
        }
    }
    let answers =
        (0..requests.len() as u64).map(|id| answers.remove(&SeqId(id)).unwrap()).collect();
    (answers, scheduler.counters().num_preemptions)
}

fn spec(request: &Request) -> SequenceSpec {
    SequenceSpec {
        prompt: request.prompt.as_slice().into(),
        sampling: request.sampling.clone(),
        stop_token_ids: Vec::new(),
        min_tokens: 0,
        adapter: request.adapter.clone(),
    }
}

fn new_sequence(id: SeqId, request: &Request) -> NewSequence {
    NewSequence {
        id,
        prompt: request.prompt.as_slice().into(),
        stop: StopConditions { max_tokens: request.max_tokens, ..Default::default() },
        adapter: request.adapter.as_ref().map(|adapter| adapter.content_hash),
        cache_salt: None,
        uses_cache: request.sampling.prompt_logprobs.is_none(),
    }
}
