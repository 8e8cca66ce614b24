//! Fixtures for the tests of other crates: random and malformed PEFT adapters, safetensors
//! files, and a reader of golden values. Knows the words of [`weft_types`] and no other crate.

pub mod allocations;
pub mod bad_requests;
pub mod golden;
pub mod malformed;
pub mod peft;
pub mod rng;
pub mod safetensors_file;
pub mod torch_file;

use weft_types::BaseModelSpec;

/// The shapes of the tiny Llama that the golden files are made with.
#[must_use]
pub fn tiny_llama_spec() -> BaseModelSpec {
    BaseModelSpec {
        num_layers: 2,
        hidden_size: 64,
        intermediate_size: 128,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 320,
        max_context: 512,
        tied_embeddings: false,
    }
}
