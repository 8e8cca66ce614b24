//! Shapes of well-known models by name: what is needed to measure speed without their weights.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::hf_config;
use std::path::Path;

/// Name, and the shape in the words of a `config.json`.
const SHAPES: [(&str, &str); 4] = [
    (
        "llama-2-7b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0}"#,
    ),
    (
        "llama-3.1-8b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}"#,
    ),
    (
        "qwen2.5-7b",
        r#"{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0}"#,
    ),
    (
        "tiny",
        r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 256, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0}"#,
    ),
];

impl ModelConfig {
    /// The shape of this name, or that of a `config.json`, given it or its directory.
    ///
    /// # Errors
    /// A sentence that names the shapes, or what the file lacks.
    pub fn read(given: &Path) -> Result<Self, ModelError> {
        let name = given.to_str().unwrap_or_default();
        if let Some((_, text)) = SHAPES.iter().find(|(known, _)| *known == name) {
            return hf_config::parse(text);
        }
        let file = if given.is_dir() { given.join("config.json") } else { given.to_owned() };
        let text = std::fs::read_to_string(&file).map_err(|error| {
            let names = SHAPES.map(|(name, _)| name).join(", ");
            ModelError::Invalid(format!(
                "{}: {error}; a shape is a config.json or one of {names}",
                file.display()
            ))
        })?;
        hf_config::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_shapes_have_the_parameters_of_their_names() {
        for (name, billions) in [("llama-2-7b", 6.74), ("llama-3.1-8b", 8.03), ("qwen2.5-7b", 7.61)] {
            let spec = ModelConfig::read(Path::new(name)).unwrap().spec;
            let linears = weft_types::Module::ALL.map(|module| {
                let shape = spec.linear(module);
                shape.num_inputs * shape.num_outputs
            });
            let layers = spec.num_layers * linears.iter().sum::<usize>();
            let total = layers + 2 * spec.vocab_size * spec.hidden_size;
            assert!((total as f64 / 1e9 - billions).abs() < 0.01, "{name}: {total}");
        }
        let error = ModelConfig::read(Path::new("no-such-shape")).unwrap_err().to_string();
        assert!(error.contains("llama-3.1-8b"), "{error}");
    }
}
