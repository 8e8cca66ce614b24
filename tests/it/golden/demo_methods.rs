//! Adapters of several methods on the demo base, against its dequantized weights in transformers and peft.

use super::methods::{load_dir, names};
use crate::support::decoding::{all_logits, cosine, relative_error};
use crate::support::demo::model_path;
use crate::support::golden;
use std::sync::Arc;
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;

#[test]
fn methods_on_the_demo_base_give_the_logits_of_peft() {
    let model = LoadedModel::load(&model_path(), &LoadOptions::default()).unwrap();
    let vocab = model.spec().vocab_size;
    let all = names("demo_methods");
    for name in &all {
        let dir = golden(&format!("demo_methods/{name}"));
        let adapter = Arc::new(load_dir(&dir, &model));
        let file = GoldenFile::open(&dir.join("golden.safetensors")).unwrap();
        let want = file.f32("logits").values.clone();
        let virtual_tokens = (0..adapter.num_virtual_tokens).map(|token| (vocab + token) as u32);
        let tokens: Vec<u32> =
            file.i32("tokens").values.iter().map(|&token| token as u32).collect();
        let prompt: Vec<u32> = virtual_tokens.chain(tokens.iter().copied()).collect();
        let got = all_logits(&model, Some(&adapter), &prompt);
        let got = &got[got.len() - vocab..];
        let base = all_logits(&model, None, &tokens);
        let without = relative_error(&base[base.len() - vocab..], &want);
        let (error, cosine) = (relative_error(got, &want), cosine(got, &want));
        println!(
            "{name}: relative error {error:.1e}, cosine {cosine:.6}, the base's error {without:.2}"
        );
        // Activations of this base are 12-bit integers: its own logits are as far away.
        assert!(cosine >= 0.9999 && error < 0.01, "{name}");
        assert!(without > 2.0 * error, "{name} changes the logits");
    }
    assert!(all.len() >= 7, "{all:?}");
}
