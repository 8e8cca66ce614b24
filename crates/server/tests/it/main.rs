//! The server over HTTP on a loopback port: the real router, engine, registry and tokenizer, and a
//! model that repeats its prompt.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod adapters;
mod chat;
mod completions;
mod compositions;
mod disconnect;
mod errors;
mod harness;
mod malformed;
mod models;
mod observe;
mod parrot;
mod queueing;
mod sampling;
mod sources;
mod streaming;
mod tokenize;
mod tokenizer_files;
mod trace;
