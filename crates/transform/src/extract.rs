//! A fine-tuned checkpoint less its base as a LoRA: how full fine-tunes are served beside each other.
//! In: two Hugging Face directories. Out: a PEFT directory, and for each module how well its rank
//! catches the difference. What no LoRA can carry (norms, biases) is named, never dropped silently.

use crate::checkpoint::Checkpoint;
use crate::error::{Result, refuse};
use crate::factors::{Updates, Weight};
use crate::merge::{Progress, hf_spec};
use crate::peft_dir;
use crate::staging::Staging;
use crate::svd::truncated;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use weft_types::{BaseModelSpec, Dtype, Module, Site};

/// What to extract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Of every module.
    pub rank: usize,
    /// Of all tensors.
    pub dtype: Dtype,
    /// Also approximate differences of embedding and output head.
    pub with_embeddings: bool,
    /// Leave out, and list, what the adapter cannot carry; else it is an error.
    pub allow_rest: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExtractReport {
    /// One per module that differs.
    pub modules: Vec<ExtractedModule>,
    /// Modules that are the same in both.
    pub num_unchanged: usize,
    /// Tensors that differ and are not in the adapter.
    pub rest: Vec<RestTensor>,
}

/// How well a module's difference is caught.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExtractedModule {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// Of the adapter there.
    pub rank: usize,
    /// `‖ΔW‖ / ‖W‖`
    pub relative_change: f64,
    /// `‖ΔW - B·A‖ / ‖ΔW‖`
    pub relative_error: f64,
}

/// A difference that the adapter does not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestTensor {
    /// Its name.
    pub tensor: String,
    /// `‖Δ‖ / ‖W‖`
    pub relative_change: f64,
}

/// Extracts `finetuned - base` and writes it to `out`, which must not exist. One weight at a time is in
/// memory, in double precision and a few times over.
///
/// # Errors
/// A sentence: the two have not the same tensors, or differ in what the adapter cannot carry.
pub fn extract(
    base: &Path,
    finetuned: &Path,
    options: &ExtractOptions,
    out: &Path,
    progress: Progress<'_>,
) -> Result<ExtractReport> {
    let spec = hf_spec(base)?;
    hf_spec(finetuned)?;
    if options.rank == 0 {
        return refuse("a rank is a whole number from 1");
    }
    let (before, after) = (Checkpoint::open(base)?, Checkpoint::open(finetuned)?);
    check_same_tensors(&before, &after)?;
    let weights = carried(&spec, options.with_embeddings);
    let rest = differences(&before, &after, &weights)?;
    if let Some(first) = rest.first().filter(|_| !options.allow_rest) {
        return refuse(format!(
            "{} tensors differ that the adapter would not carry, the first being {} (by {:.1e} of its \
             norm): a LoRA changes linears{}. --allow-rest leaves the differences out and lists them",
            rest.len(),
            first.tensor,
            first.relative_change,
            if options.with_embeddings {
                ", embedding and head"
            } else {
                "; see --with-embeddings"
            },
        ));
    }
    let staging = Staging::new(out)?;
    let mut report = ExtractReport { modules: Vec::new(), num_unchanged: 0, rest };
    let mut updates = Updates::new();
    for (index, (name, &weight)) in weights.iter().enumerate() {
        progress(index, weights.len());
        if !before.tensors.contains_key(name) {
            continue;
        }
        let (old, _) = before.read_matrix(name)?;
        let (new, _) = after.read_matrix(name)?;
        let (old_norm, delta) = (old.norm(), new - old);
        let norm = delta.norm();
        if norm == 0.0 {
            report.num_unchanged += 1;
            continue;
        }
        if !norm.is_finite() {
            return refuse(format!("tensor {name} has a NaN or infinity; the training diverged"));
        }
        let factors = truncated(&delta, options.rank);
        let error = (factors.product() - &delta).norm();
        report.modules.push(ExtractedModule {
            module: weight.key(),
            rank: factors.rank(),
            relative_change: norm / old_norm.max(f64::MIN_POSITIVE),
            relative_error: error / norm,
        });
        updates.insert(weight, factors);
    }
    progress(weights.len(), weights.len());
    if updates.is_empty() {
        return refuse("both checkpoints have the same weights; there is nothing to extract");
    }
    peft_dir::write(staging.path(), &updates, options.dtype, &spec, &base.to_string_lossy())?;
    staging.publish()?;
    Ok(report)
}

/// The tensors that the adapter carries. Where head and embedding are one, neither can be carried: an
/// adapter of the one is not one of the other.
fn carried(spec: &BaseModelSpec, with_embeddings: bool) -> BTreeMap<String, Weight> {
    let layers = (0..spec.num_layers as u32)
        .flat_map(|layer| Module::ALL.map(|module| Weight::Linear(Site::Layer { layer, module })));
    let ends = [Weight::Linear(Site::LmHead), Weight::Embedding];
    let ends = ends.into_iter().filter(|_| with_embeddings && !spec.tied_embeddings);
    layers.chain(ends).map(|weight| (format!("{}.weight", weight.key()), weight)).collect()
}

fn check_same_tensors(before: &Checkpoint, after: &Checkpoint) -> Result<()> {
    for (one, other, whose) in [(before, after, "base"), (after, before, "fine-tuned model")] {
        if let Some(name) = one.tensors.keys().find(|name| !other.tensors.contains_key(*name)) {
            return refuse(format!(
                "only the {whose} has a tensor {name}; both must have the same"
            ));
        }
    }
    for (name, place) in &before.tensors {
        let other = &after.tensors[name];
        if place.shape != other.shape {
            return refuse(format!(
                "tensor {name} has shape {:?} in the base and {:?} in the fine-tuned model; a LoRA \
                 changes no shapes (added tokens?)",
                place.shape, other.shape
            ));
        }
    }
    Ok(())
}

/// What differs outside `weights`.
fn differences(
    before: &Checkpoint,
    after: &Checkpoint,
    weights: &BTreeMap<String, Weight>,
) -> Result<Vec<RestTensor>> {
    let mut rest = Vec::new();
    for (name, place) in before.tensors.iter().filter(|(name, _)| !weights.contains_key(*name)) {
        let other = &after.tensors[name];
        let (old, new) = (before.read(place)?, after.read(other)?);
        if old == new && place.dtype == other.dtype {
            continue;
        }
        let dtypes =
            (crate::matrix::float_dtype(place.dtype), crate::matrix::float_dtype(other.dtype));
        let (Some(old_dtype), Some(new_dtype)) = dtypes else {
            return refuse(format!("tensor {name} differs and is no float tensor"));
        };
        let old = crate::matrix::decode(&old, old_dtype);
        let new = crate::matrix::decode(&new, new_dtype);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let change = norm(&mut old.iter().zip(&new).map(|(old, new)| new - old));
        if change > 0.0 {
            let relative_change = change / norm(&mut old.iter().copied()).max(f64::MIN_POSITIVE);
            rest.push(RestTensor { tensor: name.clone(), relative_change });
        }
    }
    Ok(rest)
}
