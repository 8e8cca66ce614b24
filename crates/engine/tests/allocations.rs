//! A step of a steady decode allocates nothing on the loop thread: not in the engine, the scheduler
//! or the channels to the clients.
//!
//! A channel of tokio allocates a block for each 32 events that nobody has read, and uses blocks again
//! that were: here all clients read each token before the next, as those do that keep up.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use futures::FutureExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use weft_adapters::{AdapterRegistry, RegistryConfig};
use weft_engine::{EngineConfig, EngineHandle, RequestStream, start};
use weft_testkit::allocations::{CountingAllocator, count_this_thread, num_allocations};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;
use weft_types::{
    AdapterId, AdapterLoad, ExecuteError, Executor, ExecutorLimits, GenerateRequest, PackedAdapter,
    Queueing, SamplingParams, SeqId, SequenceOutput, SequenceSpec, StepOutput, StepPlan,
    StopConditions, TokenEvent,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Draws always the same token, in steps that the test lets end, and allocates nothing.
struct Still {
    loaded: Vec<AdapterId>,
    turns: Arc<Turns>,
}

#[derive(Default)]
struct Turns {
    num_begun: AtomicU64,
    num_allowed: AtomicU64,
}

impl Turns {
    /// Lets step `number` end, and waits until the next has begun: after all that the first caused.
    fn pass(&self, number: u64) {
        self.num_allowed.store(number, Ordering::Release);
        while self.num_begun.load(Ordering::Acquire) <= number {
            std::thread::yield_now();
        }
    }
}

impl Executor for Still {
    fn limits(&self) -> ExecutorLimits {
        ExecutorLimits {
            block_size: 16,
            num_blocks: 1024,
            chunk_bytes: 2 << 20,
            max_model_len: 1024,
            max_num_seqs: 16,
            max_num_batched_tokens: 256,
        }
    }

    fn load_adapter(&mut self, load: &AdapterLoad, _: Arc<PackedAdapter>) {
        self.loaded.push(load.adapter);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        finished.append(&mut self.loaded);
    }

    fn unload_adapter(&mut self, _: AdapterId) {}

    fn add_sequence(&mut self, _: SeqId, _: SequenceSpec) {}

    fn remove_sequence(&mut self, _: SeqId) {}

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        count_this_thread();
        let number = self.turns.num_begun.fetch_add(1, Ordering::AcqRel) + 1;
        while self.turns.num_allowed.load(Ordering::Acquire) < number {
            std::thread::yield_now();
        }
        output.sequences.clear();
        output.sequences.extend(plan.sequences.iter().map(|chunk| SequenceOutput {
            token: chunk.sample.then_some(7),
            ..SequenceOutput::default()
        }));
        Ok(())
    }
}

/// Sixteen requests over four adapters, none of which ends soon.
fn submit_all(engine: &EngineHandle) -> Vec<RequestStream> {
    let dir = tempfile::tempdir().unwrap();
    let registry = AdapterRegistry::new(RegistryConfig::new(tiny_llama_spec())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let submit = |index: u32| {
        let name = format!("a{}", index % 4);
        if index < 4 {
            let path = dir.path().join(&name);
            RandomAdapter::of_rank(2, index.into()).write(&tiny_llama_spec(), &path).unwrap();
            registry.add_static(&name, &path).unwrap();
        }
        let lease = runtime.block_on(registry.resolve(&name)).unwrap();
        let request = GenerateRequest {
            prompt: (0..40).map(|token| index * 40 + token).collect(),
            sampling: SamplingParams::greedy(),
            stop: StopConditions { max_tokens: 900, ..StopConditions::default() },
            cache_salt: None,
            queueing: Queueing::default(),
        };
        engine.submit(request, Some(lease)).unwrap()
    };
    (0..16).map(submit).collect()
}

/// Takes the tokens that have come.
fn read(streams: &mut [RequestStream]) -> usize {
    let mut num_read = 0;
    for stream in streams {
        while let Some(event) = stream.next().now_or_never() {
            assert!(matches!(event, Some(TokenEvent::Token { .. })), "{event:?}");
            num_read += 1;
        }
    }
    num_read
}

#[test]
fn a_steady_decode_of_sixteen_sequences_of_four_adapters_allocates_nothing() {
    let turns = Arc::new(Turns::default());
    let executor = Still { loaded: Vec::new(), turns: Arc::clone(&turns) };
    let engine = start(Box::new(executor), 1000, EngineConfig::default());
    let mut streams = submit_all(&engine);
    let mut counts = Vec::new();
    for step in 1..=500 {
        let before = num_allocations();
        turns.pass(step);
        counts.push(num_allocations() - before);
        let num_read = read(&mut streams);
        assert!(step < 20 || num_read == 16, "{num_read} tokens in step {step}");
    }
    assert!(counts[..40].iter().any(|&count| count > 0), "the beginning allocates");
    assert_eq!(counts[100..].iter().sum::<u64>(), 0, "{counts:?}");
    turns.num_allowed.store(u64::MAX, Ordering::Release);
    drop(streams);
    engine.shutdown(true);
}
