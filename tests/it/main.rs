//! End-to-end tests: one binary, so that it links once.
//!
//! * `golden`: logits and tokens against files made by transformers and peft.
//! * `isolation`: a request's tokens and log probabilities have the same bits whatever runs beside it.
//! * `equivalence`: an adapter applied at run time equals the adapter merged into the weights.
//! * `producers`: directories as training tools leave them.
//! * `tools`: adapters merged, extracted, quantized and converted compute what they did.
//! * `cuda`: the CUDA device, on the emulated driver, answers as the CPU does.
//! * `http`: the server over real sockets with the demo model and adapters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cuda;
mod equivalence;
mod golden;
mod http;
mod isolation;
mod producers;
mod support;
mod tools;
