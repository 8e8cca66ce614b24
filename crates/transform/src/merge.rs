//! Adapters merged into their base: `W + Σ scale · ΔW`, or what another [`StrategyOptions`] makes of the
//! updates. In: a Hugging Face directory and PEFT directories. Out: a directory of the same layout, in
//! the base's element types, which transformers loads. Tensors that no adapter touches keep their bytes.

use crate::checkpoint::Checkpoint;
use crate::error::{Result, at, refuse};
use crate::factors::{AdapterInput, Updates, Weight, read_updates};
use crate::staging::Staging;
use crate::strategy::StrategyOptions;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use weft_model::ModelConfig;
use weft_types::{BaseModelSpec, Site};

/// Told how many of how many weights are done.
pub type Progress<'a> = &'a dyn Fn(usize, usize);

/// What became of the merge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergeReport {
    /// One per weight that changed.
    pub weights: Vec<MergedWeight>,
    /// Files of the base that were copied as they are.
    pub copied: Vec<String>,
    /// Files and directories of the base that are no part of a model and were not.
    pub left_out: Vec<String>,
}

/// What happened to one weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedWeight {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// `‖ΔW‖ / ‖W‖`
    pub relative_change: f64,
}

/// Merges `adapters` into the checkpoint in `base` and writes the result to `out`, which must not exist.
///
/// # Errors
/// A sentence: the base is no unquantized Hugging Face directory, an adapter does not fit it or is no
/// plain low-rank update, a tied embedding would have to become two, or `out` is in the way.
pub fn merge(
    base: &Path,
    adapters: &[AdapterInput],
    options: &StrategyOptions,
    out: &Path,
    progress: Progress<'_>,
) -> Result<MergeReport> {
    options.check()?;
    let spec = hf_spec(base)?;
    if adapters.is_empty() {
        return refuse("no adapter is named; there is nothing to merge");
    }
    let updates = adapters
        .iter()
        .map(|adapter| read_updates(adapter, &spec))
        .collect::<Result<Vec<Updates>>>()?;
    let weights = all_weights(&updates);
    check_ties(&weights, &spec)?;
    let checkpoint = Checkpoint::open(base)?;
    let staging = Staging::new(out)?;
    let (copied, left_out) = copy_files(base, &checkpoint, staging.path())?;
    let merged = checkpoint.moved_to(staging.path());

    let mut report = MergeReport { weights: Vec::new(), copied, left_out };
    for (index, &weight) in weights.iter().enumerate() {
        let name = format!("{}.weight", weight.key());
        let (mut matrix, _) = merged.read_matrix(&name)?;
        let deltas = updates.iter().enumerate().filter_map(|(adapter, updates)| {
            updates.get(&weight).map(|factors| (adapter, factors.product()))
        });
        let delta = options.combine(deltas.collect(), index as u64);
        if delta.shape() != matrix.shape() {
            return refuse(format!("tensor {name} has not the shape that config.json says"));
        }
        let relative_change = delta.norm() / matrix.norm().max(f64::MIN_POSITIVE);
        matrix += delta;
        merged.overwrite(&name, &matrix)?;
        report.weights.push(MergedWeight { module: weight.key(), relative_change });
        progress(index + 1, weights.len());
    }
    staging.publish()?;
    Ok(report)
}

/// The shapes of an unquantized Hugging Face directory.
pub(crate) fn hf_spec(base: &Path) -> Result<BaseModelSpec> {
    if base.is_file() {
        return refuse(format!(
            "{} is a single file: weights are read and written in Hugging Face directories only; name \
             the directory that it was made from",
            base.display()
        ));
    }
    if !base.join("config.json").is_file() {
        return refuse(format!("{} has no config.json; name a model's directory", base.display()));
    }
    Ok(ModelConfig::read(base)?.spec)
}

/// The weights that any of them changes.
pub(crate) fn all_weights(updates: &[Updates]) -> BTreeSet<Weight> {
    updates.iter().flat_map(|updates| updates.keys().copied()).collect()
}

/// A tied weight is stored once: changing it as embedding would change it as head, too.
fn check_ties(weights: &BTreeSet<Weight>, spec: &BaseModelSpec) -> Result<()> {
    let ends = [Weight::Embedding, Weight::Linear(Site::LmHead)];
    match ends.iter().find(|weight| spec.tied_embeddings && weights.contains(*weight)) {
        Some(weight) => refuse(format!(
            "an adapter changes {}, but this base has one weight for embedding and output head \
             (tie_word_embeddings), and merging would change both; serve the adapter beside the base \
             instead",
            weight.key()
        )),
        None => Ok(()),
    }
}

/// Endings of what belongs to a model beside its weights.
const MODEL_FILES: [&str; 7] = ["json", "txt", "model", "jinja", "tiktoken", "py", "jsonl"];

/// Copies the weights' files and what tokenizer and configuration are made of; the model card and other
/// forms of the weights would be wrong. Returns the names of what was copied beside weights, and of what
/// was not.
fn copy_files(
    base: &Path,
    checkpoint: &Checkpoint,
    to: &Path,
) -> Result<(Vec<String>, Vec<String>)> {
    let copy = |from: &Path, name: &str| {
        let target = to.join(name);
        fs::copy(from, &target).map_err(at(from))?;
        // A base may be read-only; its copy is written to.
        let mut permissions = fs::metadata(&target).map_err(at(&target))?.permissions();
        make_writable(&mut permissions);
        fs::set_permissions(&target, permissions).map_err(at(&target))
    };
    let (mut copied, mut left_out) = (Vec::new(), Vec::new());
    let mut entries: Vec<_> = fs::read_dir(base)
        .map_err(at(base))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let is_license = name.to_ascii_uppercase().starts_with("LICENSE");
        if checkpoint.files.contains(&path) {
            copy(&path, &name)?;
        } else if path.is_file() && (MODEL_FILES.contains(&ending) || is_license) {
            copy(&path, &name)?;
            copied.push(name);
        } else {
            left_out.push(name);
        }
    }
    Ok((copied, left_out))
}

#[cfg(unix)]
fn make_writable(permissions: &mut fs::Permissions) {
    use std::os::unix::fs::PermissionsExt;
    permissions.set_mode(permissions.mode() | 0o200);
}

#[cfg(not(unix))]
#[expect(clippy::permissions_set_readonly_false, reason = "there it means what it says")]
fn make_writable(permissions: &mut fs::Permissions) {
    permissions.set_readonly(false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use weft_testkit::peft::RandomAdapter;
    use weft_testkit::safetensors_file::{RawTensor, safetensors_bytes};
    use weft_types::{Dtype, Module};

    /// A checkpoint with one linear, in bf16, and what lies beside weights.
    fn base(dir: &Path, tied: bool) -> PathBuf {
        let base = dir.join("base");
        fs::create_dir(&base).unwrap();
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 6, "max_position_embeddings": 16,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": {tied}}}"#
        );
        fs::write(base.join("config.json"), config).unwrap();
        fs::write(base.join("tokenizer.json"), "{}").unwrap();
        fs::write(base.join("README.md"), "the base's").unwrap();
        let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let tensors = [
            RawTensor::new("model.norm.weight", Dtype::F16, &[4], &[1.0; 4]),
            RawTensor::new("model.layers.0.self_attn.q_proj.weight", Dtype::Bf16, &[4, 4], &values),
        ];
        fs::write(base.join("model.safetensors"), safetensors_bytes(&tensors)).unwrap();
        base
    }

    fn adapter(dir: &Path, spec: &BaseModelSpec, recipe: &RandomAdapter) -> AdapterInput {
        let path = dir.join(format!("adapter-{}", recipe.seed));
        recipe.write(spec, &path).unwrap();
        AdapterInput { path, scale: 1.0 }
    }

    fn q_adapter(seed: u64) -> RandomAdapter {
        RandomAdapter { modules: vec![Module::Q], magnitude: 3.0, seed, ..RandomAdapter::default() }
    }

    #[test]
    fn the_base_keeps_its_types_and_all_that_no_adapter_touches() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path(), false);
        let spec = hf_spec(&base).unwrap();
        let inputs = [
            adapter(dir.path(), &spec, &q_adapter(1)),
            AdapterInput { scale: -0.5, ..adapter(dir.path(), &spec, &q_adapter(2)) },
        ];
        let out = dir.path().join("out");
        let options = StrategyOptions::default();
        let report = merge(&base, &inputs, &options, &out, &|_, _| {}).unwrap();
        assert_eq!(report.copied, ["config.json", "tokenizer.json"]);
        assert_eq!(report.left_out, ["README.md"]);
        assert_eq!(report.weights.len(), 1);

        let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&out).unwrap());
        let name = "model.layers.0.self_attn.q_proj.weight";
        let (w, _) = before.read_matrix(name).unwrap();
        let (merged, dtype) = after.read_matrix(name).unwrap();
        assert_eq!(dtype, Dtype::Bf16);
        let weight = Weight::Linear(Site::Layer { layer: 0, module: Module::Q });
        let deltas =
            inputs.each_ref().map(|input| read_updates(input, &spec).unwrap()[&weight].product());
        let want = w + &deltas[0] + &deltas[1];
        for (got, want) in merged.iter().zip(&want) {
            assert!((got - want).abs() <= want.abs() / 256.0 + 1e-6, "{got} {want}");
        }
        let norm = |checkpoint: &Checkpoint| {
            checkpoint.read(&checkpoint.tensors["model.norm.weight"]).unwrap()
        };
        assert_eq!(norm(&before), norm(&after));
    }

    #[test]
    fn tied_embeddings_files_and_nothing_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path(), true);
        let spec = hf_spec(&base).unwrap();
        let out = dir.path().join("out");
        let refused = |base: &Path, inputs: &[AdapterInput]| {
            let merged = merge(base, inputs, &StrategyOptions::default(), &out, &|_, _| {});
            assert!(!out.exists());
            merged.unwrap_err().to_string()
        };
        let embedding =
            RandomAdapter { embedding: true, base_copies: false, ..RandomAdapter::default() };
        let input = adapter(dir.path(), &spec, &embedding);
        assert!(refused(&base, &[input]).contains("tie_word_embeddings"));
        assert!(refused(&base, &[]).contains("no adapter"));
        let file = base.join("model.safetensors");
        assert!(refused(&file, &[]).contains("single file"));
        // What the checkpoint lacks is noticed, and nothing half-made stays.
        let input =
            adapter(dir.path(), &spec, &RandomAdapter { seed: 5, ..RandomAdapter::default() });
        assert!(refused(&base, &[input]).contains("no tensor model.layers.0"));
    }
}
