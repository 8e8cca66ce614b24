//! The `weft` command. In: argv, the environment. Out: a running server, a report, an exit status.
//!
//! The only crate that sees both the server and the model; it joins them through `dyn Executor`
//! ([`device`]). Each command is one module ([`mod@serve`], [`pull`], [`check`], [`inspect`],
//! [`adapter_tools`], [`bench`]); [`args`] is their flags and [`mod@run`] chooses between them.

pub mod adapter_flags;
pub mod adapter_list;
pub mod adapter_sources;
pub mod adapter_tools;
pub mod announcement;
pub mod args;
pub mod bench;
pub mod bench_kernels;
pub mod cache;
pub mod calibrate;
pub mod check;
mod cores;
pub mod demo;
pub mod device;
pub mod engine_target;
pub mod findings;
pub mod inspect;
pub mod known_models;
pub mod machine;
pub mod model_source;
pub mod next_steps;
pub mod output;
pub mod pip;
pub mod progress;
pub mod pull;
pub mod random_adapters;
pub mod run;
pub mod serve;
pub mod signals;
pub mod simulate;
pub mod size;
pub mod text_side;
pub mod trace_source;
