//! A tiny model in an executor, random adapters for it, and plans of single steps.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_kernels::quantize::Activations;
use weft_model::{LoadOptions, LoadedModel};
use weft_runner::{KvCacheDtype, RunnerConfig, pool_layout};
use weft_types::{
    AdapterId, AdapterLoad, AdapterRef, AdapterTensor, BaseModelSpec, BlockId, ContentHash, Dtype,
    Executor, LowRankUpdate, LoweredAdapter, Module, PackedAdapter, PlannedSequence,
    SamplingParams, SeqId, SequenceSpec, Site, StepPlan, TokenId,
};

/// A tiny model of the golden files.
pub(crate) fn model(path: &str) -> LoadedModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path);
    LoadedModel::load(&path, &LoadOptions::default()).unwrap()
}

/// Memory for 128 chunks, sequences of 64 tokens, sixteen of them.
pub(crate) fn config(model: &LoadedModel, num_threads: usize) -> RunnerConfig {
    RunnerConfig {
        memory_bytes: 128 * pool_layout(&model.config, KvCacheDtype::F32),
        max_model_len: 64,
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
        kv_dtype: Some(KvCacheDtype::F32),
        activations: Activations::default(),
        isa: weft_kernels::Isa::detect(),
        num_threads,
        cores: Vec::new(),
        max_lora_rank: 512,
    }
}

/// On all linears of the first layer, large enough to change the output.
pub(crate) fn adapter(spec: &BaseModelSpec, rank: usize) -> LoweredAdapter {
    let mut state = rank as u32;
    let mut tensor = |rows: usize, cols: usize| AdapterTensor {
        dtype: Dtype::F32,
        rows,
        cols,
        data: (0..rows * cols)
            .flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
            })
            .collect(),
        row_scales: None,
    };
    let update = |module| {
        let shape = spec.linear(module);
        let site = Site::Layer { layer: 0, module };
        let (a, b) = (tensor(rank, shape.num_inputs), tensor(rank, shape.num_outputs));
        LowRankUpdate { site, scale: 1.0, a, b }
    };
    let low_rank = Module::ALL.map(update).into();
    let content_hash = ContentHash([rank as u8; 32]);
    LoweredAdapter { content_hash, low_rank, ..LoweredAdapter::default() }
}

/// Loads an adapter to the chunks from `first` on, and waits for it. Returns the chunk after.
pub(crate) fn load(
    executor: &mut impl Executor,
    adapter: AdapterId,
    lowered: &LoweredAdapter,
    first: u32,
) -> u32 {
    let packed = PackedAdapter::pack(lowered, executor.limits().chunk_bytes).unwrap();
    let end = first + packed.num_chunks as u32;
    let load = AdapterLoad { adapter, chunks: (first..end).map(BlockId).collect() };
    executor.load_adapter(&load, Arc::new(packed));
    wait_for(executor, adapter);
    end
}

/// Waits for the end of one copy.
pub(crate) fn wait_for(executor: &mut impl Executor, adapter: AdapterId) {
    let (mut finished, start) = (Vec::new(), Instant::now());
    while finished.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "the copy does not end");
        std::thread::sleep(Duration::from_millis(1));
        executor.finished_loads(&mut finished);
    }
    assert_eq!(finished, [adapter]);
}

/// The reference to [`adapter`] of `rank` under an id.
pub(crate) fn reference(id: u32, rank: usize) -> AdapterRef {
    AdapterRef::new(AdapterId(id), ContentHash([rank as u8; 32]))
}

/// Announces a sequence that starts with one token.
pub(crate) fn announce(executor: &mut impl Executor, seq: u64, adapter: Option<AdapterRef>) {
    let spec = SequenceSpec {
        prompt: [1 + seq as TokenId].into(),
        sampling: SamplingParams::greedy(),
        stop_token_ids: Vec::new(),
        min_tokens: 0,
        adapter,
    };
    executor.add_sequence(SeqId(seq), spec);
}

/// Plans one token at `position` for each sequence; sequence `s` has the blocks `2s` and `2s + 1`.
pub(crate) fn plan_decode(plan: &mut StepPlan, tokens: &[TokenId], position: usize) {
    plan.clear();
    for (index, &token) in tokens.iter().enumerate() {
        plan.sequences.push(PlannedSequence {
            seq: SeqId(index as u64),
            start: position,
            tokens: index..index + 1,
            blocks: 2 * index..2 * index + 2,
            sample: true,
        });
        plan.tokens.push(token);
        plan.block_tables.extend([2 * index, 2 * index + 1].map(|block| BlockId(block as u32)));
    }
}
