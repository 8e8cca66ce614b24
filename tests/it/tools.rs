//! `weft adapter merge`, `extract`, `quantize` and `convert` on real models: what they write computes what
//! was promised.

use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_model::{LoadOptions, LoadedModel, ModelConfig};
use weft_transform::combine::{CombineOptions, combine};
use weft_transform::convert::convert;
use weft_transform::extract::{ExtractOptions, extract};
use weft_transform::merge::merge;
use weft_transform::quantize::quantize;
use weft_transform::{AdapterInput, Strategy, StrategyOptions};
use weft_types::{Dtype, LoweredAdapter};

const PROMPT: [u32; 9] = [1, 17, 300, 42, 42, 5, 128, 255, 9];

fn model(path: &Path) -> LoadedModel {
    LoadedModel::load(path, &LoadOptions::default()).unwrap()
}

fn adapter(path: &Path, model: &LoadedModel) -> Arc<LoweredAdapter> {
    Arc::new(load_peft_dir(path, model.spec(), &LoadLimits::default()).unwrap())
}

fn input(path: &Path, scale: f64) -> AdapterInput {
    AdapterInput { path: path.to_owned(), scale }
}

fn merged(base: &Path, adapters: &[AdapterInput], out: PathBuf) -> PathBuf {
    merge(base, adapters, &StrategyOptions::default(), &out, &|_, _| {}).unwrap();
    out
}

#[test]
fn a_merged_model_is_the_base_with_the_adapter_and_extract_finds_the_adapter_again() {
    let dir = TempDir::new().unwrap();
    // An embedding and a head of their own can be merged; those of the Llama are one.
    for (name, base) in [
        ("rank8-linears", "tiny-llama"),
        ("both-patterns-rslora", "tiny-llama"),
        ("rank3-all-linear", "tiny-llama"),
        ("lm-head", "tiny-mistral"),
        ("embed-tokens", "tiny-mistral"),
    ] {
        let base_path = golden(&format!("models/{base}"));
        let base = model(&base_path);
        let path = golden(&format!("adapters/{name}"));
        let with_adapter = adapter(&path, &base);
        let want = all_logits(&base, Some(&with_adapter), &PROMPT);
        let without = relative_error(&all_logits(&base, None, &PROMPT), &want);
        let out = merged(&base_path, &[input(&path, 1.0)], dir.path().join(name));
        let error = relative_error(&all_logits(&model(&out), None, &PROMPT), &want);
        println!("{name}: merged, relative error {error:.1e}; without the adapter {without:.1e}");
        assert!(error < 1e-4, "{name}: {error}");

        let options = ExtractOptions {
            rank: with_adapter.max_rank(),
            dtype: Dtype::F32,
            with_embeddings: true,
            allow_rest: false,
        };
        let extracted = dir.path().join(format!("{name}-extracted"));
        let report = extract(&base_path, &out, &options, &extracted, &|_, _| {}).unwrap();
        let worst = report.modules.iter().map(|module| module.relative_error).fold(0.0, f64::max);
        let got = all_logits(&base, Some(&adapter(&extracted, &base)), &PROMPT);
        let error = relative_error(&got, &want);
        println!("{name}: extracted, modules' errors up to {worst:.1e}, logits' {error:.1e}");
        assert!(worst < 1e-4 && error < 1e-4, "{name}: {worst} {error}");
        let num_changed =
            with_adapter.low_rank.len() + usize::from(with_adapter.embedding.is_some());
        assert_eq!(report.modules.len(), num_changed);
    }
}

#[test]
fn a_sharded_base_is_merged_shard_by_shard() {
    let dir = TempDir::new().unwrap();
    let base_path = golden("models/tiny-llama-sharded");
    let base = model(&base_path);
    let path = golden("adapters/rank8-linears");
    let out = merged(&base_path, &[input(&path, 1.0)], dir.path().join("out"));
    assert!(out.join("model-00004-of-00004.safetensors").is_file());
    assert!(out.join("tokenizer.json").is_file() && out.join("chat_template.jinja").is_file());
    let want = all_logits(&base, Some(&adapter(&path, &base)), &PROMPT);
    // This base is in half precision, and so is what is merged: it rounds.
    let error = relative_error(&all_logits(&model(&out), None, &PROMPT), &want);
    let without = relative_error(&all_logits(&base, None, &PROMPT), &want);
    println!("sharded: relative error {error:.1e}, without the adapter {without:.1e}");
    assert!(error < 0.02 && error < without / 20.0, "{error} {without}");
}

#[test]
fn several_adapters_in_the_base_and_in_one_adapter_are_the_same() {
    let dir = TempDir::new().unwrap();
    let base_path = golden("models/tiny-llama");
    let base = model(&base_path);
    let inputs = [
        input(&golden("adapters/rank8-linears"), 0.5),
        input(&golden("adapters/rank3-q-v"), -1.0),
        input(&golden("adapters/rank16-rslora"), 0.25),
    ];
    let options = CombineOptions { rank: None, dtype: Dtype::F32 };
    let ties =
        StrategyOptions { strategy: Strategy::Ties, density: 0.3, ..StrategyOptions::default() };
    for (name, strategy, limit) in
        [("linear", StrategyOptions::default(), 1e-4), ("ties", ties, 0.2)]
    {
        let out = dir.path().join(format!("{name}-model"));
        merge(&base_path, &inputs, &strategy, &out, &|_, _| {}).unwrap();
        let want = all_logits(&model(&out), None, &PROMPT);
        let out = dir.path().join(format!("{name}-adapter"));
        combine(&inputs, base.spec(), (&strategy, &options), &out, &|_, _| {}).unwrap();
        let got = all_logits(&base, Some(&adapter(&out, &base)), &PROMPT);
        let error = relative_error(&got, &want);
        let without = relative_error(&all_logits(&base, None, &PROMPT), &want);
        println!("{name}: relative error {error:.1e}, without the adapters {without:.1e}");
        assert!(error < limit && error < without / 2.0, "{name}: {error} {without}");
    }
}

#[test]
fn what_a_lora_cannot_carry_is_an_error_or_a_list() {
    let dir = TempDir::new().unwrap();
    let base_path = golden("models/tiny-mistral");
    let head =
        merged(&base_path, &[input(&golden("adapters/lm-head-q"), 1.0)], dir.path().join("m"));
    let mut options =
        ExtractOptions { rank: 4, dtype: Dtype::F16, with_embeddings: false, allow_rest: false };
    let out = dir.path().join("out");
    let error = extract(&base_path, &head, &options, &out, &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("--allow-rest"), "{error}");
    assert!(!out.exists());
    options.allow_rest = true;
    let report = extract(&base_path, &head, &options, &out, &|_, _| {}).unwrap();
    assert_eq!(report.rest.len(), 1);
    assert_eq!(report.rest[0].tensor, "lm_head.weight");
    assert!(!report.modules.is_empty() && report.num_unchanged > 0);
    let same = extract(&base_path, &base_path, &options, &dir.path().join("s"), &|_, _| {});
    assert!(same.unwrap_err().to_string().contains("nothing to extract"));
}

#[test]
fn int8_costs_little_of_what_an_adapter_changes() {
    let base = model(&golden("models/tiny-llama"));
    let report =
        quantize(&golden("adapters/rank8-linears"), &base, &[PROMPT.to_vec(), vec![3]]).unwrap();
    assert_eq!(report.modules.len(), 14);
    assert!(report.num_int8_bytes < report.num_bytes / 2);
    for module in &report.modules {
        assert!(module.relative_error > 1e-5 && module.relative_error < 0.02, "{module:?}");
    }
    for prompt in &report.prompts {
        assert!(prompt.relative_to_effect > 1e-6 && prompt.relative_to_effect < 0.05, "{prompt:?}");
        assert!(prompt.relative_error < 0.02, "{prompt:?}");
    }
}

#[test]
fn an_adapter_that_went_through_gguf_gives_the_same_logits() {
    let dir = TempDir::new().unwrap();
    for (name, base) in [
        ("rank8-linears", "tiny-llama"),
        ("both-patterns-rslora", "tiny-llama"),
        ("bf16", "tiny-llama"),
        ("lm-head-q", "tiny-mistral"),
    ] {
        let base_path = golden(&format!("models/{base}"));
        let (base, config) = (model(&base_path), ModelConfig::read(&base_path).unwrap());
        let path = golden(&format!("adapters/{name}"));
        let (gguf, back) = (dir.path().join(format!("{name}.gguf")), dir.path().join(name));
        convert(&path, Some(&config), &gguf).unwrap();
        convert(&gguf, Some(&config), &back).unwrap();
        let logits = |path: &Path| all_logits(&base, Some(&adapter(path, &base)), &PROMPT);
        let error = relative_error(&logits(&back), &logits(&path));
        assert!(error < 1e-6, "{name}: {error}");
    }
}
