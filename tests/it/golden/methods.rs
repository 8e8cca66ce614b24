//! Adapters of every method, made by peft on the tiny models: logits within 1e-4 of transformers with
//! peft, computed by the CPU device.

use super::prompts;
use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weft::device::base_weights;
use weft_adapters::{ForBase, LoadLimits, load_peft_dir};
use weft_model::{Checkpoint, LoadOptions, LoadedModel, Quantize};
use weft_testkit::golden::GoldenFile;
use weft_types::LoweredAdapter;

/// The model that an adapter's golden file names.
pub(super) fn base_of(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().clone().unwrap_or_default()["base"].clone()
}

fn load(name: &str, model: &LoadedModel) -> LoweredAdapter {
    load_dir(&golden(&format!("methods/{name}")), model)
}

/// The adapter of a directory, for a base in memory.
pub(super) fn load_dir(dir: &Path, model: &LoadedModel) -> LoweredAdapter {
    let weights = base_weights::in_memory(&model.weights);
    let base = ForBase { spec: model.spec(), weights: Some(&*weights) };
    let adapter = load_peft_dir(dir, base, &LoadLimits::default());
    adapter.unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

/// Adapters in a directory of `tests/golden`.
pub(super) fn names(kind: &str) -> Vec<String> {
    let entries = std::fs::read_dir(golden(kind)).unwrap().map(|entry| entry.unwrap());
    let dirs = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = dirs.map(|dir| dir.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_method_gives_the_logits_of_peft() {
    let mut models = BTreeMap::new();
    let (mut num_methods, mut wrong) = (0, Vec::new());
    for name in names("methods") {
        let path = golden(&format!("methods/{name}/golden.safetensors"));
        let base = base_of(&path);
        let model = models.entry(base.clone()).or_insert_with(|| {
            LoadedModel::load(&golden(&format!("models/{base}")), &LoadOptions::default()).unwrap()
        });
        let adapter = Arc::new(load(&name, model));
        let vocab = model.spec().vocab_size;
        let num_virtual = adapter.num_virtual_tokens;
        for (tokens, want) in prompts(&GoldenFile::open(&path).unwrap()) {
            let before = (0..num_virtual).map(|token| (vocab + token) as u32);
            let all: Vec<_> = before.chain(tokens.iter().copied()).collect();
            let got = all_logits(model, Some(&adapter), &all);
            let error = relative_error(&got[num_virtual * vocab..], &want);
            println!("{name} on {base}: rank {}, relative error {error:.1e}", adapter.max_rank());
            if error >= 1e-4 {
                wrong.push(format!("{name}: {error:.1e}"));
            }
            let without = relative_error(&all_logits(model, None, &tokens), &want);
            assert!(without > 1e-2, "{name} changes the logits");
        }
        num_methods += 1;
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(num_methods >= 30, "{num_methods} methods");
}

#[test]
fn a_base_that_is_read_again_gives_the_same_adapter() {
    for (name, quantize) in [
        ("dora-rslora-lm-head", Quantize::None),
        ("dora-biased-base", Quantize::Int4),
        ("bias-all", Quantize::None),
        ("trained-tokens", Quantize::Int8),
    ] {
        let dir = golden(&format!("methods/{name}"));
        let path = golden(&format!("models/{}", base_of(&dir.join("golden.safetensors"))));
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        let model = LoadedModel::load(&path, &options).unwrap();
        let weights = base_weights::of_checkpoint(&path, quantize).unwrap();
        let base = ForBase { spec: model.spec(), weights: Some(&*weights) };
        let again = load_peft_dir(&dir, base, &LoadLimits::default()).unwrap();
        assert_eq!(again, load(name, &model), "{name}");
    }
    assert!(Checkpoint::open(&golden("methods"), Quantize::None).is_err());
}

/// DoRA's row lengths are those of the weights as served: of a quantized base, each row of the updated
/// weight has the length that was trained.
#[test]
fn dora_on_a_quantized_base_keeps_the_trained_lengths() {
    let path = golden("models/tiny-llama");
    let options = LoadOptions { quantize: Quantize::Int4, ..LoadOptions::default() };
    let quantized = LoadedModel::load(&path, &options).unwrap();
    let float = LoadedModel::load(&path, &LoadOptions::default()).unwrap();
    let (coarse, fine) = (load("dora", &quantized), load("dora", &float));
    for (coarse, fine) in coarse.vectors.iter().zip(&fine.vectors) {
        assert_eq!(coarse.site, fine.site);
        let (Some(coarse), Some(fine)) = (&coarse.output, &fine.output) else { panic!() };
        assert!(coarse.iter().zip(fine).any(|(coarse, fine)| coarse != fine));
        assert!(coarse.iter().zip(fine).all(|(coarse, fine)| (coarse / fine - 1.0).abs() < 0.2));
    }
}
