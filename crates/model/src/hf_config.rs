//! `config.json` of a Hugging Face model → [`ModelConfig`]. `quantization` reads how it is quantized.

use crate::config::{ARCHITECTURES, ModelConfig};
use crate::error::ModelError;
use crate::rope::{RopeConfig, RopeScaling};
use serde::Deserialize;
use weft_types::BaseModelSpec;

#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    /// Where transformers 5 keeps both of the above.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f32>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

#[derive(Clone, Default, Deserialize)]
struct RawRope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

/// Parses the text of a `config.json`.
pub(crate) fn parse(text: &str) -> Result<ModelConfig, ModelError> {
    let raw: RawConfig = serde_json::from_str(text)
        .map_err(|error| ModelError::Invalid(format!("config.json: {error}")))?;
    if !ARCHITECTURES.contains(&raw.model_type.as_str()) {
        return Err(ModelError::Unsupported(format!(
            "config.json: model_type `{}` is not served; Weft serves {}",
            raw.model_type,
            ARCHITECTURES.join(", ")
        )));
    }
    if let Some(activation) = raw.hidden_act.as_deref().filter(|name| *name != "silu") {
        return Err(ModelError::Unsupported(format!(
            "config.json: hidden_act `{activation}` is not served; only silu is"
        )));
    }
    for (key, value) in [
        ("hidden_size", raw.hidden_size),
        ("intermediate_size", raw.intermediate_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", raw.num_attention_heads),
        ("num_key_value_heads", raw.num_key_value_heads.unwrap_or(1)),
        ("head_dim", raw.head_dim.unwrap_or(1)),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings),
    ] {
        if value == 0 || value > 1 << 24 {
            return Err(ModelError::Invalid(format!("config.json: {key} is {value}")));
        }
    }
    let num_kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
    if !raw.num_attention_heads.is_multiple_of(num_kv_heads) {
        return Err(ModelError::Invalid(format!(
            "config.json: num_attention_heads {} is not a multiple of num_key_value_heads {num_kv_heads}",
            raw.num_attention_heads
        )));
    }
    let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads);
    Ok(ModelConfig {
        rope: rope(&raw, head_dim)?,
        windows: windows(&raw),
        qk_norm: raw.model_type == "qwen3",
        rms_norm_eps: raw.rms_norm_eps,
        spec: BaseModelSpec {
            num_layers: raw.num_hidden_layers,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_heads: raw.num_attention_heads,
            num_kv_heads,
            head_dim,
            vocab_size: raw.vocab_size,
            max_context: raw.max_position_embeddings,
            tied_embeddings: raw.tie_word_embeddings,
        },
        architecture: raw.model_type,
    })
}

fn rope(raw: &RawConfig, head_dim: usize) -> Result<RopeConfig, ModelError> {
    let parameters = raw.rope_parameters.clone().or(raw.rope_scaling.clone()).unwrap_or_default();
    let missing = |key: &str| ModelError::Invalid(format!("config.json: rope needs `{key}`"));
    let scaling = match parameters.rope_type.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => {
            RopeScaling::Linear { factor: parameters.factor.ok_or_else(|| missing("factor"))? }
        }
        Some("llama3") => RopeScaling::Llama3 {
            factor: parameters.factor.ok_or_else(|| missing("factor"))?,
            low_freq_factor: parameters
                .low_freq_factor
                .ok_or_else(|| missing("low_freq_factor"))?,
            high_freq_factor: parameters
                .high_freq_factor
                .ok_or_else(|| missing("high_freq_factor"))?,
            original_context: parameters
                .original_max_position_embeddings
                .ok_or_else(|| missing("original_max_position_embeddings"))?,
        },
        Some(other) => {
            return Err(ModelError::Unsupported(format!(
                "config.json: rope_type `{other}` is not served; default, linear and llama3 are"
            )));
        }
    };
    let share = parameters
        .partial_rotary_factor
        .or(raw.partial_rotary_factor)
        .unwrap_or(1.0)
        .clamp(0.0, 1.0);
    let rotary_dim = (head_dim as f32 * share) as usize / 2 * 2;
    let theta = parameters.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0);
    Ok(RopeConfig { theta, rotary_dim, scaling })
}

/// Mistral's window holds in all layers; Qwen's only if switched on, in the layers named.
fn windows(raw: &RawConfig) -> Vec<Option<usize>> {
    let window = if raw.use_sliding_window == Some(false) { None } else { raw.sliding_window };
    let by_default = raw.model_type == "mistral" || raw.use_sliding_window == Some(true);
    (0..raw.num_hidden_layers)
        .map(|layer| {
            let slides = match &raw.layer_types {
                Some(types) => types.get(layer).is_some_and(|kind| kind == "sliding_attention"),
                None => by_default && layer >= raw.max_window_layers.unwrap_or(0),
            };
            window.filter(|_| slides)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#""hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5"#;

    fn config(rest: &str) -> Result<ModelConfig, ModelError> {
        parse(&format!("{{{BASE}, {rest}}}"))
    }

    #[test]
    fn old_and_new_spellings_of_rope_agree() {
        let old = config(
            r#""model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}"#,
        );
        let new = config(
            r#""model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}"#,
        );
        assert_eq!(old.unwrap().rope, new.unwrap().rope);
    }

    #[test]
    fn windows_follow_each_familys_rule() {
        let windows = |rest: &str| config(rest).unwrap().windows;
        assert_eq!(windows(r#""model_type": "mistral", "sliding_window": 8"#), [Some(8), Some(8)]);
        assert_eq!(windows(r#""model_type": "mistral", "sliding_window": null"#), [None, None]);
        assert_eq!(
            windows(r#""model_type": "qwen2", "sliding_window": 8, "use_sliding_window": false"#),
            [None, None]
        );
        assert_eq!(
            windows(
                r#""model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1"#
            ),
            [None, Some(8)]
        );
    }

    #[test]
    fn what_is_not_served_is_refused_with_its_key() {
        for (rest, words) in [
            (r#""model_type": "gpt2""#, "model_type `gpt2`"),
            (r#""model_type": "llama", "hidden_act": "gelu""#, "hidden_act `gelu`"),
            (r#""model_type": "llama", "rope_scaling": {"rope_type": "yarn"}"#, "rope_type `yarn`"),
            (r#""model_type": "llama", "num_key_value_heads": 3"#, "num_key_value_heads 3"),
            (r#""model_type": "llama", "head_dim": 0"#, "head_dim is 0"),
        ] {
            let error = config(rest).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
