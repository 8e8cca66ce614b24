//! The flags of `weft bench kernels`.

use super::serve::DeviceChoice;
use clap::Args;
use std::path::PathBuf;

/// `weft bench kernels`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Every kernel of kernels/README.md at the shapes of a model: its error against an f64 reference on a
sample of outputs, and, on a real GPU, the median time by the driver's events, over inputs that no
cache holds. The bound of a row is the longer of its bytes and its operations, at the rates of our own
copy and our own largest linear, which are measured first. Ends with status 1 if an error is larger
than rounding explains.

Examples:
  weft bench kernels                                     llama-3.1-8b, all kernels
  weft bench kernels --filter 'BGMV q k v' --json lora.json
  compute-sanitizer weft bench kernels --shapes tiny --repeats 0")]
pub struct BenchKernelsArgs {
    /// A config.json, or the name of a shape: llama-2-7b, llama-3.1-8b, qwen2.5-7b, tiny.
    #[arg(long, default_value = "llama-3.1-8b", value_name = "MODEL")]
    pub shapes: PathBuf,
    /// Only rows whose kernel and shape, as they are printed, contain this.
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Measurements of each, of which the median counts; 0 only looks at errors.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub repeats: usize,
    /// Also write all rows as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where: these are kernels of a GPU.
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cuda)]
    pub device: DeviceChoice,
}
