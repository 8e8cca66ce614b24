//! NeMo's LoRA → PEFT. In: a `.nemo` archive (tar) with `model_config.yaml` and `model_weights.ckpt`, or
//! a directory that was unpacked from one. Out: configuration and tensors.
//!
//! Read is what NeMo's canonical export holds: a matrix pair for each of q, k, v, o, gate, up and down.
//! The pair of gate and up together is taken apart (its output is the one, then the other). A pair of q, k
//! and v together is refused: NeMo's own model and its converter disagree in the order of its rows.
//! Adapters that NeMo exports with the target `hf-peft` are PEFT directories and need no conversion.

use super::{PeftFiles, peft_names, torch_file};
use crate::error::{Result, TransformError, at};
use crate::factors::Weight;
use crate::peft_dir::{self, FileTensor};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use weft_types::{Module, Site};

const CONFIG: &str = "model_config.yaml";
const WEIGHTS: &str = "model_weights.ckpt";

/// Far above any.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct NemoConfig {
    tensor_model_parallel_size: Option<u64>,
    pipeline_model_parallel_size: Option<u64>,
    peft: Option<PeftSection>,
}

#[derive(Deserialize)]
struct PeftSection {
    peft_scheme: Option<String>,
    lora_tuning: Option<LoraTuning>,
}

#[derive(Deserialize)]
struct LoraTuning {
    adapter_dim: usize,
    alpha: Option<f64>,
}

pub(super) fn read(path: &Path) -> Result<PeftFiles> {
    let (config, weights) = if path.is_dir() { unpacked(path)? } else { archived(path)? };
    let of = |cause: String| TransformError::Refused(format!("{}: {cause}", path.display()));
    let (rank, alpha) = check_config(&config).map_err(of)?;
    let tensors = torch_file::read_bytes(&weights, &format!("{}: {WEIGHTS}", path.display()))?;
    let mut files = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    for (name, tensor) in tensors {
        for (weight, is_a, tensor) in parts(&name, tensor).map_err(of)? {
            let found = if is_a { tensor.shape[0] } else { tensor.shape[1] };
            if found != rank {
                return Err(of(format!(
                    "holds tensor {name:.120?} of rank {found}, but {CONFIG} sets adapter_dim to {rank}"
                )));
            }
            let [name_a, name_b] = peft_names(weight);
            ranks.insert(weight, rank);
            if files.insert(if is_a { name_a } else { name_b }, tensor).is_some() {
                return Err(of(format!("holds two tensors for one matrix of {}", weight.key())));
            }
        }
    }
    if ranks.is_empty() {
        return Err(of(format!("{WEIGHTS} holds no LoRA")));
    }
    if let Some(weight) = ranks
        .keys()
        .find(|&&weight| peft_names(weight).iter().any(|name| !files.contains_key(name)))
    {
        return Err(of(format!("has only one matrix for {}", weight.key())));
    }
    let mut config = peft_dir::config(&ranks, None, "");
    config.insert("lora_alpha".to_owned(), json!(alpha));
    Ok(PeftFiles { config, tensors: files })
}

/// Both files of a directory.
fn unpacked(dir: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(at(&path))
    };
    let names = std::fs::read_dir(dir).map_err(at(dir))?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    check_names(names)
        .map_err(|cause| TransformError::Refused(format!("{}: {cause}", dir.display())))?;
    Ok((read(CONFIG)?, read(WEIGHTS)?))
}

/// Both files of an archive; nothing is unpacked to disk, so that no name leads anywhere.
fn archived(path: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let file = File::open(path).map_err(at(path))?;
    let num_bytes = file.metadata().map_err(at(path))?.len();
    let (mut config, mut weights, mut names) = (None, None, Vec::new());
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().map_err(at(path))? {
        let entry = entry.map_err(at(path))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let (slot, max_bytes) = match name.as_str() {
            CONFIG => (&mut config, MAX_CONFIG_BYTES),
            WEIGHTS => (&mut weights, num_bytes),
            _ => {
                names.push(name);
                continue;
            }
        };
        let mut bytes = Vec::new();
        entry.take(max_bytes).read_to_end(&mut bytes).map_err(at(path))?;
        *slot = Some(bytes);
    }
    let of = |cause: String| TransformError::Refused(format!("{}: {cause}", path.display()));
    check_names(names.into_iter()).map_err(of)?;
    match (config, weights) {
        (Some(config), Some(weights)) => Ok((config, weights)),
        (None, _) => Err(of(format!("is no NeMo archive: it has no {CONFIG}"))),
        (_, None) => Err(of(format!("has no {WEIGHTS}"))),
    }
}

/// Other ways in which NeMo keeps weights.
fn check_names(names: impl Iterator<Item = String>) -> std::result::Result<(), String> {
    for name in names {
        if name.starts_with("mp_rank_") || name.starts_with("tp_rank_") {
            return Err(format!(
                "holds {name:.80?}: its weights are split over several ranks; merge them in NeMo \
                 (tensor and pipeline parallel size 1) first"
            ));
        }
        if name.starts_with("model_weights/") || name == "model_weights" || name == "weights" {
            return Err(format!(
                "holds {name:.80?}, a distributed checkpoint, which is not read; export it in NeMo with \
                 the target hf-peft"
            ));
        }
    }
    Ok(())
}

/// Rank and alpha.
fn check_config(bytes: &[u8]) -> std::result::Result<(usize, f64), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{CONFIG} is not UTF-8"))?;
    let config: NemoConfig =
        serde_saphyr::from_str(text).map_err(|cause| format!("{CONFIG}: {cause}"))?;
    for (key, size) in [
        ("tensor_model_parallel_size", config.tensor_model_parallel_size),
        ("pipeline_model_parallel_size", config.pipeline_model_parallel_size),
    ] {
        if let Some(size) = size.filter(|&size| size > 1) {
            return Err(format!("{CONFIG} sets {key} to {size}; merge the ranks in NeMo first"));
        }
    }
    let peft =
        config.peft.ok_or_else(|| format!("{CONFIG} has no peft section; is it an adapter?"))?;
    match peft.peft_scheme.as_deref() {
        None | Some("lora") => {}
        Some(other) => {
            return Err(format!(
                "{CONFIG} sets peft_scheme to {other:?}; only \"lora\" is converted"
            ));
        }
    }
    let tuning = peft.lora_tuning.ok_or_else(|| format!("{CONFIG} has no peft.lora_tuning"))?;
    if tuning.adapter_dim == 0 {
        return Err(format!("{CONFIG} sets adapter_dim to 0"));
    }
    // NeMo: without an alpha the scale is 1.
    let alpha = tuning.alpha.unwrap_or(tuning.adapter_dim as f64);
    if !alpha.is_finite() {
        return Err(format!("{CONFIG} sets alpha to {alpha}"));
    }
    Ok((tuning.adapter_dim, alpha))
}

type Part = (Weight, bool, FileTensor);

/// What a tensor is in PEFT: its weight, whether it is A, and its numbers.
fn parts(name: &str, tensor: FileTensor) -> std::result::Result<Vec<Part>, String> {
    let unknown = || format!("holds tensor {name:.160?}, which no rule explains");
    if name.contains("lora_kqv_adapter") {
        return Err(format!(
            "holds tensor {name:.160?}, one LoRA for q, k and v together; convert the archive with \
             NeMo's convert_nemo_to_canonical, or export it with the target hf-peft"
        ));
    }
    if tensor.shape.len() != 2 {
        return Err(unknown());
    }
    let short = name.strip_prefix("model.").unwrap_or(name);
    let short = short.strip_prefix("module.").unwrap_or(short);
    let rest = short.strip_prefix("decoder.layers.").ok_or_else(unknown)?;
    let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
    let layer = layer.parse().map_err(|_| unknown())?;
    let (adapter, side) = rest.rsplit_once(".linear_").ok_or_else(unknown)?;
    let is_a = match side {
        "in.weight" => true,
        "out.weight" => false,
        _ => return Err(unknown()),
    };
    let modules: &[Module] = match adapter {
        "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter" => &[Module::Q],
        "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter" => &[Module::K],
        "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter" => &[Module::V],
        "self_attention.adapter_layer.lora_dense_attention_adapter" => &[Module::O],
        "mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter" => &[Module::Gate],
        "mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter" => &[Module::Up],
        "mlp.adapter_layer.lora_hto4h_adapter" => &[Module::Gate, Module::Up],
        "mlp.adapter_layer.lora_4htoh_adapter" => &[Module::Down],
        _ => return Err(unknown()),
    };
    let weight = |module| Weight::Linear(Site::Layer { layer, module });
    if is_a || modules.len() == 1 {
        return Ok(modules.iter().map(|&module| (weight(module), is_a, tensor.clone())).collect());
    }
    let num_rows = tensor.shape[0];
    if !num_rows.is_multiple_of(2) {
        return Err(unknown());
    }
    let (first, second) = tensor.data.split_at(tensor.data.len() / 2);
    let half = |data: &[u8]| FileTensor {
        dtype: tensor.dtype,
        shape: vec![num_rows / 2, tensor.shape[1]],
        data: data.to_vec(),
    };
    Ok(vec![(weight(Module::Gate), false, half(first)), (weight(Module::Up), false, half(second))])
}
