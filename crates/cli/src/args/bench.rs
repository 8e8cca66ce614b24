//! The flags of `weft bench`.

use super::calibrate::BenchCalibrateArgs;
use super::kernels::BenchKernelsArgs;
use super::serve::{AdapterArgs, EngineArgs};
use super::simulate::BenchSimulateArgs;
use super::trace::BenchTraceArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use weft_bench::{LengthRange, Popularity};

/// What adapters with random weights adapt.
const ALL_LINEARS: &str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";

/// `weft bench`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Load a running OpenAI-compatible server over HTTP.
    Serve(BenchServeArgs),
    /// Load the engine in this process, without HTTP.
    Engine(Box<BenchEngineArgs>),
    /// Run the scheduler over a trace, with a cost model in place of the model.
    Simulate(BenchSimulateArgs),
    /// Measure what steps and loads cost here, for the cost model of `simulate`.
    Calibrate(BenchCalibrateArgs),
    /// Check and time each kernel of a GPU at the shapes of a model.
    Kernels(BenchKernelsArgs),
    /// Write PEFT directories with random weights, to have adapters to measure with.
    Adapters(BenchAdaptersArgs),
    /// Write a trace of requests, or sort a recorded one by arrival.
    Trace(BenchTraceArgs),
}

/// What is sent, and when.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub struct LoadArgs {
    /// How requests spread over the adapters: identical, distinct, uniform, zipf[:S] (1/i^S),
    /// geometric[:R] (each R times the next: Punica's "Zipf-1.5"), power[:A] (S-LoRA's).
    #[arg(long, default_value = "distinct")]
    pub distribution: Popularity,
    /// Requests to send.
    #[arg(long, default_value_t = 48, value_name = "N")]
    pub num_requests: usize,
    /// Prompt tokens: a number or a range such as 8-511.
    #[arg(long, default_value = "128", value_name = "N|A-B")]
    pub input_len: LengthRange,
    /// Output tokens, end-of-sequence ignored: a number or a range.
    #[arg(long, default_value = "64", value_name = "N|A-B")]
    pub output_len: LengthRange,
    /// Closed loop: so many clients, each sends its next request when the last one ended.
    #[arg(long, default_value_t = 8, value_name = "N", conflicts_with = "rate")]
    pub concurrency: usize,
    /// Open loop: requests per second, whoever is still waiting.
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Burstiness of the open loop: coefficient of variation of the gaps. 1 is Poisson.
    #[arg(long, default_value_t = 1.0, value_name = "CV", requires = "rate", alias = "burstiness")]
    pub cv: f64,
    /// Requests sent one by one before the clock starts, each adapter in turn.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub warmup: usize,
    /// First tokens of all prompts that are the same, for prefix caches to find.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub shared_prefix: usize,
    /// Prompts are random ids of this range: LOW-HIGH, HIGH excluded.
    #[arg(long, default_value = "1000-30000", value_name = "LOW-HIGH")]
    pub token_ids: LengthRange,
    /// Same seed, same workload.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Seconds after which a request is given up.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub max_request_time: u64,
    /// Seconds after which the whole run ends.
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    pub max_time: u64,
    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which route `weft bench serve` measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EndpointChoice {
    /// /v1/completions
    #[default]
    Completions,
    /// /v1/chat/completions
    Chat,
}

/// How prompts travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PromptStyleChoice {
    /// As token ids (Weft, vLLM, SGLang).
    #[default]
    TokenIds,
    /// As words, their number set by the server's /tokenize if it has one.
    Text,
}

/// How a request says which adapter it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AdapterNamingChoice {
    /// As its model (Weft, vLLM, SGLang).
    #[default]
    Model,
    /// By its number in the field `lora` (llama-server, started with the adapters in this order).
    LoraId,
}

/// `weft bench serve`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  weft bench serve --concurrency 16                                 the base alone
  weft bench serve --adapters all --concurrency 16                  every listed adapter in turn
  weft bench serve --adapter-prefix r8- --num-adapters 16           r8-0 … r8-15
  weft bench serve --user acme --adapter-prefix r8- --num-adapters 4       as one of several tenants
  weft bench serve --adapters all --distribution zipf --rate 4      Poisson arrivals, Zipf 1.5
  weft bench serve --adapters a,b --distribution power:0.3 --rate 2 --input-len 8-511 --output-len 8-511")]
pub struct BenchServeArgs {
    /// The server; plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Name of the base. Default: the first model that the server lists without a parent.
    #[arg(long)]
    pub model: Option<String>,
    /// Adapters to ask for, separated by commas; `all` is every one that the server lists.
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    pub adapters: Vec<String>,
    /// Ask for PREFIX0, PREFIX1, … up to --num-adapters.
    #[arg(long, value_name = "PREFIX", requires = "num_adapters", conflicts_with = "adapters")]
    pub adapter_prefix: Option<String>,
    /// How many adapters: with --adapters, only the first N.
    #[arg(long, value_name = "N")]
    pub num_adapters: Option<usize>,
    /// Which route.
    #[arg(long, value_enum, default_value_t)]
    pub endpoint: EndpointChoice,
    /// How prompts travel; chat is always text.
    #[arg(long, value_enum, default_value_t)]
    pub prompt_style: PromptStyleChoice,
    /// How a request says which adapter it wants.
    #[arg(long, value_enum, default_value_t)]
    pub adapter_naming: AdapterNamingChoice,
    /// Opens a connection for each request: llama-server closes some that would be used again.
    #[arg(long)]
    pub new_connections: bool,
    /// Sent as a bearer token.
    #[arg(long, env = "WEFT_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Sent as the `user` of each request: whose tenant is asking.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What is sent, and when.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// `weft bench engine`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  weft bench engine smollm2-135m-instruct --concurrency 16
  weft bench engine model.gguf --adapter-dir ./r8 --concurrency 16 --num-requests 96
  weft bench engine llama-3.1-8b --load-format dummy --device cuda --adapters 32 --concurrency 32")]
pub struct BenchEngineArgs {
    /// A GGUF file, a Hugging Face directory, or the name of a known model.
    pub model: String,
    /// So many adapters with random weights, made in memory.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Adapters")]
    pub adapters: usize,
    /// Their ranks, taken in turn.
    #[arg(
        long,
        visible_alias = "rank",
        value_delimiter = ',',
        default_value = "16",
        value_name = "R,…",
        help_heading = "Adapters"
    )]
    pub ranks: Vec<usize>,
    /// Their linears, by Hugging Face names or without `_proj`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = ALL_LINEARS,
        value_name = "M,…",
        help_heading = "Adapters"
    )]
    pub target_modules: Vec<String>,
    /// Which adapters; every one is asked for.
    #[command(flatten)]
    pub adapter_args: AdapterArgs,
    /// How to run the model.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// What is sent, and when.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// `weft bench adapters`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Example:
  weft bench adapters ./mixed --model smollm2-135m-instruct --num 32 --ranks 8,16,64
  weft serve smollm2-135m-instruct --adapter-dir ./mixed")]
pub struct BenchAdaptersArgs {
    /// Where to; adapter i becomes the sub-directory PREFIX<i>.
    pub dir: PathBuf,
    /// The base that they must fit.
    #[arg(long)]
    pub model: String,
    /// How many.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub num: usize,
    /// Ranks, taken in turn.
    #[arg(long, value_delimiter = ',', default_value = "8", value_name = "R,…")]
    pub ranks: Vec<usize>,
    /// Linears of each layer, by their Hugging Face names or without `_proj`. Fewer make smaller
    /// adapters: q,v a fifth of all seven.
    #[arg(
        long,
        visible_alias = "targets",
        value_delimiter = ',',
        default_value = ALL_LINEARS,
        value_name = "M,…"
    )]
    pub target_modules: Vec<String>,
    /// Beginning of the names.
    #[arg(long, default_value = "r-")]
    pub prefix: String,
    /// Same seed, same weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}
