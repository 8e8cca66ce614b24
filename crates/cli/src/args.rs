//! The command line as data. In: argv and `WEFT_*` variables. Out: one struct per command, with the
//! text of `--help` beside each field. Decides nothing.

pub mod adapter;
pub mod bench;
pub mod calibrate;
pub mod kernels;
pub mod serve;
pub mod simulate;
pub mod sources;
pub mod trace;

pub use adapter::{
    AdapterCommand, AdapterLsArgs, ConvertArgs, ExtractArgs, InspectArgs, MergeArgs, QuantizeArgs,
};
pub use bench::{BenchAdaptersArgs, BenchCommand, BenchEngineArgs, BenchServeArgs, LoadArgs};
pub use calibrate::BenchCalibrateArgs;
pub use kernels::BenchKernelsArgs;
pub use serve::{AdapterArgs, EngineArgs, ServeArgs};
pub use simulate::BenchSimulateArgs;
pub use sources::{AdapterPullArgs, SourceArgs};
pub use trace::{BenchTraceArgs, TraceArgs};

use clap::{Args, Parser, Subcommand};

/// Serves one base model with many LoRA adapters, through the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "weft", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; nothing prints what could be next.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How much to log: error, warn, info, debug, or per module as in `weft_server=debug`.
    #[arg(long, global = true, default_value = "info", env = "WEFT_LOG", value_name = "LEVEL")]
    pub log: String,
    /// Log one JSON object per line.
    #[arg(long, global = true, env = "WEFT_LOG_JSON")]
    pub log_json: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft serve --demo                           a small base with five adapters, fetched on first use
  weft serve model.gguf --adapter sql=./sql   your own base and adapter
  weft check model.gguf --adapter sql=./sql   will it work here?
  weft bench serve --url http://127.0.0.1:8000 --adapters all";

/// What `weft` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a base model and its adapters over HTTP.
    Serve(Box<ServeArgs>),
    /// Fetch a known model, or an adapter by its URI, into the cache and verify it.
    Pull(PullArgs),
    /// Say whether this machine, a model and its adapters will work.
    Check(CheckArgs),
    /// Look at adapters.
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Measure a server, or the engine alone.
    #[command(subcommand)]
    Bench(Box<BenchCommand>),
}

/// `weft pull`
#[derive(Args, Debug)]
#[command(after_help = "\
Models are kept in $WEFT_CACHE, or $XDG_CACHE_HOME/weft, or ~/.cache/weft.
A file that is already there is verified, not fetched again.")]
pub struct PullArgs {
    /// Name of a known model, or the URI of an adapter as for `weft adapter pull`.
    #[arg(default_value = crate::known_models::DEMO_MODEL.name)]
    pub name: String,
    /// List the known models and what the cache holds of them.
    #[arg(long)]
    pub list: bool,
}

/// `weft check`
#[derive(Args, Debug)]
#[command(after_help = "\
Prints one line per finding: PASS, WARN or FAIL. Ends with status 1 if anything failed.")]
pub struct CheckArgs {
    /// A GGUF file, a Hugging Face directory, or the name of a known model.
    pub model: Option<String>,
    /// Adapters to check against the model.
    #[command(flatten)]
    pub adapters: AdapterArgs,
}

#[cfg(test)]
mod tests;
