//! A llama.cpp adapter → PEFT. In: a GGUF file with `general.type` "adapter". Out: configuration and
//! tensors, with the rows of rotated weights in the order of Hugging Face. Element types are kept.

use super::gguf_names::{interleaved_row, is_interleaved, weight_of};
use super::{PeftFiles, peft_names};
use crate::error::{Result, refuse};
use crate::factors::Weight;
use crate::peft_dir::{self, FileTensor};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::Path;
use weft_gguf::{GgmlType, GgufFile, Metadata};
use weft_model::ModelConfig;
use weft_types::Dtype;

/// Keys of adapters that say nothing of the arithmetic.
const HARMLESS: [&str; 2] = ["adapter.type", "adapter.lora.task_name"];

pub(super) fn read(path: &Path, base: Option<&ModelConfig>) -> Result<PeftFiles> {
    let file = GgufFile::open(path)?;
    let alpha = check_metadata(file.metadata(), path)?;
    let architecture = file.metadata().require_str("general.architecture")?;
    let mut pairs: BTreeMap<Weight, Pair> = BTreeMap::new();
    for info in file.tensors() {
        let Some((weight, is_a)) = part(&info.name) else {
            return refuse(format!(
                "{} holds tensor {:?}, which is neither lora_a nor lora_b of a linear or embedding",
                path.display(),
                info.name
            ));
        };
        let dtype = match info.dtype {
            GgmlType::F32 => Dtype::F32,
            GgmlType::F16 => Dtype::F16,
            GgmlType::BF16 => Dtype::Bf16,
            other => {
                return refuse(format!(
                    "{} holds tensor {:?} in {other}; convert the adapter to F32, F16 or BF16",
                    path.display(),
                    info.name
                ));
            }
        };
        let &[cols, rows] = &info.shape[..] else {
            return refuse(format!("tensor {:?} has shape {:?}, no matrix", info.name, info.shape));
        };
        let data = file.require_tensor(&info.name)?.1.to_vec();
        let pair = pairs.entry(weight).or_default();
        let slot = if is_a { &mut pair.a } else { &mut pair.b };
        *slot = Some(FileTensor { dtype, shape: vec![rows, cols], data });
    }
    let mut tensors = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    for (weight, pair) in pairs {
        let (Some(mut a), Some(mut b)) = (pair.a, pair.b) else {
            return refuse(format!("{} has only one matrix for {}", path.display(), weight.key()));
        };
        let rank = b.shape[1];
        if weight == Weight::Embedding {
            // There [vocab, r], as rows are looked up.
            a = transposed(&a);
        }
        if a.shape[0] != rank {
            return refuse(format!(
                "{} has matrices of ranks {} and {rank} for {}",
                path.display(),
                a.shape[0],
                weight.key()
            ));
        }
        if is_interleaved(weight, architecture) {
            let Some(base) = base else {
                return refuse(format!(
                    "{} is for the architecture llama, whose q and k have their rows in another order, \
                     head by head; name the base with --base",
                    path.display()
                ));
            };
            b = in_hf_order(&b, base.spec.head_dim)?;
        }
        ranks.insert(weight, rank);
        let [name_a, name_b] = peft_names(weight);
        // PEFT's embedding_A is looked up in, and so is the file's.
        tensors.insert(name_a, a);
        tensors.insert(name_b, b);
    }
    if ranks.is_empty() {
        return refuse(format!("{} holds no tensors", path.display()));
    }
    let base_name = file.metadata().get_str("general.base_model.0.name")?.unwrap_or_default();
    let mut config = peft_dir::config(&ranks, base.map(|base| base.spec.num_layers), base_name);
    // llama.cpp: without an alpha the scale is 1, which is what the configuration says so far.
    if alpha != 0.0 {
        let is_whole = alpha.fract() == 0.0 && alpha.abs() < 1e9;
        let alpha = if is_whole { json!(alpha as i64) } else { json!(alpha) };
        config.insert("lora_alpha".to_owned(), alpha);
        config.insert("alpha_pattern".to_owned(), Map::new().into());
    }
    Ok(PeftFiles { config, tensors })
}

#[derive(Default)]
struct Pair {
    a: Option<FileTensor>,
    b: Option<FileTensor>,
}

/// `blk.0.attn_q.weight.lora_a` → its weight, and whether it is A.
fn part(name: &str) -> Option<(Weight, bool)> {
    let (stem, is_a) = match name.strip_suffix(".weight.lora_a") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".weight.lora_b")?, false),
    };
    Some((weight_of(stem)?, is_a))
}

/// Alpha; refuses what is no LoRA, or more than one.
fn check_metadata(metadata: &Metadata, path: &Path) -> Result<f64> {
    let is = |key: &str, value: &str| metadata.get_str(key).is_ok_and(|found| found == Some(value));
    if !is("general.type", "adapter") || !is("adapter.type", "lora") {
        return refuse(format!(
            "{} is a GGUF file, but no LoRA adapter: its general.type must be \"adapter\" and its \
             adapter.type \"lora\"",
            path.display()
        ));
    }
    let strange = metadata.iter().map(|(key, _)| key).find(|key| {
        key.starts_with("adapter.") && *key != "adapter.lora.alpha" && !HARMLESS.contains(key)
    });
    if let Some(key) = strange {
        return refuse(format!(
            "{} sets the key {key}, which a LoRA of PEFT cannot say",
            path.display()
        ));
    }
    let alpha = metadata.get_f64("adapter.lora.alpha")?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return refuse(format!("{} has alpha {alpha}", path.display()));
    }
    Ok(alpha)
}

/// The rows of B as Hugging Face orders them.
fn in_hf_order(b: &FileTensor, head_dim: usize) -> Result<FileTensor> {
    let num_rows = b.shape[0];
    if head_dim == 0 || !num_rows.is_multiple_of(head_dim) {
        return refuse(format!("{num_rows} rows are no whole heads of {head_dim}: another base?"));
    }
    let row_bytes = b.data.len() / num_rows;
    let rows = (0..num_rows).map(|row| interleaved_row(row, head_dim) * row_bytes);
    let data = rows.flat_map(|start| &b.data[start..start + row_bytes]).copied().collect();
    Ok(FileTensor { data, ..b.clone() })
}

fn transposed(tensor: &FileTensor) -> FileTensor {
    let (rows, cols, size) = (tensor.shape[0], tensor.shape[1], tensor.dtype.size());
    let elements = (0..cols).flat_map(|col| (0..rows).map(move |row| (row * cols + col) * size));
    let data = elements.flat_map(|start| &tensor.data[start..start + size]).copied().collect();
    FileTensor { dtype: tensor.dtype, shape: vec![cols, rows], data }
}
