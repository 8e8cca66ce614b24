//! The flags that say where a trace of requests comes from.

use clap::{Args, ValueEnum};
use std::path::PathBuf;
use weft_bench::{Popularity, SLoraSetting};

/// Whose synthetic requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Generator {
    /// Gaps Gamma, prompts and outputs uniform 8 to 511, ranks of a setting in turn.
    #[default]
    SLora,
    /// All there from the start, prompts lognormal, prompt and output together uniform below 2048,
    /// rank 16.
    Punica,
}

/// A recorded trace, or a generator and its seed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Trace")]
pub struct TraceArgs {
    /// A recorded trace; without it, one is made.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Whose synthetic requests.
    #[arg(long, value_enum, default_value_t, conflicts_with = "trace")]
    pub generator: Generator,
    /// S-LoRA's setting, S1 to S6: the ranks of the adapters.
    #[arg(long, default_value_t = SLoraSetting::S1, value_name = "S", conflicts_with = "trace")]
    pub setting: SLoraSetting,
    /// Adapters of each tenant; Punica's number follows from its distribution.
    #[arg(long, default_value_t = 200, value_name = "N", conflicts_with = "trace")]
    pub num_adapters: u32,
    /// How requests spread over the adapters: identical, distinct, uniform, zipf[:S], geometric[:R],
    /// power[:A]. Default: power:0.3, and uniform for Punica.
    #[arg(long, conflicts_with = "trace")]
    pub distribution: Option<Popularity>,
    /// Requests. Default: --rate times --duration, and 1000 for Punica.
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub num_requests: Option<u64>,
    /// Requests per second.
    #[arg(long, default_value_t = 10.0, value_name = "R", conflicts_with = "trace")]
    pub rate: f64,
    /// Burstiness: coefficient of variation of the gaps. 1 is Poisson.
    #[arg(long, default_value_t = 1.0, value_name = "CV", conflicts_with = "trace")]
    pub cv: f64,
    /// Seconds during which requests arrive.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", conflicts_with = "trace")]
    pub duration: f64,
    /// A second tenant, with adapters of its own, sends so many times as much.
    #[arg(long, value_name = "FACTOR", conflicts_with = "trace")]
    pub neighbour: Option<f64>,
    /// Same seed, same requests.
    #[arg(long, default_value_t = 0, conflicts_with = "trace")]
    pub seed: u64,
}

/// `weft bench trace`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  weft bench trace s1.jsonl --num-adapters 1000 --rate 20 --duration 300
  weft bench trace fair.jsonl --neighbour 10 --rate 1
  weft bench trace sorted.jsonl --trace recorded.jsonl")]
pub struct BenchTraceArgs {
    /// Where to; `-` is standard output.
    pub out: PathBuf,
    /// The base: its name, and the bytes that adapters of its seven linears would have. A GGUF file,
    /// a Hugging Face directory, or the name of a known model.
    #[arg(long)]
    pub model: Option<String>,
    /// Where the requests come from.
    #[command(flatten)]
    pub trace: TraceArgs,
}
