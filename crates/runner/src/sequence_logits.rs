//! Logits of every position of one sequence, straight from the decoder: for tools and tests that compare
//! models and adapters. In: a model in memory and tokens. No scheduler, no sampling.

use crate::layout::{KvCacheDtype, pool_layout};
use std::sync::Arc;
use weft_kernels::attention::AttentionItem;
use weft_kernels::kv::{BLOCK_SIZE, KvSlot};
use weft_kernels::quantize::Activations;
use weft_kernels::{Arena, KvDtype, PlacedAdapter, ThreadPool};
use weft_model::{AdapterSegment, CpuDevice, Decoder, ForwardBatch, LoadedModel};
use weft_types::{BlockId, PackedAdapter, TokenId};

/// `[T, vocab]` of `tokens` on the CPU, in one chunk, with a cache in single precision. The adapter is
/// active from position `active_from` on; its pages are as large as a block of that cache.
#[must_use]
pub fn sequence_logits(
    model: &LoadedModel,
    adapter: Option<&PackedAdapter>,
    active_from: usize,
    tokens: &[TokenId],
) -> Vec<f32> {
    sequence_logits_in(model, adapter, active_from, tokens, SequenceNumbers::default())
}

/// What numbers a sequence is computed in.
#[derive(Clone, Copy, Debug)]
pub struct SequenceNumbers {
    /// What activations are when they meet integer weights.
    pub activations: Activations,
    /// Of the cache.
    pub kv_dtype: KvDtype,
}

impl Default for SequenceNumbers {
    fn default() -> Self {
        Self { activations: Activations::default(), kv_dtype: KvDtype::F32 }
    }
}

/// The same in these numbers; pages of the adapter are as large as there.
#[must_use]
pub fn sequence_logits_in(
    model: &LoadedModel,
    adapter: Option<&PackedAdapter>,
    active_from: usize,
    tokens: &[TokenId],
    numbers: SequenceNumbers,
) -> Vec<f32> {
    let num_rows = tokens.len();
    let num_blocks = num_rows.div_ceil(BLOCK_SIZE);
    let num_chunks = adapter.map_or(0, |adapter| adapter.num_chunks);
    let chunk_bytes = pool_layout(&model.config, KvCacheDtype::F32);
    let arena = Arena::new(num_blocks + num_chunks, chunk_bytes);
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let SequenceNumbers { activations, kv_dtype } = numbers;
    let pool = ThreadPool::new(num_threads);
    let mut device = CpuDevice::new(&model.config, pool, kv_dtype, arena, num_rows)
        .with_activations(activations);
    let chunks: Vec<_> =
        (num_blocks..num_blocks + num_chunks).map(|chunk| BlockId(chunk as u32)).collect();
    let adapter =
        adapter.map(|adapter| Arc::new(PlacedAdapter::copy(adapter, device.lend(&chunks))));
    let weights = Arc::clone(&model.weights);
    let mut decoder = Decoder::new(model.config.clone(), weights, device, num_rows, num_rows);
    let step = decoder.attention_shape(0).rows_per_item();
    let segments = || {
        let base = AdapterSegment { rows: 0..active_from, adapter: None };
        let adapted = AdapterSegment { rows: active_from..num_rows, adapter: adapter.clone() };
        [base, adapted].into_iter().filter(|segment| !segment.rows.is_empty()).collect::<Vec<_>>()
    };
    let batch = ForwardBatch {
        tokens: tokens.to_vec(),
        positions: (0..num_rows as u32).collect(),
        slots: (0..num_rows)
            .map(|row| KvSlot {
                block: BlockId((row / BLOCK_SIZE) as u32),
                offset: (row % BLOCK_SIZE) as u32,
            })
            .collect(),
        attention: (0..num_rows)
            .step_by(step)
            .map(|row| AttentionItem {
                first_row: row,
                num_rows: step.min(num_rows - row),
                position: row,
                first_block: 0,
            })
            .collect(),
        block_tables: (0..num_blocks as u32).map(BlockId).collect(),
        segments: segments(),
        logit_rows: (0..num_rows).collect(),
        logit_segments: segments(),
    };
    decoder.forward(&batch);
    let (logits, _) = decoder.logits(&batch, 0..num_rows);
    logits.data().to_vec()
}
