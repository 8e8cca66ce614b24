//! Logits of every position of one sequence, straight from the decoder.

use std::sync::Arc;
use weft_model::LoadedModel;
use weft_runner::{KvCacheDtype, pool_layout, sequence_logits};
use weft_types::{LoweredAdapter, PackedAdapter, TokenId};

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
    sequence_logits(model, packed.as_ref(), active_from, tokens)
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
