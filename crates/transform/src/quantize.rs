//! What serving an adapter in int8 costs. In: an adapter, its base and prompts. Out: the error of each
//! module's update, and that of the logits. Writes nothing: int8 is how adapters are served
//! (`--adapter-dtype int8`), not a form in which PEFT keeps them.

use crate::error::{Result, TransformError};
use crate::factors::{Factors, read_lowered, updates};
use crate::norms::norm;
use serde::Serialize;
use std::path::Path;
use weft_adapters::{AdapterDtype, in_dtype};
use weft_model::LoadedModel;
use weft_runner::{KvCacheDtype, pool_layout, sequence_logits};
use weft_types::{LoweredAdapter, PackedAdapter, TokenId};

/// The cost of int8.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// One per module.
    pub modules: Vec<QuantizedModule>,
    /// Bytes of the weights as they are in the files.
    pub num_bytes: usize,
    /// Bytes in int8.
    pub num_int8_bytes: usize,
    /// One per prompt.
    pub prompts: Vec<PromptError>,
}

/// The error of one update.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedModule {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// `‖ΔW₈ - ΔW‖ / ‖ΔW‖`
    pub relative_error: f64,
}

/// The error of the logits at all positions of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PromptError {
    /// Positions.
    pub num_tokens: usize,
    /// `‖l₈ - l‖ / ‖l‖`
    pub relative_error: f64,
    /// The same against what the adapter changes: `‖l₈ - l‖ / ‖l - l_base‖`.
    pub relative_to_effect: f64,
    /// Positions whose most likely token is another.
    pub num_other_tokens: usize,
}

/// Compares the adapter in the directory `adapter` with itself in int8, over `prompts`, none of them
/// empty.
///
/// # Errors
/// If the adapter does not fit the base or is no plain low-rank update.
pub fn quantize(
    adapter: &Path,
    base: &LoadedModel,
    prompts: &[Vec<TokenId>],
) -> Result<QuantizeReport> {
    let exact = read_lowered(adapter, base.spec())?;
    let refused = |refusal: weft_adapters::Refusal| {
        TransformError::Refused(format!("{} {refusal}", adapter.display()))
    };
    let int8 = in_dtype(exact.clone(), AdapterDtype::I8).map_err(refused)?;
    let modules = module_errors(&exact, &int8)?;
    let (num_bytes, num_int8_bytes) = (exact.num_bytes(), int8.num_bytes());
    let prompts = prompts
        .iter()
        .map(|prompt| prompt_error(base, &exact, &int8, prompt))
        .collect::<Result<Vec<_>>>()?;
    Ok(QuantizeReport { modules, num_bytes, num_int8_bytes, prompts })
}

fn module_errors(exact: &LoweredAdapter, int8: &LoweredAdapter) -> Result<Vec<QuantizedModule>> {
    let (exact, int8) = (updates(exact.clone(), 1.0)?, updates(int8.clone(), -1.0)?);
    let mut modules = Vec::new();
    for (weight, factors) in &exact {
        let difference = norm(&Factors::concatenated(&[factors, &int8[weight]]));
        let size = norm(factors);
        let relative_error = if size > 0.0 { difference / size } else { 0.0 };
        modules.push(QuantizedModule { module: weight.key(), relative_error });
    }
    Ok(modules)
}

fn prompt_error(
    base: &LoadedModel,
    exact: &LoweredAdapter,
    int8: &LoweredAdapter,
    prompt: &[TokenId],
) -> Result<PromptError> {
    let of_base = logits(base, None, prompt)?;
    let want = logits(base, Some(exact), prompt)?;
    let got = logits(base, Some(int8), prompt)?;
    let vocab = base.spec().vocab_size;
    let is_other = |(got, want): (&[f32], &[f32])| most_likely(got) != most_likely(want);
    let num_other_tokens = got
        .chunks_exact(vocab)
        .zip(want.chunks_exact(vocab))
        .filter(|&rows| is_other(rows))
        .count();
    let zeros = vec![0.0; want.len()];
    let error = distance(&got, &want);
    Ok(PromptError {
        num_tokens: prompt.len(),
        relative_error: error / distance(&want, &zeros).max(f64::MIN_POSITIVE),
        relative_to_effect: error / distance(&want, &of_base).max(f64::MIN_POSITIVE),
        num_other_tokens,
    })
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>().sqrt()
}

fn most_likely(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]))
}

/// `[T, vocab]` of `tokens` on the CPU, in one chunk, with a cache in single precision.
fn logits(
    model: &LoadedModel,
    adapter: Option<&LoweredAdapter>,
    tokens: &[TokenId],
) -> Result<Vec<f32>> {
    let chunk_bytes = pool_layout(&model.config, KvCacheDtype::F32);
    let packed = adapter.map(|adapter| PackedAdapter::pack(adapter, chunk_bytes)).transpose();
    let packed = packed.map_err(|cause| TransformError::Refused(format!("the adapter {cause}")))?;
    Ok(sequence_logits(model, packed.as_ref(), 0, tokens))
}
