//! The HTTP face of Weft: OpenAI's routes, vLLM's adapter routes and metric names.
//!
//! In: an engine, adapters, a tokenizer and a listener. Out: answers. Sees neither model nor
//! executor: those it knows through `weft_engine::EngineHandle` only.
//!
//! The life of a request here: [`router`] → `json` (body to fields) → `routes/openai/*` (fields to
//! a typed request, adapter, tokens) → `generation` (tokens to text) → `sse` or one JSON body.
//! What goes wrong on the way is an `error::ApiError`.

mod access;
mod app;
mod error;
mod fields;
mod generation;
mod json;
mod metrics;
mod offload;
mod random;
mod routes;
mod shutdown;
mod sse;
mod state;
mod trace_recorder;

pub use app::router;
pub use shutdown::serve;
pub use state::{AppState, ServerConfig};
pub use trace_recorder::TraceRecorder;
