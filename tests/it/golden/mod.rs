//! Logits and tokens against files made by transformers and peft (`scripts/golden`).

mod activated;
mod adapters;
mod bases;
mod compositions;
mod demo_base;
mod demo_methods;
mod gguf;
mod method_table;
mod methods;
mod models;
mod tokenizer;
mod weight_cache;

use weft_testkit::golden::GoldenFile;

/// Token ids of a tensor.
fn tokens(file: &GoldenFile, name: &str) -> Vec<u32> {
    file.i32(name).values.iter().map(|&token| token as u32).collect()
}

/// Every prompt of a file, `tokens.i`, with its logits, `logits.i`: at least three.
pub(crate) fn prompts(file: &GoldenFile) -> Vec<(Vec<u32>, Vec<f32>)> {
    let num_prompts = file.names().filter(|name| name.starts_with("tokens.")).count();
    assert!(num_prompts >= 3, "{num_prompts} prompts");
    (0..num_prompts)
        .map(|i| {
            (tokens(file, &format!("tokens.{i}")), file.f32(&format!("logits.{i}")).values.clone())
        })
        .collect()
}
