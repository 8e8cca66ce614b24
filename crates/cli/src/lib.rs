//! The `weft` command. In: argv, the environment. Out: a running server, a report, an exit status.
//!
//! The only crate that sees both the server and the model; it joins them through `dyn Executor`
//! ([`device`]). Each command is one module; [`args`] is their flags.

pub mod args;
pub mod cache;
pub mod known_models;
pub mod pip;
pub mod pull;
pub mod size;
