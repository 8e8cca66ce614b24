//! Adapters made by peft on the tiny models: logits within 1e-4 of transformers with peft.

use super::prompts;
use crate::support::decoding::{all_logits, relative_error};
use crate::support::{golden, golden_metadata};
use std::sync::Arc;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;

#[test]
fn every_adapter_gives_the_logits_of_peft() {
    let mut num_adapters = 0;
    let mut dirs: Vec<_> = std::fs::read_dir(golden("adapters"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    for dir in dirs {
        let path = dir.join("golden.safetensors");
        let file = GoldenFile::open(&path).unwrap();
        let metadata = golden_metadata(&path);
        let base = metadata.get("base").map_or("tiny-llama", String::as_str);
        let model =
            LoadedModel::load(&golden(&format!("models/{base}")), &LoadOptions::default()).unwrap();
        let adapter = load_peft_dir(&dir, model.spec(), &LoadLimits::default());
        let adapter =
            Arc::new(adapter.unwrap_or_else(|error| panic!("{}: {error}", dir.display())));
        for (tokens, want) in prompts(&file) {
            let got = all_logits(&model, Some(&adapter), &tokens);
            let error = relative_error(&got, &want);
            let name = dir.file_name().unwrap().to_string_lossy();
            println!("{name} on {base}: rank {}, relative error {error:.1e}", adapter.max_rank());
            assert!(error < 1e-4, "{name}: {error}");
            let without = relative_error(&all_logits(&model, None, &tokens), &want);
            assert!(without > 1e-2, "{name} changes the logits");
        }
        num_adapters += 1;
    }
    assert!(num_adapters >= 12, "{num_adapters} adapters");
}
