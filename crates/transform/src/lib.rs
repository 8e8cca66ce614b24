//! Adapters and checkpoints made from adapters and checkpoints: what `weft adapter merge`, `extract`,
//! `quantize` and `convert` compute.
//!
//! * [`mod@merge`]: adapters into their base, which becomes a checkpoint of its own; [`combine`]:
//!   adapters into one adapter. By [`Strategy`]: sums, TIES or DARE.
//! * [`mod@extract`]: a fine-tuned checkpoint less its base → a LoRA, by truncated SVD.
//! * [`quantize`]: what int8 costs an adapter, in its weights and in the model's logits.
//! * [`mod@convert`]: pickled, NeMo's and llama.cpp's adapters → PEFT directories, and back.
//! * [`norms`]: how large an adapter's updates are, and of how many dimensions.
//!
//! In: directories. Out: directories that appear whole or not at all, and reports. Knows no server and
//! no command line.

mod checkpoint;
pub mod combine;
pub mod convert;
mod error;
pub mod extract;
mod factors;
mod matrix;
pub mod merge;
pub mod norms;
mod peft_dir;
pub mod quantize;
mod staging;
mod strategy;
mod svd;

pub use error::TransformError;
pub use factors::{AdapterInput, Weight};
pub use strategy::{Strategy, StrategyOptions};
