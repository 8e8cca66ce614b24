//! The real scheduler, memory pool and eviction over a trace of requests, with a cost model in
//! place of the device and a clock that jumps from step to step: a million requests in a minute.
//!
//! In: requests by arrival, a [`SimulationConfig`]. Out: a [`SimReport`]. What is simulated is only
//! how long steps and loads take ([`CostModel`], as `weft bench calibrate` fits it) and which tokens
//! come out, which nothing depends on. Same input, same output.

mod device;
mod fit;
mod simulation;
#[cfg(test)]
mod tests;

pub use fit::{Errors, FittedCosts, LoadPoint, StepPoint, fit_costs};
pub use simulation::{SimulationConfig, simulate};
pub use weft_bench::SimReport;
pub use weft_scheduler::{CostModel, EvictionKind, SchedulerConfig};
