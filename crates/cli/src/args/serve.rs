//! The flags of `weft serve`, in groups that other commands share. vLLM's spellings are accepted
//! where they mean the same, and accepted without effect where Weft needs no such limit.

use crate::args::SourceArgs;
use crate::size::ByteSize;
use clap::{Args, Parser, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use weft_engine::EvictionKind;

/// `weft serve`
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  weft serve --demo
  weft serve model.gguf --adapter sql=./adapters/sql --adapter json=./adapters/json
  weft serve ./Llama-3.2-1B --quantize int8 --adapter-dir ./adapters --port 9000
  weft serve smollm2-135m-instruct --memory 2GiB --max-model-len 4096
  weft serve model.gguf --adapter-dir ./adapters --record-trace monday.jsonl

Flags that show an [env: …] can be given as that variable, for example WEFT_PORT=9000; the flag wins.
Adapters are chosen by the `model` field of a request.")]
pub struct ServeArgs {
    /// A GGUF file, a Hugging Face directory, or the name of a known model (see `weft pull --list`).
    #[arg(required_unless_present = "demo", conflicts_with = "demo", env = "WEFT_MODEL")]
    pub model: Option<String>,
    /// Serve a small base, fetched on first use, with the adapters of demo/adapters.
    #[arg(long)]
    pub demo: bool,
    /// Where the demo's adapters are, if not in demo/adapters here or beside the program.
    #[arg(long, env = "WEFT_DEMO_DIR", value_name = "DIR", requires = "demo")]
    pub demo_dir: Option<PathBuf>,
    /// Which adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// How to run the model.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1", env = "WEFT_HOST", help_heading = "HTTP")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000, env = "WEFT_PORT", help_heading = "HTTP")]
    pub port: u16,
    /// Name of the base in requests and answers; may be given several times.
    #[arg(
        long,
        value_delimiter = ',',
        env = "WEFT_SERVED_MODEL_NAME",
        value_name = "NAME",
        help_heading = "HTTP"
    )]
    pub served_model_name: Vec<String>,
    /// Open /v1/load_lora_adapter, /v1/unload_lora_adapter and the pinning of adapters. Whoever reaches
    /// the port can then make the server read any directory that it can read, or what
    /// --adapter-source-allow says.
    #[arg(long, env = "WEFT_ALLOW_RUNTIME_ADAPTERS", help_heading = "Adapters")]
    pub allow_runtime_adapters: bool,
    /// Requests that may wait for their turn; more are refused with status 503.
    #[arg(long, default_value_t = 1024, env = "WEFT_MAX_QUEUE", help_heading = "HTTP")]
    pub max_queue: usize,
    /// Seconds that a request may wait for its turn, unless it says otherwise (`queue_timeout`): then
    /// it is refused with status 429, at once if that can be foreseen. Default: any time.
    #[arg(long, env = "WEFT_QUEUE_TIMEOUT", value_name = "SECONDS", help_heading = "HTTP")]
    pub queue_timeout: Option<f64>,
    /// A tenant's share of the machine when others want it, too; others have 1. A tenant is the
    /// `user` of a request.
    #[arg(
        long,
        value_delimiter = ',',
        env = "WEFT_TENANT_WEIGHT",
        value_name = "USER=WEIGHT",
        help_heading = "HTTP"
    )]
    pub tenant_weight: Vec<String>,
    /// Write a line for each request that ends to a new file: when it came, its model, tenant and
    /// numbers of tokens; no text, no API key. `weft bench simulate --workload trace` replays it.
    #[arg(long, env = "WEFT_RECORD_TRACE", value_name = "FILE", help_heading = "HTTP")]
    pub record_trace: Option<PathBuf>,
}

impl ServeArgs {
    /// Parses flags as `weft serve` would, without the program and command names.
    ///
    /// # Errors
    /// clap's, with the text for the user.
    pub fn parse_flags<I>(flags: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        #[derive(Parser)]
        #[command(name = "weft serve", no_binary_name = true)]
        struct Flags {
            #[command(flatten)]
            serve: ServeArgs,
        }
        Flags::try_parse_from(flags).map(|flags| flags.serve)
    }
}

/// What adapters' weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AdapterDtypeChoice {
    /// As in the files.
    #[default]
    Auto,
    /// Half precision.
    #[value(alias = "float16")]
    F16,
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Eight bits, with a scale for each rank.
    #[value(alias = "i8")]
    Int8,
}

/// Which adapters are served, and from which memory.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterArgs {
    /// An adapter, loaded at start: a directory, or hf://org/name[@revision][/folder],
    /// s3://bucket/prefix, gs://…, az://…, https://host/folder/; may be given several times.
    /// NAME=compose:A+0.5*B is a composition of adapters that were given before it, lie in the adapter
    /// directory, or are found by --adapter-resolver.
    #[arg(long = "adapter", value_name = "NAME=PATH|URI")]
    pub adapter: Vec<String>,
    /// Every sub-directory is an adapter of that name, loaded when first asked for.
    #[arg(long, env = "WEFT_ADAPTER_DIR", value_name = "DIR")]
    pub adapter_dir: Option<PathBuf>,
    /// Adapters of a larger rank are refused. Ranks are never padded, so a high limit costs nothing.
    #[arg(long, default_value_t = 512, env = "WEFT_MAX_LORA_RANK", value_name = "N")]
    pub max_lora_rank: usize,
    /// Host memory for adapters, such as 8GiB. What finds no room goes back to where it came from
    /// and is read again when it is asked for. Default: as much as they need.
    #[arg(long, env = "WEFT_ADAPTER_HOST_MEMORY", value_name = "SIZE")]
    pub adapter_host_memory: Option<ByteSize>,
    /// Convert adapters' weights while loading.
    #[arg(long, value_enum, default_value_t, env = "WEFT_ADAPTER_DTYPE")]
    pub adapter_dtype: AdapterDtypeChoice,
    /// An adapter that is loaded at start and stays in host memory, and once it was used on the
    /// device; may be given several times.
    #[arg(long, value_delimiter = ',', env = "WEFT_PIN", value_name = "NAME")]
    pub pin: Vec<String>,
    /// Where adapters may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// vLLM's spelling of --adapter: NAME=PATH …, or JSON objects with name and path.
    #[arg(long, num_args = 1.., value_name = "NAME=PATH|JSON")]
    pub lora_modules: Vec<String>,
    /// vLLM's switch; adapters are always on.
    #[arg(long, hide = true)]
    pub enable_lora: bool,
    /// vLLM's limit of adapters in one batch; there is none here.
    #[arg(long, hide = true, value_name = "N")]
    pub max_loras: Option<usize>,
    /// vLLM's limit of adapters in memory; here it is --adapter-host-memory, in bytes.
    #[arg(long, hide = true, value_name = "N")]
    pub max_cpu_loras: Option<usize>,
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The best device of this machine.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU that Weft can use; `weft check` says which.
    Cuda,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// The model's files.
    #[default]
    Auto,
    /// Random numbers, made on a GPU.
    Dummy,
}

/// Where packed weights are kept for the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeightCacheChoice {
    /// In `packed` of the directory of fetched models.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// Here.
    Dir(PathBuf),
}

impl From<OsString> for WeightCacheChoice {
    fn from(given: OsString) -> Self {
        match given.to_str() {
            Some("auto") => Self::Auto,
            Some("off") => Self::Off,
            _ => Self::Dir(given.into()),
        }
    }
}

/// Whether threads that compute are bound to processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PinThreads {
    /// Where whole processors are this process's own, and one is left for everything else.
    #[default]
    Auto,
    /// Always; refused where there are fewer processors than threads.
    On,
    /// Never.
    Off,
}

/// What to do with the float weights of a Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum QuantizeChoice {
    /// Keep them.
    #[default]
    None,
    /// Eight bits.
    Int8,
    /// Four bits.
    Int4,
    /// Four bits as bitsandbytes makes them: the base that QLoRA adapters were trained on.
    Nf4,
    /// The same with double quantization, QLoRA's default.
    #[value(name = "nf4-dq")]
    Nf4DoubleQuant,
}

/// The element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    /// On the CPU f32 under a float32 model, else f16; on a GPU as --dtype.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Half precision.
    #[value(alias = "float16")]
    F16,
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Signed 8-bit integers with a scale for each token's key and value of a head: on the CPU, little
    /// more than half the memory of f16.
    #[value(alias = "i8")]
    Int8,
    /// Eight bits (e4m3) without scales: on GPUs, half the memory of f16.
    #[value(alias = "fp8_e4m3")]
    Fp8,
}

/// What activations are on the CPU when they meet integer weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuActivationsChoice {
    /// 12-bit integers in groups of 32: about as precise as half floats.
    Int12,
    /// 8-bit integers in groups of 32: 5 to 10 % less time on AMX, up to twice the speed of linears on AVX2;
    /// perplexity changes by about half a percent (int12: 0.03 %).
    #[value(alias = "i8")]
    Int8,
    /// Single precision, as weights become in registers: the reference, much slower.
    #[value(alias = "float32")]
    F32,
}

/// Which instructions the CPU's kernels use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CpuIsaChoice {
    /// The widest that this machine has.
    #[default]
    Auto,
    /// AVX-512 VNNI and AMX tiles of 8-bit integers.
    Amx,
    /// AVX-512 VNNI.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON with dot products.
    NeonDot,
    /// NEON.
    Neon,
    /// What every processor has: slow.
    Portable,
}

/// The element type of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// f16 on a GPU; the CPU computes in f32.
    #[default]
    Auto,
    /// Half precision.
    #[value(aliases = ["float16", "half"])]
    F16,
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
}

/// How the model runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Where the model runs.
    #[arg(long, value_enum, default_value_t, env = "WEFT_DEVICE")]
    pub device: DeviceChoice,
    /// Memory that KV cache and adapters share, such as 2GiB. Default: a quarter of the free memory,
    /// at most 4GiB.
    #[arg(long, env = "WEFT_MEMORY", value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Longest prompt and output together, in tokens. Default: what the model was trained for, or
    /// what the memory holds.
    #[arg(long, env = "WEFT_MAX_MODEL_LEN", value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Requests computed together.
    #[arg(long, default_value_t = 64, env = "WEFT_MAX_NUM_SEQS", value_name = "N")]
    pub max_num_seqs: usize,
    /// Tokens computed together; long prompts are cut into chunks of this.
    #[arg(long, default_value_t = 512, env = "WEFT_MAX_NUM_BATCHED_TOKENS", value_name = "N")]
    pub max_num_batched_tokens: usize,
    /// Milliseconds that a step should take while requests decode: prompts are computed in chunks
    /// that fit. Less is smoother output, more is a little more throughput; 0 is any time.
    #[arg(long, default_value_t = 100, env = "WEFT_TARGET_STEP_MS", value_name = "MS")]
    pub target_step_ms: u64,
    /// Shrink the float weights of a Hugging Face checkpoint while loading. GGUF files stay as
    /// they are; checkpoints of bitsandbytes, GPTQ and AWQ need nothing.
    #[arg(long, value_enum, default_value_t, env = "WEFT_QUANTIZE", alias = "quantization")]
    pub quantize: QuantizeChoice,
    /// Where the weights are kept as the CPU multiplies them (about as large as the model), so that later
    /// starts map them instead of packing the model's files anew: a directory, `off`, or `auto`, which is
    /// `packed` in $WEFT_CACHE, $XDG_CACHE_HOME/weft or ~/.cache/weft. What is not used for 30 days is
    /// removed, and the oldest while all take more than 32 GiB.
    #[arg(long, default_value = "auto", env = "WEFT_WEIGHT_CACHE", value_name = "auto|off|DIR")]
    pub weight_cache: WeightCacheChoice,
    /// Where weights come from. With `dummy` MODEL is a config.json, or the name of a shape
    /// (llama-2-7b, llama-3.1-8b, qwen2.5-7b), and answers are nonsense at real speed.
    #[arg(long, value_enum, default_value_t, env = "WEFT_LOAD_FORMAT")]
    pub load_format: LoadFormat,
    /// Element type of activations on a GPU.
    #[arg(long, value_enum, default_value_t, env = "WEFT_DTYPE")]
    pub dtype: DtypeChoice,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value_t, env = "WEFT_KV_CACHE_DTYPE")]
    pub kv_cache_dtype: KvCacheDtype,
    /// What activations are when they meet integer weights (4- to 8-bit GGUF, --quantize int8 and int4) on
    /// the CPU. Default: int12. Others, and adapters, are computed in single precision.
    #[arg(long, value_enum, env = "WEFT_CPU_ACTIVATIONS")]
    pub cpu_activations: Option<CpuActivationsChoice>,
    /// Which instructions compute on the CPU: to measure what wider ones bring, or to go without them.
    #[arg(long, value_enum, default_value_t, env = "WEFT_CPU_ISA")]
    pub cpu_isa: CpuIsaChoice,
    /// Threads that compute; 0 is one per core.
    #[arg(long, default_value_t = 0, env = "WEFT_THREADS", value_name = "N")]
    pub threads: usize,
    /// Bind each of these threads to a processor. auto: if the machine has one more than threads.
    #[arg(long, value_enum, default_value_t, env = "WEFT_PIN_THREADS")]
    pub pin_threads: PinThreads,
    /// Which idle adapters and prefixes leave the memory first: gdsf (by frequency, cost and size),
    /// lru or chameleon.
    #[arg(long, default_value = "gdsf", env = "WEFT_EVICTION", value_name = "POLICY")]
    pub eviction: EvictionKind,
    /// Compute every prompt in full, even if its beginning was seen before.
    #[arg(long, env = "WEFT_NO_PREFIX_CACHING", alias = "no-enable-prefix-caching")]
    pub no_prefix_caching: bool,
    /// vLLM's switch; prefix caching is on unless switched off.
    #[arg(long, hide = true, conflicts_with = "no_prefix_caching")]
    pub enable_prefix_caching: bool,
}
