//! The crate's public face against committed references, made by the libraries it must agree with.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chat_templates;
mod detokenizer;
mod gguf_tokenizer;
mod gguf_writer;
mod hf_directory;

use serde_json::Value;
use std::path::Path;

/// A JSON file, by its path from this crate's directory.
fn read_json(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
