//! Writes a LoRA as PEFT does. In: factors with a scale of one. Out: `adapter_config.json` and
//! `adapter_model.safetensors`, which say of each module what it is and no more.

use crate::error::{Result, TransformError, at, refuse};
use crate::factors::{Updates, Weight};
use crate::matrix::{Matrix, encode, file_dtype};
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use weft_types::{BaseModelSpec, Dtype, Module, Site};

/// Writes `updates`, of which there is at least one, into the directory `dir`.
pub(crate) fn write(
    dir: &Path,
    updates: &Updates,
    dtype: Dtype,
    base: &BaseModelSpec,
    base_name: &str,
) -> Result<()> {
    let ranks: BTreeMap<Weight, usize> =
        updates.iter().map(|(&weight, factors)| (weight, factors.rank())).collect();
    let config = config(&ranks, Some(base.num_layers), base_name);
    let mut tensors = BTreeMap::new();
    for (&weight, factors) in updates {
        for (name, matrix) in parts(weight, &factors.a, &factors.b) {
            // `cols × rows` here is `[rows, cols]` there.
            let shape = vec![matrix.ncols(), matrix.nrows()];
            let bytes = match encode(matrix.as_slice(), dtype) {
                Ok(bytes) => bytes,
                Err(value) => {
                    return refuse(format!(
                        "{} would have the value {value:e}, which {dtype:?} does not hold; choose \
                         another dtype",
                        weight.key()
                    ));
                }
            };
            tensors.insert(name, FileTensor { dtype, shape, data: bytes });
        }
    }
    write_files(dir, &config, &tensors)
}

/// PEFT's names of both matrices, each as `cols × rows` of its shape in the file.
fn parts(weight: Weight, a: &Matrix, b: &Matrix) -> [(String, Matrix); 2] {
    let stem = format!("base_model.model.{}", weight.key());
    match weight {
        // lora_A: [r, K], lora_B: [N, r]
        Weight::Linear(_) => [
            (format!("{stem}.lora_A.weight"), a.clone()),
            (format!("{stem}.lora_B.weight"), b.transpose()),
        ],
        // lora_embedding_A: [r, vocab], lora_embedding_B: [hidden, r]
        Weight::Embedding => [
            (format!("{stem}.lora_embedding_A"), b.clone()),
            (format!("{stem}.lora_embedding_B"), a.transpose()),
        ],
    }
}

/// A tensor as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Row-major, little-endian.
    pub(crate) data: Vec<u8>,
}

/// Writes both files.
pub(crate) fn write_files(
    dir: &Path,
    config: &Map<String, Value>,
    tensors: &BTreeMap<String, FileTensor>,
) -> Result<()> {
    let path = dir.join("adapter_model.safetensors");
    std::fs::write(&path, serialized(tensors)?).map_err(at(&path))?;
    let text = format!("{:#}\n", Value::Object(config.clone()));
    let path = dir.join("adapter_config.json");
    std::fs::write(&path, text).map_err(at(&path))
}

/// The bytes of a safetensors file, with the metadata that transformers looks for.
pub(crate) fn serialized(tensors: &BTreeMap<String, FileTensor>) -> Result<Vec<u8>> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = file_dtype(tensor.dtype);
            Ok((name, TensorView::new(dtype, tensor.shape.clone(), &tensor.data)?))
        })
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|cause| TransformError::Refused(format!("the tensors cannot be written: {cause}")))
}

/// The configuration of a LoRA with these ranks and a scale of one everywhere. `num_layers` are those of the
/// base, if it is known.
pub(crate) fn config(
    ranks: &BTreeMap<Weight, usize>,
    num_layers: Option<usize>,
    base_name: &str,
) -> Map<String, Value> {
    let rank = most_frequent(ranks.values().copied());
    let others: Map<String, Value> = ranks
        .iter()
        .filter(|(_, other)| **other != rank)
        .map(|(weight, other)| (weight.key(), json!(other)))
        .collect();
    let config = json!({
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        // Alpha equal to the rank is a scale of one.
        "alpha_pattern": others,
        "rank_pattern": others,
        "target_modules": target_modules(&ranks.keys().copied().collect(), num_layers),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}

/// Short names where a module is changed in all layers, else full ones.
fn target_modules(weights: &BTreeSet<Weight>, num_layers: Option<usize>) -> Vec<String> {
    let in_all_layers = |module: Module| {
        let mut layers = 0..num_layers.unwrap_or(0) as u32;
        layers.all(|layer| weights.contains(&Weight::Linear(Site::Layer { layer, module })))
    };
    let name = |weight: &Weight| match *weight {
        Weight::Linear(Site::Layer { module, .. })
            if num_layers.is_some() && in_all_layers(module) =>
        {
            module.hf_name().to_owned()
        }
        Weight::Linear(Site::Layer { .. }) => weight.key(),
        end => end.short_name().to_owned(),
    };
    weights.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Of equally frequent ones the largest.
fn most_frequent(ranks: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.for_each(|rank| *counts.entry(rank).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(1, |(rank, _)| rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::tests::random_factors;
    use crate::factors::{AdapterInput, read_updates};

    #[test]
    fn what_is_written_is_read_back_with_its_ranks() {
        let base = weft_testkit::tiny_llama_spec();
        let site = |layer, module| Weight::Linear(Site::Layer { layer, module });
        let shape = |weight: Weight| match weight {
            Weight::Linear(site) => base.site(site),
            Weight::Embedding => weft_types::LinearShape {
                num_inputs: base.hidden_size,
                num_outputs: base.vocab_size,
            },
        };
        let weights = [
            (site(0, Module::Q), 4),
            (site(1, Module::Q), 4),
            (site(1, Module::Up), 2),
            (Weight::Linear(Site::LmHead), 4),
            (Weight::Embedding, 3),
        ];
        let updates: Updates = weights
            .iter()
            .map(|&(weight, rank)| {
                let shape = shape(weight);
                (weight, random_factors(shape.num_inputs, shape.num_outputs, rank, rank as u64))
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &updates, Dtype::F32, &base, "tiny").unwrap();
        let input = AdapterInput { path: dir.path().to_owned(), scale: 1.0 };
        let read = read_updates(&input, &base).unwrap();
        assert_eq!(read.len(), updates.len());
        for (weight, factors) in &updates {
            let error = (read[weight].product() - factors.product()).norm();
            assert!(error < 1e-5 && read[weight].rank() == factors.rank(), "{weight:?} {error}");
        }
        let config = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        let config: Value = config.parse().unwrap();
        let targets = json!(["embed_tokens", "lm_head", "model.layers.1.mlp.up_proj", "q_proj"]);
        assert_eq!(config["target_modules"], targets);
        assert_eq!(config["rank_pattern"]["model.embed_tokens"], 3);
    }

    #[test]
    fn values_that_the_type_does_not_hold_are_refused() {
        let base = weft_testkit::tiny_llama_spec();
        let dir = tempfile::tempdir().unwrap();
        let mut factors = random_factors(64, 64, 2, 1);
        factors.b *= 1e6;
        let weight = Weight::Linear(Site::Layer { layer: 0, module: Module::Q });
        let updates = Updates::from([(weight, factors)]);
        let error = write(dir.path(), &updates, Dtype::F16, &base, "tiny").unwrap_err();
        assert!(error.to_string().contains("q_proj"), "{error}");
    }
}
