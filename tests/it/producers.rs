//! Directories exactly as training tools leave them, made of an adapter that peft wrote: each loads as the
//! plain directory does, or is refused with the sentence that helps.

use crate::support::golden;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use weft_adapters::{LoadLimits, RegistryConfig, load_peft_dir};
use weft_model::ModelConfig;
use weft_types::{BaseModelSpec, LoweredAdapter};

const TENSORS: &str = "adapter_model.safetensors";

fn base() -> BaseModelSpec {
    ModelConfig::read(&golden("models/tiny-llama")).unwrap().spec
}

fn adapter() -> PathBuf {
    golden("adapters/rank8-linears")
}

fn load(dir: &Path) -> Result<LoweredAdapter, String> {
    load_peft_dir(dir, &base(), &LoadLimits::default()).map_err(|error| error.to_string())
}

/// A directory with the adapter's tensors, this configuration, and these other files.
fn layout(dir: &Path, config: &Value, files: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    fs::copy(adapter().join(TENSORS), dir.join(TENSORS)).unwrap();
    fs::write(dir.join("adapter_config.json"), format!("{config:#}")).unwrap();
    for file in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Nobody reads them: what they hold would be noticed.
        fs::write(path, b"\x80\x02cos\nsystem\n{ not what it says").unwrap();
    }
}

/// All but the hash, which is that of other bytes.
fn assert_same(dir: &Path) {
    let plain = load(&adapter()).unwrap();
    let got = load(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let content_hash = plain.content_hash;
    assert_eq!(LoweredAdapter { content_hash, ..got }, plain, "{}", dir.display());
}

/// The keys that a release of peft writes, at the values of the adapter or at their defaults.
fn config(keys: &[&str]) -> Value {
    let values = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": {},
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
        "bias": "none",
        "corda_config": null,
        "enable_lora": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_bias": false,
        "lora_dropout": 0.05,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "merge_weights": false,
        "modules_to_save": null,
        "peft_type": "LORA",
        "peft_version": "0.18.0",
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "revision": null,
        "target_modules": ["up_proj", "q_proj", "v_proj", "o_proj", "down_proj", "gate_proj", "k_proj"],
        "target_parameters": null,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": false,
    });
    let chosen: Map<String, Value> =
        keys.iter().map(|&key| (key.to_owned(), values[key].clone())).collect();
    Value::Object(chosen)
}

const V0_2: &[&str] = &[
    "base_model_name_or_path",
    "bias",
    "enable_lora",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
];
const V0_4: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "revision",
    "target_modules",
    "task_type",
];
/// What each later release added.
const SINCE: [(&str, &[&str]); 9] = [
    ("0.5", &["alpha_pattern", "rank_pattern"]),
    ("0.7", &["loftq_config", "megatron_config", "megatron_core"]),
    ("0.8", &["use_rslora"]),
    ("0.10", &["use_dora", "layer_replication"]),
    ("0.14", &["eva_config", "exclude_modules", "lora_bias"]),
    ("0.15", &["corda_config", "trainable_token_indices"]),
    ("0.16", &["qalora_group_size", "use_qalora"]),
    ("0.17", &["target_parameters"]),
    ("0.18", &["alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "peft_version"]),
];

/// The configuration of the newest of these releases.
fn newest() -> Value {
    let since = SINCE.iter().flat_map(|(_, keys)| keys.iter().copied());
    config(&V0_4.iter().copied().chain(since).collect::<Vec<_>>())
}

fn with(key: &str, value: Value) -> Value {
    let mut config = newest();
    config[key] = value;
    config
}

const TRAINER: [&str; 12] = [
    "README.md",
    "chat_template.jinja",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
    "tokenizer.model",
    "scaler.pt",
];

#[test]
fn every_release_of_peft_is_read() {
    let dir = TempDir::new().unwrap();
    let mut keys = V0_4.to_vec();
    let mut releases = vec![("0.2".to_owned(), V0_2.to_vec()), ("0.4".to_owned(), keys.clone())];
    for (release, added) in SINCE {
        keys.extend(added);
        releases.push((release.to_owned(), keys.clone()));
    }
    for (release, keys) in releases {
        let path = dir.path().join(format!("peft-{release}"));
        layout(&path, &config(&keys), &["README.md"]);
        assert_same(&path);
    }
}

#[test]
fn a_pickle_of_an_old_release_is_refused_with_the_tool_that_converts_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("old");
    layout(&path, &config(V0_4), &["adapter_model.bin"]);
    fs::remove_file(path.join(TENSORS)).unwrap();
    let error = load(&path).unwrap_err();
    assert!(
        error.contains("adapter_model.bin") && error.contains("weft adapter convert"),
        "{error}"
    );
}

#[test]
fn unsloth() {
    let dir = TempDir::new().unwrap();
    let mut list = with("base_model_name_or_path", json!("unsloth/llama-3.2-1b-instruct-bnb-4bit"));
    list["auto_mapping"] = json!({
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
        "unsloth_fixed": true,
    });
    let files = [
        "README.md",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let plain = dir.path().join("lora_model");
    layout(&plain, &list, &files);
    assert_same(&plain);
    // Its models for images and text name modules by a pattern.
    let mut pattern = list;
    pattern["target_modules"] = json!(concat!(
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?",
        r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|",
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.",
        r"(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))",
    ));
    let path = dir.path().join("vision");
    layout(&path, &pattern, &files);
    assert_same(&path);
}

#[test]
fn trl_with_checkpoints() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("sft");
    for step in [60, 500, 1000] {
        layout(&out.join(format!("checkpoint-{step}")), &newest(), &TRAINER);
    }
    fs::create_dir(out.join("runs")).unwrap();
    // Before training ends there are checkpoints only.
    let error = load(&out).unwrap_err();
    assert!(error.contains("did you mean") && error.contains("checkpoint-1000"), "{error}");
    assert_same(&out.join("checkpoint-500"));
    // After it, the directory is an adapter itself.
    layout(&out, &newest(), &TRAINER);
    assert_same(&out);
}

#[test]
fn a_checkpoint_without_an_adapter_is_no_hint() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("checkpoint-7")).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.contains("no adapter_config.json") && !error.contains("did you mean"), "{error}");
}

#[test]
fn axolotl_beside_a_copy_of_the_bases_configuration() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("outputs");
    let mut config = with("peft_type", json!("LORA"));
    config["target_modules"] =
        json!(["v_proj", "gate_proj", "down_proj", "up_proj", "q_proj", "k_proj", "o_proj"]);
    let files = [
        "README.md",
        "config.json",
        "debug.log",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "checkpoint-20/trainer_state.json",
        "runs/Jan01/events.out.tfevents.0",
        "merged/model.safetensors",
    ];
    layout(&path, &config, &files);
    assert_same(&path);
}

#[test]
fn llama_factory_with_its_results_and_plots() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("saves/llama3-8b/lora/sft");
    let files = [
        "README.md",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_args.bin",
        "training_args.yaml",
        "training_loss.png",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "Modelfile",
        "checkpoint-500/adapter_config.json",
    ];
    // It writes the dropout as a whole number.
    layout(&path, &with("lora_dropout", json!(0)), &files);
    assert_same(&path);
}

#[test]
fn a_deepspeed_checkpoint_with_its_shards() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("checkpoint-10");
    let files = [
        "global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "latest",
        "zero_to_fp32.py",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "trainer_state.json",
        "training_args.bin",
    ];
    layout(&path, &newest(), &files);
    assert_same(&path);
}

#[test]
fn nemos_export_names_modules_in_full() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("epoch_0_step_20/model");
    let targets: Vec<String> = (0..2)
        .flat_map(|layer| {
            weft_types::Module::ALL
                .map(|module| weft_types::Site::Layer { layer, module }.hf_name())
        })
        .collect();
    let config = json!({
        "base_model_name_or_path": "meta-llama/Llama-3.2-1B",
        "bias": "none",
        "lora_alpha": 16,
        "peft_type": "LORA",
        "r": 8,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    });
    let files = [
        "automodel_peft_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    layout(&path, &config, &files);
    assert_same(&path);
}

#[test]
fn a_directory_of_all_of_them_lists_the_adapters() {
    let dir = TempDir::new().unwrap();
    for name in ["a", "b"] {
        layout(&dir.path().join(name), &newest(), &TRAINER);
    }
    layout(&dir.path().join("sft/checkpoint-5"), &newest(), &[]);
    let config =
        RegistryConfig { adapter_dir: Some(dir.path().to_owned()), ..RegistryConfig::new(base()) };
    let registry = weft_adapters::AdapterRegistry::new(config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert!(registry.resolve("a").await.is_ok() && registry.resolve("b").await.is_ok());
        assert!(registry.resolve("sft").await.is_err());
    });
}
