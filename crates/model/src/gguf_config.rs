//! GGUF metadata → [`ModelConfig`].

use crate::config::{ARCHITECTURES, ModelConfig};
use crate::error::ModelError;
use crate::rope::{RopeConfig, RopeScaling};
use weft_gguf::GgufFile;
use weft_types::BaseModelSpec;

/// Reads the keys of the file's architecture.
pub(crate) fn parse(file: &GgufFile) -> Result<ModelConfig, ModelError> {
    let metadata = file.metadata();
    let architecture = metadata.require_str("general.architecture")?.to_owned();
    if !ARCHITECTURES.contains(&architecture.as_str()) {
        return Err(ModelError::Unsupported(format!(
            "the GGUF file's general.architecture `{architecture}` is not served; Weft serves {}",
            ARCHITECTURES.join(", ")
        )));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let optional =
        |name: &str| Ok::<_, ModelError>(metadata.get_u64(&key(name))?.map(|value| value as usize));
    let required = |name: &str| match metadata.require_u64(&key(name))? {
        value @ 1..=0x100_0000 => Ok(value as usize),
        value => Err(ModelError::Invalid(format!("GGUF key {} is {value}", key(name)))),
    };
    if optional("expert_count")?.is_some_and(|count| count > 0) {
        return Err(ModelError::Unsupported("mixture-of-experts models are not served".into()));
    }
    let (hidden_size, num_heads) =
        (required("embedding_length")?, required("attention.head_count")?);
    let num_kv_heads = optional("attention.head_count_kv")?.unwrap_or(num_heads);
    let head_dim = optional("attention.key_length")?.unwrap_or(hidden_size / num_heads);
    if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) || head_dim == 0 {
        return Err(ModelError::Invalid(format!(
            "the GGUF file has {num_heads} heads of {head_dim} on {num_kv_heads} KV heads"
        )));
    }
    let embedding = file.require_tensor("token_embd.weight")?;
    let vocab_size = embedding.0.shape.get(1).copied().unwrap_or(0);
    let num_layers = required("block_count")?;
    Ok(ModelConfig {
        rms_norm_eps: metadata.require_f64(&key("attention.layer_norm_rms_epsilon"))? as f32,
        rope: rope(file, &architecture, head_dim)?,
        windows: vec![
            optional("attention.sliding_window")?.filter(|&window| window > 0);
            num_layers
        ],
        qk_norm: architecture == "qwen3",
        spec: BaseModelSpec {
            num_layers,
            hidden_size,
            intermediate_size: required("feed_forward_length")?,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            max_context: required("context_length")?,
            tied_embeddings: file.tensor("output.weight").is_none(),
        },
        architecture,
    })
}

fn rope(file: &GgufFile, architecture: &str, head_dim: usize) -> Result<RopeConfig, ModelError> {
    let metadata = file.metadata();
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let rotary_dim =
        metadata.get_u64(&key("dimension_count"))?.map_or(head_dim, |value| value as usize);
    if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let message = format!("GGUF key {} is {rotary_dim}", key("dimension_count"));
        return Err(ModelError::Invalid(message));
    }
    let factor = metadata.get_f64(&key("scaling.factor"))?.unwrap_or(1.0) as f32;
    let scaling = match metadata.get_str(&key("scaling.type"))? {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor },
        Some(other) => {
            return Err(ModelError::Unsupported(format!(
                "GGUF key {} `{other}` is not served; none and linear are",
                key("scaling.type")
            )));
        }
    };
    let scaling = match file.tensor("rope_freqs.weight") {
        Some((info, bytes)) if info.shape == [rotary_dim / 2] && bytes.len() == 2 * rotary_dim => {
            let divisors = bytes.as_chunks::<4>().0;
            RopeScaling::Divisors(divisors.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
        }
        Some((info, _)) => {
            let message = format!("GGUF tensor rope_freqs.weight has shape {:?}", info.shape);
            return Err(ModelError::Invalid(message));
        }
        None => scaling,
    };
    let theta = metadata.get_f64(&key("freq_base"))?.unwrap_or(10_000.0) as f32;
    Ok(RopeConfig { theta, rotary_dim, scaling })
}
