//! Tests over the whole loop, on its own thread, with the simulated executor.

mod activated;
mod adapter_faults;
mod adapters;
mod failures;
mod hooks;
mod lifecycle;
mod queueing;
mod requests;

use crate::sim::{SimExecutor, sim_limits};
use crate::{EngineConfig, EngineHandle, RequestStream, start};
use std::path::Path;
use weft_adapters::{AdapterLease, AdapterRegistry, RegistryConfig};
use weft_testkit::peft::RandomAdapter;
use weft_types::{
    AdapterId, AdapterRef, ExecutorLimits, FinishReason, GenerateRequest, Queueing, SamplingParams,
    SequenceSpec, StopConditions, TokenEvent, TokenId, Usage,
};

const VOCAB_SIZE: usize = 1000;

fn sim() -> SimExecutor {
    SimExecutor::new(sim_limits(), VOCAB_SIZE)
}

fn engine(executor: SimExecutor) -> EngineHandle {
    start(Box::new(executor), VOCAB_SIZE, EngineConfig::default())
}

fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        sampling: SamplingParams::greedy(),
        stop: StopConditions { max_tokens, ..StopConditions::default() },
        cache_salt: None,
        queueing: Queueing::default(),
    }
}

/// `len` tokens that differ from those of another `seed` from the first on.
fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|index| (seed * 37 + index * index + 1) % VOCAB_SIZE as u32).collect()
}

/// What the request gives when it is alone.
fn expected(request: &GenerateRequest, lease: Option<&AdapterLease>) -> Vec<TokenId> {
    let spec = SequenceSpec {
        prompt: request.prompt.clone(),
        sampling: request.sampling.clone(),
        stop_token_ids: request.stop.stop_token_ids.clone(),
        min_tokens: request.stop.min_tokens,
        adapter: lease.map(|lease| AdapterRef::new(AdapterId(0), lease.content_hash())),
    };
    sim().expected_tokens(spec, request.stop.max_tokens as usize)
}

/// All events of a request.
#[derive(Debug)]
struct Answer {
    tokens: Vec<TokenId>,
    end: TokenEvent,
}

impl Answer {
    fn usage(&self) -> Usage {
        match self.end {
            TokenEvent::Finished { usage, .. } => usage,
            ref other => panic!("it ended with {other:?}"),
        }
    }

    fn parts(&self) -> (&[TokenId], FinishReason) {
        match self.end {
            TokenEvent::Finished { reason, .. } => (&self.tokens, reason),
            ref other => panic!("it ended with {other:?}"),
        }
    }

    fn error(&self) -> &str {
        match &self.end {
            TokenEvent::Failed(error) => &error.message,
            other => panic!("it ended with {other:?}"),
        }
    }
}

async fn answer(mut stream: RequestStream) -> Answer {
    let mut tokens = Vec::new();
    loop {
        match stream.next().await.expect("the last event says that it is the last") {
            TokenEvent::PromptLogprobs(_) => {}
            TokenEvent::Token { token, .. } => tokens.push(token),
            end => {
                assert_eq!(stream.next().await, None, "nothing follows the last event");
                return Answer { tokens, end };
            }
        }
    }
}

/// The engine holds nothing on behalf of anybody.
fn assert_idle(engine: &EngineHandle) {
    let stats = engine.stats();
    assert_eq!((stats.running(), stats.waiting(), stats.blocks_used()), (0, 0, 0));
    assert_eq!(stats.adapters(), crate::ActiveAdapters::default());
}

/// Waits, without a clock, until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// A registry with adapters `a0`, `a1`, … of different content.
fn registry(dir: &Path, num_adapters: usize) -> AdapterRegistry {
    let base = weft_testkit::tiny_llama_spec();
    let registry = AdapterRegistry::new(RegistryConfig::new(base.clone())).unwrap();
    for index in 0..num_adapters {
        let path = dir.join(format!("a{index}"));
        RandomAdapter::of_rank(1 + index, index as u64).write(&base, &path).unwrap();
        registry.add_static(&format!("a{index}"), &path).unwrap();
    }
    registry
}

fn small_cache() -> ExecutorLimits {
    ExecutorLimits { num_blocks: 24, max_model_len: 128, ..sim_limits() }
}
