//! An executor that a test can watch and break, over adapters of several chunks.

use super::*;
use std::sync::Arc;
use weft_adapters::AdapterInfo;
use weft_types::{
    AdapterLoad, ContentHash, ExecuteError, Executor, PackedAdapter, SeqId, StepOutput, StepPlan,
};

type Finished = Box<dyn FnMut(&mut SimExecutor, &mut Vec<AdapterId>) + Send>;

/// What a test adds to the executor.
pub(super) struct Hooks {
    /// Before a load.
    pub(super) load: Box<dyn FnMut(&AdapterLoad) + Send>,
    /// Instead of the executor's answer.
    pub(super) finished: Finished,
    /// Before an adapter leaves.
    pub(super) unload: Box<dyn FnMut(AdapterId) + Send>,
    /// Before a step.
    pub(super) step: Box<dyn FnMut(&StepPlan) + Send>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            load: Box::new(|_| ()),
            finished: Box::new(SimExecutor::finished_loads),
            unload: Box::new(|_| ()),
            step: Box::new(|_| ()),
        }
    }
}

pub(super) struct Hooked(pub(super) SimExecutor, pub(super) Hooks);

impl Executor for Hooked {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>) {
        (self.1.load)(load);
        self.0.load_adapter(load, adapter);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        (self.1.finished)(&mut self.0, finished);
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        (self.1.unload)(adapter);
        self.0.unload_adapter(adapter);
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        self.0.add_sequence(seq, spec);
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.0.remove_sequence(seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        (self.1.step)(plan);
        self.0.execute(plan, output)
    }
}

pub(super) fn hooked(executor: SimExecutor, hooks: Hooks) -> EngineHandle {
    start(Box::new(Hooked(executor, hooks)), VOCAB_SIZE, EngineConfig::default())
}

/// A registry with adapters `a0`, `a1`, … of a few chunks each, all of one size.
pub(super) fn paged_registry(dir: &Path, num_adapters: usize) -> AdapterRegistry {
    let base = weft_testkit::tiny_llama_spec();
    let config =
        RegistryConfig { chunk_bytes: sim_limits().chunk_bytes, ..RegistryConfig::new(base) };
    let registry = AdapterRegistry::new(config).unwrap();
    for index in 0..num_adapters {
        add(&registry, dir, &format!("a{index}"), 2, index as u64);
    }
    registry
}

/// Adds a random adapter of that rank and seed.
pub(super) fn add(registry: &AdapterRegistry, dir: &Path, name: &str, rank: usize, seed: u64) {
    let path = dir.join(name);
    RandomAdapter::of_rank(rank, seed).write(&weft_testkit::tiny_llama_spec(), &path).unwrap();
    registry.add_static(name, &path).unwrap();
}

/// Chunks of an adapter of [`paged_registry`].
pub(super) async fn num_chunks(registry: &AdapterRegistry) -> usize {
    let lease = registry.resolve("a0").await.unwrap();
    let num_chunks = lease.weights().num_chunks;
    assert!(num_chunks > 1, "a test of one chunk each says little");
    num_chunks
}

/// Room for so many adapters of [`paged_registry`] and `num_blocks` more.
pub(super) async fn room_for(
    num_adapters: usize,
    num_blocks: usize,
    registry: &AdapterRegistry,
) -> ExecutorLimits {
    let num_blocks = num_adapters * num_chunks(registry).await + num_blocks;
    ExecutorLimits { num_blocks, max_model_len: 256, ..sim_limits() }
}

/// Submits a request for that adapter. Also returns the tokens that it must get.
pub(super) async fn ask(
    engine: &EngineHandle,
    registry: &AdapterRegistry,
    name: &str,
    request: GenerateRequest,
) -> (RequestStream, Vec<TokenId>) {
    let lease = registry.resolve(name).await.unwrap();
    let expected = expected(&request, Some(&lease));
    (engine.submit(request, Some(lease)).unwrap(), expected)
}

pub(super) async fn assert_served(
    engine: &EngineHandle,
    registry: &AdapterRegistry,
    name: &str,
    seed: u32,
) {
    let (stream, expected) = ask(engine, registry, name, request(&prompt(seed, 20), 12)).await;
    assert_eq!(answer(stream).await.tokens, expected, "{name}");
}

/// Good requests are served, and nothing is held or damaged after all that came before.
pub(super) async fn assert_sound(engine: &EngineHandle, registry: &AdapterRegistry, name: &str) {
    // The loop audits itself when it has nothing to do: the first request ends with an audit that
    // is over when the second ends.
    for seed in [901, 902] {
        until(|| engine.stats().running() + engine.stats().waiting() == 0).await;
        assert_served(engine, registry, name, seed).await;
        let good = request(&prompt(seed, 20), 5);
        let stream = engine.submit(good.clone(), None).unwrap();
        assert_eq!(answer(stream).await.tokens, expected(&good, None));
    }
    assert_idle(engine);
    assert_eq!(engine.stats().damages(), 0, "the audit found something");
    let memory = engine.stats().memory();
    let idle = |one: &&crate::ResidentAdapter| one.num_running + one.num_waiting > 0;
    assert_eq!(memory.adapters.iter().find(idle), None);
    registry.check_integrity().unwrap();
    let leased = |info: &AdapterInfo| info.num_leases > 0;
    assert!(!registry.list().iter().any(leased), "{:?}", registry.list());
}

/// What the statistics say of the adapter on the device.
pub(super) fn on_device(
    engine: &EngineHandle,
    content: ContentHash,
) -> Option<crate::ResidentAdapter> {
    let adapters = engine.stats().memory().adapters;
    adapters.into_iter().find(|one| one.hash == content && one.is_resident)
}
