//! The flags of `weft bench simulate`.

use crate::size::ByteSize;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use weft_bench::{Popularity, SLoraSetting};
use weft_engine::EvictionKind;

/// Where requests come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WorkloadChoice {
    /// S-LoRA's generator: a power law over adapters, Gamma gaps, 8 to 511 tokens in and out.
    #[default]
    Slora,
    /// Punica's: a closed loop, short lognormal prompts, up to 2048 tokens.
    Punica,
    /// A file that `weft serve --record-trace` wrote.
    Trace,
}

/// `weft bench simulate`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Only time is simulated: scheduler, memory pool and eviction are the server's own. The costs of steps
and loads are those of the demo base on two cores, or what `weft bench calibrate MODEL` prints.

Examples:
  weft bench simulate --workload slora --adapters 1000 --requests 1000000 --seed 1 --json
  weft bench simulate --adapters 200 --alpha 0.3 --memory 512MiB --eviction lru
  weft bench simulate --workload punica --distribution zipf --requests 1024
  weft bench simulate --workload trace --trace monday.jsonl --costs costs.json
  weft bench simulate --adapters 8 --flood 10        a second tenant sends ten times as much")]
pub struct BenchSimulateArgs {
    /// Where requests come from.
    #[arg(long, value_enum, default_value_t)]
    pub workload: WorkloadChoice,
    /// The file of `--workload trace`.
    #[arg(long, value_name = "FILE", required_if_eq("workload", "trace"))]
    pub trace: Option<PathBuf>,
    /// Adapters that there are; 0 sends all to the base.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub adapters: u32,
    /// Requests to send.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub requests: u64,
    /// Same seed, same requests.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// S-LoRA's setting, which says the adapters' ranks: S1 to S6.
    #[arg(long, default_value_t = SLoraSetting::S1, value_name = "S")]
    pub setting: SLoraSetting,
    /// S-LoRA's popularity: 1 is uniform, smaller is more skewed.
    #[arg(long, default_value_t = 1.0)]
    pub alpha: f64,
    /// Requests per second. Default: nine tenths of what the device can do.
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Burstiness: coefficient of variation of the gaps.
    #[arg(long, default_value_t = 1.0, value_name = "CV")]
    pub cv: f64,
    /// Punica's popularity: identical, distinct, uniform or geometric.
    #[arg(long, default_value = "uniform")]
    pub distribution: Popularity,
    /// A second tenant, with adapters of its own, sends so many times as much.
    #[arg(long, value_name = "FACTOR")]
    pub flood: Option<f64>,
    /// The device's memory for KV cache and adapters.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub memory: ByteSize,
    /// Bytes of a chunk of it: sixteen tokens of KV cache.
    #[arg(long, default_value_t = 368_640, value_name = "BYTES")]
    pub chunk_bytes: usize,
    /// Bytes of an adapter for each unit of its rank, where a recorded trace does not say them.
    #[arg(long, default_value_t = 610_560, value_name = "BYTES")]
    pub bytes_per_rank: u64,
    /// Requests computed together.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_num_seqs: usize,
    /// Tokens computed together.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub max_num_batched_tokens: usize,
    /// Milliseconds that a step should take while requests decode; 0 is any time.
    #[arg(long, default_value_t = 100, value_name = "MS")]
    pub target_step_ms: u64,
    /// Requests that may wait; more are refused.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_waiting: usize,
    /// What leaves the memory first: gdsf, lru or chameleon.
    #[arg(long, default_value = "gdsf")]
    pub eviction: EvictionKind,
    /// Costs of steps and loads, as `weft bench calibrate` writes them.
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
