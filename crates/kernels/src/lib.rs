//! Kernels: everything that touches many numbers at once, and the only place that may be unsafe.
//!
//! In: slices of activations, packed weights, block tables. Out: slices of activations. Knows
//! nothing of requests, sequences or files.
//!
//! **Rows never meet.** Every kernel computes an output row from its own input row with the same
//! floating-point operations in the same order, whatever else is in the batch and however work is
//! split over threads. So a request's tokens are bit-identical alone or among strangers.
//!
//! Most kernels are plain loops over fixed lanes, compiled once per instruction set
//! ([`isa`]). The integer matmul is written with intrinsics; LoRA, attention and the matmul of
//! codes over a vector type (`vector`).

#![expect(unsafe_code, reason = "SIMD, and disjoint writes from several threads")]
#![allow(clippy::needless_range_loop, reason = "indexed loops over lanes read as the formulas do")]

pub mod activation;
pub mod arena;
pub mod attention;
pub mod codebook;
pub mod coded;
pub mod embedding;
pub mod isa;
pub mod kv;
mod lanes;
pub mod logits;
pub mod lora;
pub mod matmul;
pub mod norm;
pub mod pack;
pub mod peak;
pub mod pool;
pub mod quantize;
pub mod rope;
mod slab;
mod vector;
pub mod weight;
mod weight_bytes;

pub use arena::{Arena, LentChunks};
pub use isa::Isa;
pub use kv::{KvCache, KvDtype, KvShape};
pub use lora::PlacedAdapter;
pub use pool::ThreadPool;
pub use weight::PackedLinear;
