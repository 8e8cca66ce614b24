//! ggml's quantized types against gguf's own dequantization, and a model that mixes them all.

use super::prompts;
use crate::support::decoding::{all_logits, cosine, relative_error};
use crate::support::golden;
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;

#[test]
fn a_model_of_all_types_gives_the_logits_of_its_dequantized_weights() {
    let model =
        LoadedModel::load(&golden("gguf/tiny-mixed.gguf"), &LoadOptions::default()).unwrap();
    let file = GoldenFile::open(&golden("gguf/tiny-mixed.golden.safetensors")).unwrap();
    for (tokens, want) in prompts(&file) {
        let got = all_logits(&model, None, &tokens);
        let (error, cosine) = (relative_error(&got, &want), cosine(&got, &want));
        println!("{} tokens: relative error {error:.1e}, cosine {cosine:.7}", tokens.len());
        assert!(error < 2e-3 && cosine > 0.9999, "{error} {cosine}");
    }
}
