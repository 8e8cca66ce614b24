//! `weft adapter inspect`: what a PEFT directory says it is, what its tensors are, what would be refused
//! of it, and what it is on a base. In: a directory. Out: facts, as text or JSON.

use crate::args::InspectArgs;
use crate::device;
use crate::serve::find_model;
use crate::size::ByteSize;
use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use weft_adapters::{ForBase, LoadLimits, all_refusals, load_peft_dir};
use weft_transform::norms::{ModuleNorm, module_norms};
use weft_types::{LoweredAdapter, PackedAdapter};

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
    /// What is worth knowing and no fault.
    pub notes: Vec<String>,
    /// Every reason against serving it that needs no base.
    pub refusals: Vec<String>,
    /// The verdict against a base, if one was given.
    pub verdict: Option<Verdict>,
}

/// Whether a base can serve the adapter, and as what.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The base.
    pub model: String,
    /// Whether it can.
    pub is_served: bool,
    /// Why not, or what it becomes.
    pub reason: String,
    /// Where it would lie, if it can.
    pub memory: Option<Memory>,
    /// The size of each module's update, if it can and is made of low-rank updates.
    pub norms: Vec<ModuleNorm>,
}

/// What an adapter takes.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Packed, in host memory.
    pub host_bytes: usize,
    /// Chunks of the device's memory pool.
    pub num_chunks: usize,
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
}

impl Inspection {
    /// Whether anything speaks against serving it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.refusals.is_empty() && self.verdict.as_ref().is_none_or(|verdict| verdict.is_served)
    }
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
    if let Some(given) = &args.base {
        let source = find_model(Some(given))?;
        let config = device::read_config(&source.path)?;
        let weights = device::open_weights(&source.path)?;
        let base = ForBase { spec: &config.spec, weights: Some(&*weights) };
        let limits = LoadLimits { max_lora_rank: args.max_lora_rank };
        inspection.verdict = Some(match load_peft_dir(&args.dir, base, &limits) {
            Ok(lowered) => served(source.default_name, &lowered, device::chunk_bytes(&config)),
            Err(error) => refused(source.default_name, error.to_string()),
        });
    }
    Ok(inspection)
}

fn served(model: String, lowered: &LoweredAdapter, chunk_bytes: usize) -> Verdict {
    let packed = match PackedAdapter::pack(lowered, chunk_bytes) {
        Ok(packed) => packed,
        Err(error) => return refused(model, format!("the adapter {error}")),
    };
    let reason = format!(
        "{} low-rank updates, rank up to {}, {}, content {}",
        lowered.low_rank.len() + usize::from(lowered.embedding.is_some()),
        lowered.max_rank(),
        ByteSize(lowered.num_bytes() as u64),
        lowered.content_hash
    );
    let (host_bytes, num_chunks) = (packed.num_bytes, packed.num_chunks);
    let memory = Some(Memory { host_bytes, num_chunks, chunk_bytes });
    // Other methods than low-rank updates have no such norms.
    let norms = module_norms(lowered).unwrap_or_default();
    Verdict { model, is_served: true, reason, memory, norms }
}

fn refused(model: String, reason: String) -> Verdict {
    Verdict { model, is_served: false, reason, memory: None, norms: Vec::new() }
}

fn read(dir: &Path) -> Result<Inspection> {
    let config_path = dir.join("adapter_config.json");
    let config_bytes = std::fs::read(&config_path).with_context(|| {
        format!("{} is not a PEFT directory: reading {}", dir.display(), config_path.display())
    })?;
    let config: Value = serde_json::from_slice(&config_bytes)
        .with_context(|| format!("{} is not JSON", config_path.display()))?;
    let tensors_path = dir.join("adapter_model.safetensors");
    if !tensors_path.exists() && dir.join("adapter_model.bin").exists() {
        bail!(
            "{} has adapter_model.bin, a pickle; `weft adapter convert {} OUT` makes a safetensors file \
             of it without running it",
            dir.display(),
            dir.display()
        );
    }
    let bytes = std::fs::read(&tensors_path)
        .with_context(|| format!("reading {}", tensors_path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{} is not a safetensors file", tensors_path.display()))?;

    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    let (mut tensor_ranks, mut dtypes, mut num_parameters) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (name, tensor) in tensors.iter() {
        num_parameters += tensor.shape().iter().product::<usize>();
        dtypes.insert(format!("{:?}", tensor.dtype()));
        let name = name.strip_suffix(".lora_A.weight").or(name.strip_suffix(".lora_embedding_A"));
        if let Some(module) = name {
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
    let refusals = all_refusals(&config_bytes, &bytes);
    let base_model = config["base_model_name_or_path"].as_str().map(str::to_owned);
    Ok(Inspection {
        peft_type: config["peft_type"].as_str().unwrap_or("(not said)").to_owned(),
        notes: notes(base_model.as_deref()),
        base_model,
        rank: config["r"].as_u64(),
        alpha: config["lora_alpha"].as_f64(),
        settings,
        modules,
        tensor_ranks,
        dtypes,
        num_parameters,
        num_bytes: bytes.len() as u64,
        refusals: refusals.into_iter().map(|refusal| refusal.to_string()).collect(),
        verdict: None,
    })
}

/// A base in four bits is not the base in sixteen: the adapter was trained to correct its errors, too.
fn notes(base_model: Option<&str>) -> Vec<String> {
    let quantized = base_model.filter(|name| {
        let name = name.to_ascii_lowercase();
        ["bnb-4bit", "4bit", "awq", "gptq", "int4", "8bit"].iter().any(|mark| name.contains(mark))
    });
    let note = quantized.map(|name| {
        format!("trained on a quantized base ({name}): it is most accurate on those same weights")
    });
    note.into_iter().collect()
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
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "FAIL        {refusal}")?;
        }
        let Some(verdict) = &self.verdict else { return Ok(()) };
        let grade = if verdict.is_served { "PASS" } else { "FAIL" };
        writeln!(f, "{grade}        on {}: {}", verdict.model, verdict.reason)?;
        if let Some(memory) = &verdict.memory {
            let chunk = ByteSize(memory.chunk_bytes as u64);
            let (host, chunks) = (ByteSize(memory.host_bytes as u64), memory.num_chunks);
            writeln!(f, "memory      host {host}, device {chunks} chunks of {chunk}")?;
        }
        let width = verdict.norms.iter().map(|row| row.module.len()).max().unwrap_or(0);
        if width > 0 {
            writeln!(f, "\n{:width$}  rank     scale    norm  effective rank", "module")?;
        }
        for row in &verdict.norms {
            let ModuleNorm { module, rank, scale, norm, effective_rank } = row;
            writeln!(
                f,
                "{module:width$}  {rank:4}  {scale:8.4}  {norm:6.3}  {effective_rank:14.1}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_bench::{AdapterRecipe, write_adapter};
    use weft_types::{BaseModelSpec, Module};

    fn tiny_base() -> BaseModelSpec {
        BaseModelSpec {
            num_layers: 3,
            hidden_size: 8,
            intermediate_size: 8,
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 4,
            vocab_size: 16,
            max_context: 64,
            tied_embeddings: true,
        }
    }

    fn write(dir: &Path) {
        let recipe = AdapterRecipe { rank: 5, modules: vec![Module::Q, Module::Up], seed: 0 };
        write_adapter(dir, &tiny_base(), &recipe).unwrap();
    }

    #[test]
    fn an_adapter_is_described_by_its_config_and_tensors() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let inspection = read(dir.path()).unwrap();
        assert_eq!((inspection.rank, inspection.alpha), (Some(5), Some(10.0)));
        assert_eq!(inspection.modules, [("q_proj".into(), 3), ("up_proj".into(), 3)].into());
        assert_eq!(inspection.tensor_ranks, [5].into());
        assert_eq!(inspection.num_parameters, 3 * 2 * 2 * 5 * 8);
        assert!(inspection.is_served());
        let text = inspection.to_string();
        assert!(text.contains("LORA") && text.contains("q_proj x3") && text.contains("F16"));
    }

    #[test]
    fn a_served_adapter_has_memory_and_norms_per_module() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let lowered = load_peft_dir(dir.path(), &tiny_base(), &LoadLimits::default()).unwrap();
        let verdict = served("m".into(), &lowered, 4096);
        let memory = verdict.memory.as_ref().unwrap();
        assert!(memory.num_chunks > 0 && memory.host_bytes >= lowered.num_bytes());
        assert_eq!(verdict.norms.len(), 6);
        assert_eq!((verdict.norms[0].rank, verdict.norms[0].scale), (5, 2.0));
        let text = Inspection { verdict: Some(verdict), ..read(dir.path()).unwrap() }.to_string();
        assert!(
            text.contains("model.layers.2.mlp.up_proj") && text.contains("chunks of"),
            "{text}"
        );
    }

    #[test]
    fn everything_that_would_be_refused_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let path = dir.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["layer_replication"] = serde_json::json!([[0, 1]]);
        config["unheard_of"] = true.into();
        config["base_model_name_or_path"] = "unsloth/llama-3.2-1b-bnb-4bit".into();
        std::fs::write(&path, config.to_string()).unwrap();
        let inspection = read(dir.path()).unwrap();
        assert!(!inspection.is_served());
        let text = inspection.to_string();
        for word in ["layer_replication", "unheard_of", "note        trained on a quantized base"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn a_directory_without_a_config_or_with_a_pickle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains("is not a PEFT directory"), "{error}");
        std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains("weft adapter convert"), "{error}");
    }
}
