//! The flags of `weft bench calibrate`.

use super::serve::EngineArgs;
use clap::Args;
use std::path::PathBuf;

/// `weft bench calibrate`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Times steps of the real model (1 to 64 decodes, prefills of 16 to 512 tokens, 0 to 32 adapters of
ranks 8, 16 and 64) and copies of adapters to the device, and fits
  seconds of a step = step_s + token_s * tokens + rank_s * sum of the distinct adapters' ranks
  seconds of a load = load_s + load_chunk_s * chunks
Leave the machine alone meanwhile: what else runs is measured, too.

Examples:
  weft bench calibrate smollm2-135m-instruct --json costs.json
  weft bench simulate --workload trace --trace monday.jsonl --costs costs.json")]
pub struct BenchCalibrateArgs {
    /// A GGUF file, a Hugging Face directory, or the name of a known model.
    pub model: String,
    /// Where the cost model goes, for `weft bench simulate --costs`.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measurements of each step and load, of which the median counts.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub repeats: usize,
    /// Make relative errors small, not those in seconds: better for short steps, worse for long ones.
    #[arg(long)]
    pub relative: bool,
    /// How to run the model.
    #[command(flatten)]
    pub engine: EngineArgs,
}
