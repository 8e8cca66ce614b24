//! Random PEFT LoRA directories for any base: what `save_pretrained` would have written after an
//! odd training.

use crate::rng::SplitMix64;
use crate::safetensors_file::{RawTensor, safetensors_bytes};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::{fs, io};
use weft_types::{BaseModelSpec, Dtype, Module};

/// A random adapter: the fields of PEFT's `LoraConfig` that matter, and how to draw the weights.
#[derive(Clone, Debug)]
pub struct RandomAdapter {
    /// `r`
    pub rank: usize,
    /// `lora_alpha`
    pub alpha: f64,
    /// `use_rslora`
    pub use_rslora: bool,
    /// `target_modules`, as far as they are linears of layers.
    pub modules: Vec<Module>,
    /// `layers_to_transform`; `None` is all. Leaves out the embedding, as in PEFT.
    pub layers: Option<Vec<usize>>,
    /// Also target `embed_tokens`.
    pub embedding: bool,
    /// Also target `lm_head`.
    pub lm_head: bool,
    /// With these two also write a `base_layer.weight [vocab, hidden]`, as PEFT does unless told
    /// not to: a copy of the base's weight, here random.
    pub base_copies: bool,
    /// `rank_pattern`: names or trailing parts of names, without operators of regular expressions.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern`, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `alora_invocation_tokens`
    pub invocation_tokens: Option<Vec<u32>>,
    /// Of all tensors.
    pub dtype: Dtype,
    /// Elements are uniform in `-magnitude .. magnitude`.
    pub magnitude: f32,
    /// Equal seeds and fields give equal bytes.
    pub seed: u64,
}

impl Default for RandomAdapter {
    /// Rank 8, alpha 16, all seven linears of all layers, f32, magnitude 0.1.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            use_rslora: false,
            modules: Module::ALL.to_vec(),
            layers: None,
            embedding: false,
            lm_head: false,
            base_copies: true,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            invocation_tokens: None,
            dtype: Dtype::F32,
            magnitude: 0.1,
            seed: 0,
        }
    }
}

impl RandomAdapter {
    /// Rank `rank` from `seed`, the rest as in the default.
    #[must_use]
    pub fn of_rank(rank: usize, seed: u64) -> Self {
        Self { rank, alpha: 2.0 * rank as f64, seed, ..Self::default() }
    }

    /// What `adapter_config.json` holds: every key of the present release.
    #[must_use]
    pub fn config(&self) -> Map<String, Value> {
        let mut targets: Vec<_> = self.modules.iter().map(|module| module.hf_name()).collect();
        targets.extend(self.embedding.then_some("embed_tokens"));
        targets.extend(self.lm_head.then_some("lm_head"));
        let ranks: Map<_, _> =
            self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
        let alphas: Map<_, _> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), json!(alpha))).collect();
        let value = json!({
            "alora_invocation_tokens": self.invocation_tokens,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": "tiny",
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": self.layers,
            "loftq_config": {},
            "lora_alpha": self.alpha,
            "lora_bias": false,
            "lora_dropout": 0.05,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": "0.21.2",
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": targets,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        });
        match value {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }

    /// What `adapter_model.safetensors` holds: of each linear `lora_A.weight [r, K]` and
    /// `lora_B.weight [N, r]`, of the embedding `lora_embedding_A [r, vocab]` and
    /// `lora_embedding_B [hidden, r]`.
    #[must_use]
    pub fn tensors(&self, base: &BaseModelSpec) -> Vec<RawTensor> {
        let mut rng = SplitMix64::new(self.seed);
        let mut tensors = Vec::new();
        for layer in 0..base.num_layers {
            if self.layers.as_ref().is_some_and(|layers| !layers.contains(&layer)) {
                continue;
            }
            for &module in &self.modules {
                let shape = base.linear(module);
                let module = format!("model.layers.{layer}.{}", in_layer(module));
                let rank = self.rank_at(&module);
                let a = [rank, shape.num_inputs];
                let b = [shape.num_outputs, rank];
                tensors.push(self.tensor(&mut rng, &format!("{module}.lora_A.weight"), &a));
                tensors.push(self.tensor(&mut rng, &format!("{module}.lora_B.weight"), &b));
            }
        }
        let (vocab, hidden) = (base.vocab_size, base.hidden_size);
        // PEFT's layers_to_transform leaves out what lies in no layer, but not what is listed under its
        // full name, and `lm_head` is one.
        if self.embedding && self.layers.is_none() {
            let module = "model.embed_tokens";
            let rank = self.rank_at(module);
            let (a, b) = ([rank, vocab], [hidden, rank]);
            tensors.push(self.tensor(&mut rng, &format!("{module}.lora_embedding_A"), &a));
            tensors.push(self.tensor(&mut rng, &format!("{module}.lora_embedding_B"), &b));
            let copy = format!("{module}.base_layer.weight");
            if self.base_copies {
                tensors.push(self.tensor(&mut rng, &copy, &[vocab, hidden]));
            }
        }
        if self.lm_head {
            let rank = self.rank_at("lm_head");
            let (a, b) = ([rank, hidden], [vocab, rank]);
            tensors.push(self.tensor(&mut rng, "lm_head.lora_A.weight", &a));
            tensors.push(self.tensor(&mut rng, "lm_head.lora_B.weight", &b));
            if self.base_copies {
                tensors.push(self.tensor(&mut rng, "lm_head.base_layer.weight", &[vocab, hidden]));
            }
        }
        tensors
    }

    /// Writes both files into `dir`, which is made if need be.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, base: &BaseModelSpec, dir: &Path) -> io::Result<()> {
        write_peft_dir(dir, &self.config(), &self.tensors(base))
    }

    /// The rank of a module: that of the first pattern that is its name or a trailing part of it.
    #[must_use]
    pub fn rank_at(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The scale of a module, by the same rule: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    #[must_use]
    pub fn scale_at(&self, module: &str) -> f32 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank_at(module) as f64;
        (alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }

    fn tensor(&self, rng: &mut SplitMix64, name: &str, shape: &[usize]) -> RawTensor {
        let num_elements = shape.iter().product();
        let values: Vec<_> = (0..num_elements).map(|_| rng.symmetric(self.magnitude)).collect();
        RawTensor::new(format!("base_model.model.{name}"), self.dtype, shape, &values)
    }
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, which is made if need be.
///
/// # Errors
/// The system's.
pub fn write_peft_dir(
    dir: &Path,
    config: &Map<String, Value>,
    tensors: &[RawTensor],
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("adapter_config.json"), serde_json::to_vec_pretty(config)?)?;
    fs::write(dir.join("adapter_model.safetensors"), safetensors_bytes(tensors))
}

/// The module's name below its layer, e.g. `self_attn.q_proj`.
#[must_use]
pub fn in_layer(module: Module) -> String {
    let block = match module {
        Module::Q | Module::K | Module::V | Module::O => "self_attn",
        Module::Gate | Module::Up | Module::Down => "mlp",
    };
    format!("{block}.{}", module.hf_name())
}

fn first_match<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let matches = |key: &str| {
        module.strip_suffix(key).is_some_and(|head| head.is_empty() || head.ends_with('.'))
    };
    patterns.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
}
