//! The real scheduler and the real executor without a thread: every step under the test's control.

use std::collections::HashMap;
use std::sync::Arc;
use weft_kernels::quantize::Activations;
use weft_model::LoadedModel;
use weft_runner::{CpuExecutor, KvCacheDtype, RunnerConfig, pool_layout};
use weft_scheduler::{AdapterSpec, NewSequence, Scheduler, SchedulerConfig};
use weft_types::{
    AdapterId, AdapterRef, Executor, HeapPages, LoweredAdapter, PackedAdapter, Packer,
    PageAllocator, SamplingParams, SeqId, SequenceSpec, StepOutput, StepPlan, StopConditions,
    TokenEvent, TokenId,
};

/// One request.
#[derive(Clone)]
pub(crate) struct Request {
    /// With the virtual tokens of its adapter, and with an invocation if that must be invoked.
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
    /// Chunks: by default there is room for everything.
    pub(crate) num_blocks: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) enable_prefix_caching: bool,
    pub(crate) num_threads: usize,
    pub(crate) kv_dtype: KvCacheDtype,
    pub(crate) activations: Activations,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            num_blocks: 2000,
            max_num_batched_tokens: 512,
            enable_prefix_caching: false,
            num_threads: 2,
            kv_dtype: KvCacheDtype::F16,
            activations: Activations::default(),
        }
    }
}

/// Runs all requests to their end. Returns their answers and the number of preemptions.
pub(crate) fn run(model: &LoadedModel, setup: Setup, requests: &[Request]) -> (Vec<Answer>, u64) {
    let executor = CpuExecutor::new(model.clone(), &runner_config(model, setup)).unwrap();
    let pages: Arc<dyn PageAllocator> = Arc::new(HeapPages);
    run_on(executor, &pages, setup, requests)
}

/// Of an executor for [`run_on`].
pub(crate) fn runner_config(model: &LoadedModel, setup: Setup) -> RunnerConfig {
    RunnerConfig {
        memory_bytes: setup.num_blocks * pool_layout(&model.config, setup.kv_dtype),
        max_model_len: (setup.num_blocks * 16).min(256),
        max_num_seqs: 64,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        kv_dtype: Some(setup.kv_dtype),
        activations: setup.activations,
        isa: weft_kernels::Isa::detect(),
        num_threads: setup.num_threads,
        cores: Vec::new(),
        max_lora_rank: 512,
    }
}

/// As [`run`], on this executor, with adapters in pages of `pages`.
pub(crate) fn run_on(
    mut executor: impl Executor,
    pages: &Arc<dyn PageAllocator>,
    setup: Setup,
    requests: &[Request],
) -> (Vec<Answer>, u64) {
    let chunk_bytes = executor.limits().chunk_bytes;
    let mut scheduler = Scheduler::new(SchedulerConfig {
        enable_prefix_caching: setup.enable_prefix_caching,
        ..SchedulerConfig::new(executor.limits())
    });
    let packed: Vec<Option<Arc<PackedAdapter>>> = requests
        .iter()
        .map(|request| {
            let adapter = request.adapter.as_ref()?;
            let packer = Packer::in_pages_of(Arc::clone(pages), chunk_bytes);
            Some(Arc::new(PackedAdapter::pack_with(packer, adapter).unwrap()))
        })
        .collect();
    // Under the numbers that the scheduler gave them.
    let mut adapters: HashMap<AdapterId, Arc<PackedAdapter>> = HashMap::new();
    let (mut plan, mut output, mut events, mut loaded) =
        (StepPlan::default(), StepOutput::default(), Vec::new(), Vec::new());
    let mut answers: HashMap<SeqId, Answer> = HashMap::new();
    let mut num_finished = 0;
    for step in 0.. {
        assert!(step < 10_000, "requests do not end");
        for (index, request) in requests.iter().enumerate().filter(|(_, r)| r.arrival == step) {
            let id = SeqId(index as u64);
            let packed = packed[index].as_ref();
            let adapter = scheduler.add(new_sequence(id, request, packed)).unwrap();
            if let (Some(adapter), Some(packed)) = (adapter, packed) {
                adapters.insert(adapter, Arc::clone(packed));
            }
            let adapter = adapter.zip(packed).map(|(id, packed)| AdapterRef {
                num_virtual_tokens: packed.num_virtual_tokens,
                active_from: active_from(request, packed),
                ..AdapterRef::new(id, packed.content_hash)
            });
            executor.add_sequence(id, spec(request, adapter));
        }
        // Copies run beside one step, and end before the next is planned: so that plans repeat.
        while scheduler.is_loading() {
            executor.finished_loads(&mut loaded);
            loaded.drain(..).for_each(|adapter| scheduler.adapter_loaded(adapter));
            std::thread::yield_now();
        }
        scheduler.plan(&mut plan);
        plan.evictions.iter().for_each(|&adapter| executor.unload_adapter(adapter));
        for load in &plan.loads {
            executor.load_adapter(load, Arc::clone(&adapters[&load.adapter]));
        }
        if !plan.is_empty() {
            executor.begin(&plan).unwrap();
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
                other => panic!("{other:?}"),
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

fn spec(request: &Request, adapter: Option<AdapterRef>) -> SequenceSpec {
    SequenceSpec {
        prompt: request.prompt.as_slice().into(),
        sampling: request.sampling.clone(),
        stop_token_ids: Vec::new(),
        min_tokens: 0,
        adapter,
    }
}

/// Where the adapter's last invocation begins in a prompt that has one.
fn active_from(request: &Request, packed: &PackedAdapter) -> usize {
    let Some(invocation) = &packed.invocation_tokens else { return 0 };
    let begins = |&at: &usize| request.prompt[at..].starts_with(invocation);
    (0..request.prompt.len()).rev().find(begins).expect("the prompt invokes its adapter")
}

fn new_sequence(id: SeqId, request: &Request, packed: Option<&Arc<PackedAdapter>>) -> NewSequence {
    NewSequence {
        id,
        prompt: request.prompt.as_slice().into(),
        num_virtual_tokens: packed.map_or(0, |packed| packed.num_virtual_tokens),
        active_from: packed.map_or(0, |packed| active_from(request, packed)),
        stop: StopConditions { max_tokens: request.max_tokens, ..Default::default() },
        adapter: packed.map(|packed| AdapterSpec {
            hash: packed.content_hash,
            num_chunks: packed.num_chunks,
            rank: packed.max_rank(),
        }),
        tenant: "".into(),
        priority: 0,
        deadline_ms: None,
        cache_salt: None,
        uses_cache: request.sampling.prompt_logprobs.is_none(),
    }
}
