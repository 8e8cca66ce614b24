//! Logits of every position of one sequence, straight from the decoder.

use super::adapters::place;
use std::sync::Arc;
use weft_kernels::attention::AttentionItem;
use weft_kernels::kv::{BLOCK_SIZE, KvSlot};
use weft_kernels::{Arena, KvDtype};
use weft_model::{AdapterSegment, CpuDevice, Decoder, ForwardBatch, LoadedModel};
use weft_runner::{KvCacheDtype, pool_layout};
use weft_types::{BlockId, LoweredAdapter, PackedAdapter, TokenId};

/// `[T, vocab]` of `tokens`, computed in one chunk with a single-precision cache.
pub(crate) fn all_logits(
    model: &LoadedModel,
    adapter: Option<&Arc<LoweredAdapter>>,
    tokens: &[TokenId],
) -> Vec<f32> {
    let chunk_bytes = chunk_bytes(model);
    let packed = adapter.map(|adapter| PackedAdapter::pack(adapter, chunk_bytes).unwrap());
    packed_logits(model, packed, 0, tokens)
}

/// Of the pages of packed adapters.
pub(crate) fn chunk_bytes(model: &LoadedModel) -> usize {
    pool_layout(&model.config, KvCacheDtype::F32)
}

/// The same with an adapter that is active from a position on.
pub(crate) fn packed_logits(
    model: &LoadedModel,
    packed: Option<PackedAdapter>,
    active_from: usize,
    tokens: &[TokenId],
) -> Vec<f32> {
    let num_rows = tokens.len();
    let num_blocks = num_rows.div_ceil(BLOCK_SIZE);
    let chunk_bytes = chunk_bytes(model);
    let num_chunks = packed.as_ref().map_or(0, |packed| packed.num_chunks);
    let arena = Arena::new(num_blocks + num_chunks, chunk_bytes);
    let mut device = CpuDevice::new(&model.config, 2, KvDtype::F32, arena, num_rows);
    let adapter = packed.map(|packed| place(&mut device, packed, num_blocks));
    let weights = Arc::clone(&model.weights);
    let mut decoder = Decoder::new(model.config.clone(), weights, device, num_rows, num_rows);
    let step = decoder.attention_shape(0).rows_per_item();
    let segment = || {
        let base = AdapterSegment { rows: 0..active_from, adapter: None };
        let adapted = AdapterSegment { rows: active_from..num_rows, adapter: adapter.clone() };
        [base, adapted].into_iter().filter(|segment| !segment.rows.is_empty()).collect::<Vec<_>>()
    };
    let batch = ForwardBatch {
        tokens: tokens.to_vec(),
        positions: (0..num_rows as u32).collect(),
        slots: (0..num_rows)
            .map(|t| KvSlot {
                block: BlockId((t / BLOCK_SIZE) as u32),
                offset: (t % BLOCK_SIZE) as u32,
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
        segments: segment(),
        logit_rows: (0..num_rows).collect(),
        logit_segments: segment(),
    };
    decoder.forward(&batch);
    let (logits, _) = decoder.logits(&batch, 0..num_rows);
    logits.data().to_vec()
}

/// ‖a - b‖ / ‖b‖
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 =
        got.iter().zip(want).map(|(&got, &want)| square(f64::from(got) - f64::from(want))).sum();
    let size: f64 = want.iter().map(|&want| square(f64::from(want))).sum();
    (error / size).sqrt()
}

/// Cosine of the angle between two vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
