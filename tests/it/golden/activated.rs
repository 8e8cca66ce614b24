//! Activated LoRA made by peft on the tiny models: logits within 1e-4, and base logits, bit for bit,
//! before the activation.

use super::prompts;
use crate::support::decoding::{all_logits, chunk_bytes, packed_logits, relative_error};
use crate::support::{golden, golden_metadata};
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;
use weft_types::PackedAdapter;

#[test]
fn activated_adapters_give_the_logits_of_peft() {
    for name in ["linears", "lm-head"] {
        let dir = golden(&format!("activated/{name}"));
        let path = dir.join("golden.safetensors");
        let base = &golden_metadata(&path)["base"];
        let model =
            LoadedModel::load(&golden(&format!("models/{base}")), &LoadOptions::default()).unwrap();
        let adapter = load_peft_dir(&dir, model.spec(), &LoadLimits::default()).unwrap();
        let invocation = adapter.invocation_tokens.clone().expect("it is activated");
        let packed = PackedAdapter::pack(&adapter, chunk_bytes(&model)).unwrap();
        let vocab_size = model.spec().vocab_size;
        let mut num_activated = 0;
        for (tokens, want) in prompts(&GoldenFile::open(&path).unwrap()) {
            let begin = (0..tokens.len()).rev().find(|&at| tokens[at..].starts_with(&invocation));
            let active_from = begin.unwrap_or(tokens.len());
            let got = packed_logits(&model, Some(packed.clone()), active_from, &tokens);
            let error = relative_error(&got, &want);
            println!("{name}: active from {begin:?} of {}, error {error:.1e}", tokens.len());
            assert!(error < 1e-4, "{error}");
            let bare = all_logits(&model, None, &tokens);
            let num_base = active_from * vocab_size;
            assert_eq!(got[..num_base], bare[..num_base], "the base's, bit for bit");
            if active_from < tokens.len() {
                num_activated += 1;
                assert!(relative_error(&got[num_base..], &bare[num_base..]) > 1e-2);
            }
        }
        assert_eq!(num_activated, 4, "one prompt of five does not invoke it");
    }
}
