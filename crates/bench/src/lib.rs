//! Load generator: makes a workload from a seed, drives a target with it, reports what it saw.
//!
//! * [`workload`]: which request goes to which adapter, when, with which tokens. Pure.
//! * [`popularity`] and [`arrivals`]: its two distributions; [`rng`]: their only source of chance.
//! * [`drive`](mod@drive): runs a workload against a [`Target`], closed loop or at given times.
//! * [`http`]: the target for any OpenAI-compatible server.
//! * [`report`]: percentiles of what was measured, as JSON and as a table.
//! * [`synthetic`]: traces from a seed, as a simulator replays them and [`weft_trace`] writes them.
//! * [`sim_report`]: what a simulation amounts to; [`log_histogram`]: percentiles in little memory.
//! * [`adapters`]: writes PEFT directories with random weights, to have something to serve.
//!
//! Knows no server, engine or model of this workspace: whoever joins them implements [`Target`].

pub mod adapters;
pub mod arrivals;
pub mod drive;
pub mod http;
pub mod log_histogram;
pub mod popularity;
pub mod report;
pub mod rng;
pub mod sim_report;
mod sse;
pub mod synthetic;
pub mod workload;

pub use adapters::{AdapterRecipe, write_adapter};
pub use arrivals::Arrivals;
pub use drive::{DriveLimits, RequestRecord, Run, Target, TokenClock, drive};
pub use http::{AdapterNaming, Endpoint, HttpConfig, HttpError, HttpTarget, PromptStyle};
pub use log_histogram::LogHistogram;
pub use popularity::Popularity;
pub use report::Report;
pub use sim_report::{SimRecorder, SimReport};
pub use synthetic::{SLoraLoad, SLoraSetting, SyntheticTrace};
pub use weft_trace as trace;
pub use weft_trace::{
    TraceAdapter, TraceError, TraceHeader, TraceReader, TraceRequest, TraceWriter,
};
pub use workload::{BenchRequest, LengthRange, Workload, WorkloadConfig, WorkloadError};
