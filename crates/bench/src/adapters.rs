//! Writes PEFT directories with random weights: adapters to measure with. In: a base's shapes and a
//! recipe with a seed. Out: `adapter_config.json` and `adapter_model.safetensors`.

use crate::rng::Rng;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use weft_types::{BaseModelSpec, Module};

/// What to write. Equal recipes give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterRecipe {
    /// The rank of every update.
    pub rank: usize,
    /// Which linears of each layer; not empty.
    pub modules: Vec<Module>,
    /// Same seed, same weights.
    pub seed: u64,
}

/// Writes [`adapter_files`] into `dir` (made if it does not exist).
///
/// # Errors
/// If the directory or a file in it cannot be written.
pub fn write_adapter(dir: &Path, base: &BaseModelSpec, recipe: &AdapterRecipe) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let files = adapter_files(base, recipe)?;
    std::fs::write(dir.join("adapter_config.json"), files.config)?;
    std::fs::write(dir.join("adapter_model.safetensors"), files.tensors)
}

/// What a PEFT directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`
    pub config: String,
    /// `adapter_model.safetensors`
    pub tensors: Vec<u8>,
}

/// A LoRA in f16 for every layer of `base`, alpha twice the rank.
///
/// Weights are uniform and small enough that the base still generates ordinary tokens.
///
/// # Errors
/// If the format cannot hold it.
pub fn adapter_files(base: &BaseModelSpec, recipe: &AdapterRecipe) -> io::Result<AdapterFiles> {
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": recipe.rank,
        "lora_alpha": 2 * recipe.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": recipe.modules.iter().map(|module| module.hf_name()).collect::<Vec<_>>(),
    });
    let mut rng = Rng::new(recipe.seed, "adapter");
    let mut tensors = BTreeMap::new();
    for layer in 0..base.num_layers {
        for &module in &recipe.modules {
            let shape = base.linear(module);
            let stem = format!("base_model.model.model.layers.{layer}.{}", path(module));
            let spread = (shape.num_inputs as f64).sqrt().recip();
            let a = random(recipe.rank * shape.num_inputs, spread, &mut rng);
            let b = random(shape.num_outputs * recipe.rank, 0.02 * spread, &mut rng);
            tensors
                .insert(format!("{stem}.lora_A.weight"), (vec![recipe.rank, shape.num_inputs], a));
            tensors
                .insert(format!("{stem}.lora_B.weight"), (vec![shape.num_outputs, recipe.rank], b));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, data))| Ok((name, TensorView::new(Dtype::F16, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(io::Error::other)?;
    let tensors = serialize(views, None).map_err(io::Error::other)?;
    Ok(AdapterFiles { config: format!("{config:#}\n"), tensors })
}

/// Where a linear sits in a Hugging Face decoder layer.
fn path(module: Module) -> String {
    let block = match module {
        Module::Q | Module::K | Module::V | Module::O => "self_attn",
        Module::Gate | Module::Up | Module::Down => "mlp",
    };
    format!("{block}.{}", module.hf_name())
}

/// `count` values in f16, uniform in `-spread..spread`.
fn random(count: usize, spread: f64, rng: &mut Rng) -> Vec<u8> {
    (0..count)
        .flat_map(|_| f16::from_f64((2.0 * rng.unit() - 1.0) * spread).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn tiny_base() -> BaseModelSpec {
        BaseModelSpec {
            num_layers: 2,
            hidden_size: 8,
            intermediate_size: 12,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 4,
            vocab_size: 32,
            max_context: 64,
            tied_embeddings: true,
        }
    }

    #[test]
    fn every_layer_and_module_gets_matrices_of_the_right_shape() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = AdapterRecipe { rank: 3, modules: Module::ALL.to_vec(), seed: 1 };
        write_adapter(dir.path(), &tiny_base(), &recipe).unwrap();
        let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 2 * 7 * 2);
        let shape = |name: &str| {
            let stem = "base_model.model.model.layers.1";
            tensors.tensor(&format!("{stem}.{name}.weight")).unwrap().shape().to_vec()
        };
        assert_eq!(shape("self_attn.k_proj.lora_A"), [3, 8]);
        assert_eq!(shape("self_attn.k_proj.lora_B"), [4, 3]);
        assert_eq!(shape("mlp.down_proj.lora_A"), [3, 12]);
        assert_eq!(shape("mlp.up_proj.lora_B"), [12, 3]);
    }

    #[test]
    fn equal_recipes_give_equal_bytes_and_other_seeds_do_not() {
        let written = |seed| {
            let dir = tempfile::tempdir().unwrap();
            let recipe = AdapterRecipe { rank: 2, modules: vec![Module::Q], seed };
            write_adapter(dir.path(), &tiny_base(), &recipe).unwrap();
            std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap()
        };
        assert_eq!(written(1), written(1));
        assert_ne!(written(1), written(2));
    }
}
