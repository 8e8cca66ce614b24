//! Turns a [`weft_types::StepPlan`] into a [`weft_types::StepOutput`] with a real model.
//!
//! [`executor`] owns the model and the sequences' sampling state; each step it asks `prepare` for
//! a flat batch, the decoder for logits, and [`sampler`] for tokens, while `copier` brings adapters
//! to the device. Knows no queue, no clock and no text.

mod copier;
pub mod cuda;
pub mod executor;
mod layout;
mod logprobs;
mod penalties;
mod prepare;
mod rng;
pub mod sampler;
mod sequence;
mod sequence_logits;
pub mod step_device;

pub use cuda::CudaExecutor;
pub use executor::{CpuExecutor, ModelExecutor};
pub use layout::{KvCacheDtype, RunnerConfig, RunnerError, kv_block_bytes, pool_layout};
pub use sequence_logits::{SequenceNumbers, sequence_logits, sequence_logits_in};
