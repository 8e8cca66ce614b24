//! Tokens before the prompt → virtual tokens, whose ids begin at the size of the vocabulary.
//!
//! * Prompt tuning and P-tuning save the embeddings that come out of training, whatever made them.
//! * Prefix tuning saves keys and values of all layers, a row for each token.

use super::tensors::check_shape;
use super::{Each, Update};
use crate::error::Refusal;
use crate::matrix::{check_finite, copied};
use crate::peft_config::VirtualTokens;
use crate::polite::pause;
use crate::quoted::Quoted;
use crate::tensors::{FileTensor, read_tensors};
use weft_types::{AdapterTensor, BaseModelSpec, KvPrefix, Module, TokenRows};

/// The name of the only tensor.
const TENSOR: &str = "prompt_embeddings";

/// `[n, hidden]`
pub(super) fn lower_prompt(
    tokens: VirtualTokens,
    tensors: &[u8],
    base: &BaseModelSpec,
    each: &mut Each<'_>,
) -> Result<(), Refusal> {
    let num_tokens = tokens.num_tokens;
    check_width(tokens, base.hidden_size, "embeddings")?;
    check_context(num_tokens, base)?;
    let rows = copied(&only_tensor(tensors, &[num_tokens, base.hidden_size])?);
    let ids = (0..num_tokens).map(|token| (base.vocab_size + token) as u32).collect();
    each(Update::TokenRows(TokenRows { tokens: ids, rows }))?;
    each(Update::VirtualTokens(num_tokens))
}

/// `[n, layers * 2 * kv heads * head dim]`, in a row the layers' keys and values in turn.
pub(super) fn lower_prefix(
    tokens: VirtualTokens,
    tensors: &[u8],
    base: &BaseModelSpec,
    each: &mut Each<'_>,
) -> Result<(), Refusal> {
    let num_tokens = tokens.num_tokens;
    let width = base.linear(Module::K).num_outputs;
    check_width(tokens, width, "keys")?;
    check_context(num_tokens, base)?;
    if tokens.num_layers.is_some_and(|given| given != base.num_layers) {
        return Err(Refusal::new(format!(
            "has num_layers {} in adapter_config.json, but this base has {} layers",
            tokens.num_layers.unwrap_or_default(),
            base.num_layers
        )));
    }
    let tensor = only_tensor(tensors, &[num_tokens, base.num_layers * 2 * width])?;
    let rows = by_layer(&tensor, base.num_layers * 2, num_tokens);
    each(Update::KvPrefix(KvPrefix { num_tokens, rows }))?;
    each(Update::VirtualTokens(num_tokens))
}

/// `[n, parts * width]` → `[parts * n, width]`
fn by_layer(tensor: &FileTensor<'_>, num_parts: usize, num_tokens: usize) -> AdapterTensor {
    let part_bytes = tensor.data.len() / (num_parts * num_tokens);
    let mut data = Vec::with_capacity(tensor.data.len());
    for part in 0..num_parts {
        pause();
        for token in 0..num_tokens {
            let start = (token * num_parts + part) * part_bytes;
            data.extend_from_slice(&tensor.data[start..][..part_bytes]);
        }
    }
    let (dtype, rows) = (tensor.dtype, num_parts * num_tokens);
    let cols = part_bytes / dtype.size();
    AdapterTensor { dtype, rows, cols, data: data.into(), row_scales: None }
}

fn only_tensor<'a>(bytes: &'a [u8], shape: &[usize]) -> Result<FileTensor<'a>, Refusal> {
    let mut found = None;
    for (name, tensor) in read_tensors(bytes)? {
        if name != TENSOR {
            return Err(Refusal::new(format!(
                "holds tensor {}, but the file of a prompt has {TENSOR} only",
                Quoted(&name)
            )));
        }
        check_shape(&name, &tensor, shape, "num_virtual_tokens and this base demand")?;
        check_finite(&name, &tensor)?;
        found = Some(tensor);
    }
    found.ok_or_else(|| {
        Refusal::new(format!("is incomplete: adapter_model.safetensors has no {TENSOR}"))
    })
}

fn check_width(tokens: VirtualTokens, width: usize, of: &str) -> Result<(), Refusal> {
    match tokens.width {
        Some(given) if given != width => Err(Refusal::new(format!(
            "has token_dim {given} in adapter_config.json, but this base has {of} of width {width}"
        ))),
        _ => Ok(()),
    }
}

/// A prompt that fills the context leaves no room for a request. Also bounds the ids.
fn check_context(num_tokens: usize, base: &BaseModelSpec) -> Result<(), Refusal> {
    if num_tokens < base.max_context {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "has {num_tokens} virtual tokens (num_virtual_tokens in adapter_config.json), but the \
         context of this base has {} tokens",
        base.max_context
    )))
}
