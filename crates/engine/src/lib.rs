//! The loop that turns requests into tokens, on a thread of its own.
//!
//! In: [`weft_types::GenerateRequest`]s with the lease of their adapter, through an
//! [`EngineHandle`]. Out: one [`RequestStream`] of [`weft_types::TokenEvent`]s for each. The loop
//! owns a [`weft_types::Executor`] and a scheduler, and never awaits, does I/O or waits for a
//! client. Knows no HTTP, no text and no model.
//!
//! ```text
//! submit ──▶ command channel ──▶ apply_commands → plan → execute → commit → send ──▶ RequestStream
//! ```
//!
//! [`sim::SimExecutor`] is a model in fifty lines, for tests of everything around the engine.

mod adapted_prompt;
mod adapter_sources;
mod command;
mod execute;
mod handle;
mod loads;
mod loop_times;
mod shared;
pub mod sim;
mod stats;
mod step;
mod stream;
mod submit;
#[cfg(test)]
mod tests;

pub use handle::{EngineConfig, EngineHandle, start};
pub use loop_times::LoopTimes;
pub use stats::{ActiveAdapters, EngineStats, MemoryStats};
pub use stream::RequestStream;
pub use submit::SubmitError;
pub use weft_scheduler::{
    AddError, CostModel, EvictionKind, PoolUse, ResidencyCounters, ResidentAdapter,
};
