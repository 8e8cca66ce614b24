//! Lowers a PEFT LoRA to low-rank updates.

use crate::error::Refusal;
use crate::read::LoadLimits;
use weft_types::{BaseModelSpec, LoweredAdapter};

/// Lowers the bytes of `adapter_config.json` and `adapter_model.safetensors` for `base`. Both are
/// untrusted: never panics, and allocates in proportion to their length.
///
/// # Errors
/// A [`Refusal`] that names the key or the tensor and the reason.
pub fn lower_peft_bytes(
    config: &[u8],
    tensors: &[u8],
    base: &BaseModelSpec,
    limits: &LoadLimits,
) -> Result<LoweredAdapter, Refusal> {
    let _ = (config, tensors, base, limits);
    Err(Refusal::new("cannot be loaded yet"))
}
