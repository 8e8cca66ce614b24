//! `weft adapter inspect`: what a PEFT directory says it is, what its tensors are, and whether a
//! base can serve it. In: a directory. Out: facts, as text or JSON.

use crate::args::InspectArgs;
use crate::device;
use crate::serve::find_model;
use crate::size::ByteSize;
use anyhow::{Context, Result};
use safetensors::SafeTensors;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use weft_adapters::{ForBase, LoadLimits, load_peft_dir};

/// What is in an adapter's files.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// `LORA`, …
    pub peft_type: String,
    /// The base that it was trained on, as it says.
    pub base_model: Option<String>,
    /// `r`
    pub rank: Option<u64>,
    /// `lora_alpha`
    pub alpha: Option<f64>,
    /// Settings that change what is computed and are not at their default.
    pub settings: BTreeMap<String, Value>,
    /// Modules that have tensors, and how many layers of each.
    pub modules: BTreeMap<String, usize>,
    /// Ranks that occur in the tensors.
    pub tensor_ranks: BTreeSet<usize>,
    /// Element types that occur.
    pub dtypes: BTreeSet<String>,
    /// Numbers in all tensors.
    pub num_parameters: usize,
    /// Bytes of adapter_model.safetensors.
    pub num_bytes: u64,
    /// The verdict against a base, if one was given.
    pub verdict: Option<Verdict>,
}

/// Whether a base can serve the adapter.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The base.
    pub model: String,
    /// Whether it can.
    pub is_served: bool,
    /// Why not, or what it becomes.
    pub reason: String,
}

/// Keys that are shown when they are set to something.
const SETTINGS: [&str; 12] = [
    "use_rslora",
    "use_dora",
    "bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
];

/// Reads the directory and, with a base, tries to load the adapter for it.
///
/// # Errors
/// If a file is missing or is not what its name says; a refusal by the base is a [`Verdict`].
pub fn inspect(args: &InspectArgs) -> Result<Inspection> {
    let mut inspection = read(&args.dir)?;
    if let Some(given) = &args.model {
        let source = find_model(Some(given))?;
        let (spec, weights, _) = device::read_base(&source.path)?;
        let base = ForBase { spec: &spec, weights: Some(&*weights) };
        let limits = LoadLimits { max_lora_rank: args.max_lora_rank };
        let loaded = load_peft_dir(&args.dir, base, &limits);
        let is_served = loaded.is_ok();
        let reason = match loaded {
            Ok(lowered) => format!(
                "{} low-rank updates, rank up to {}, {}, content {}",
                lowered.low_rank.len() + usize::from(lowered.embedding.is_some()),
                lowered.max_rank(),
                ByteSize(lowered.num_bytes() as u64),
                lowered.content_hash
            ),
            Err(error) => error.to_string(),
        };
        inspection.verdict = Some(Verdict { model: source.default_name, is_served, reason });
    }
    Ok(inspection)
}

fn read(dir: &Path) -> Result<Inspection> {
    let config_path = dir.join("adapter_config.json");
    let config = std::fs::read(&config_path).with_context(|| {
        format!("{} is not a PEFT directory: reading {}", dir.display(), config_path.display())
    })?;
    let config: Value = serde_json::from_slice(&config)
        .with_context(|| format!("{} is not JSON", config_path.display()))?;
    let tensors_path = dir.join("adapter_model.safetensors");
    let bytes = std::fs::read(&tensors_path)
        .with_context(|| format!("reading {}", tensors_path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{} is not a safetensors file", tensors_path.display()))?;

    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    let (mut tensor_ranks, mut dtypes, mut num_parameters) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (name, tensor) in tensors.iter() {
        num_parameters += tensor.shape().iter().product::<usize>();
        dtypes.insert(format!("{:?}", tensor.dtype()));
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let module = module.rsplit('.').next().unwrap_or(module);
            *modules.entry(module.to_owned()).or_default() += 1;
            tensor_ranks.extend(tensor.shape().first());
        } else if let Some(module) = name.strip_suffix(".lora_embedding_A") {
            let module = module.rsplit('.').next().unwrap_or(module);
            *modules.entry(module.to_owned()).or_default() += 1;
            tensor_ranks.extend(tensor.shape().first());
        }
    }
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => text != "none",
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    let settings = SETTINGS
        .iter()
        .filter_map(|&key| Some((key.to_owned(), config.get(key)?.clone())))
        .filter(|(_, value)| is_set(value))
        .collect();
    Ok(Inspection {
        peft_type: config["peft_type"].as_str().unwrap_or("(not said)").to_owned(),
        base_model: config["base_model_name_or_path"].as_str().map(str::to_owned),
        rank: config["r"].as_u64(),
        alpha: config["lora_alpha"].as_f64(),
        settings,
        modules,
        tensor_ranks,
        dtypes,
        num_parameters,
        num_bytes: bytes.len() as u64,
        verdict: None,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        writeln!(f, "method      {}", self.peft_type)?;
        if let Some(base) = &self.base_model {
            writeln!(f, "trained on  {base}")?;
        }
        if let (Some(rank), Some(alpha)) = (self.rank, self.alpha) {
            writeln!(f, "rank        {rank}, alpha {alpha}")?;
        }
        for (key, value) in &self.settings {
            writeln!(f, "setting     {key} = {value}")?;
        }
        let modules = list(&mut self.modules.iter().map(|(name, n)| format!("{name} x{n}")));
        writeln!(f, "modules     {modules}")?;
        let ranks = list(&mut self.tensor_ranks.iter().map(ToString::to_string));
        let dtypes = list(&mut self.dtypes.iter().cloned());
        writeln!(f, "tensors     ranks {ranks}; {dtypes}; {} parameters", self.num_parameters)?;
        writeln!(f, "file        {}", ByteSize(self.num_bytes))?;
        if let Some(verdict) = &self.verdict {
            let grade = if verdict.is_served { "PASS" } else { "FAIL" };
            writeln!(f, "{grade}        on {}: {}", verdict.model, verdict.reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_bench::{AdapterRecipe, write_adapter};
    use weft_types::{BaseModelSpec, Module};

    #[test]
    fn an_adapter_is_described_by_its_config_and_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let spec = BaseModelSpec {
            num_layers: 3,
            hidden_size: 8,
            intermediate_size: 8,
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 4,
            vocab_size: 16,
            max_context: 64,
            tied_embeddings: true,
        };
        let recipe = AdapterRecipe { rank: 5, modules: vec![Module::Q, Module::Up], seed: 0 };
        write_adapter(dir.path(), &spec, &recipe).unwrap();
        let inspection = read(dir.path()).unwrap();
        assert_eq!((inspection.rank, inspection.alpha), (Some(5), Some(10.0)));
        assert_eq!(inspection.modules, [("q_proj".into(), 3), ("up_proj".into(), 3)].into());
        assert_eq!(inspection.tensor_ranks, [5].into());
        assert_eq!(inspection.num_parameters, 3 * 2 * 2 * 5 * 8);
        let text = inspection.to_string();
        assert!(text.contains("LORA") && text.contains("q_proj x3") && text.contains("F16"));
    }

    #[test]
    fn a_directory_without_a_config_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains("is not a PEFT directory"), "{error}");
    }
}
