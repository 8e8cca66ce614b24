//! The one place that joins model and engine: flags and a path in, a boxed [`Executor`] out. Nobody
//! else here names the model, the runner or the kernels, but [`crate::bench_kernels`], which has no model
//! to run.

pub mod base_weights;
mod gpu;

use crate::args::EngineArgs;
use crate::args::serve::{
    CpuActivationsChoice, CpuIsaChoice, DeviceChoice, DtypeChoice, KvCacheDtype as KvCacheChoice,
    LoadFormat, PinThreads, QuantizeChoice, WeightCacheChoice,
};
use crate::cache::cache_dir;
use crate::progress::count_bar;
use crate::size::ByteSize;
use crate::{cores, machine};
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use weft_adapters::BaseWeights;
use weft_kernels::Isa;
use weft_kernels::kv::BLOCK_SIZE;
use weft_kernels::quantize::Activations;
use weft_model::{LoadOptions, LoadedModel, ModelConfig, Quantize, WeightCache};
use weft_runner::{CpuExecutor, KvCacheDtype, RunnerConfig, kv_block_bytes};
use weft_types::{BaseModelSpec, Executor, HeapPages, PageAllocator};

/// Without `--memory`, at most this goes to the KV cache.
const MAX_DEFAULT_MEMORY: u64 = 4 << 30;

/// What is taken where the system does not say what it has.
const FALLBACK_MEMORY: u64 = 1 << 30;

/// A model ready to run, and what to say of it.
pub struct BuiltExecutor {
    /// For the engine.
    pub executor: Box<dyn Executor>,
    /// For the adapters.
    pub spec: BaseModelSpec,
    /// Bytes of a chunk of its memory: of a page of an adapter.
    pub chunk_bytes: usize,
    /// Memory for those pages, from which its device copies them.
    pub pages: Arc<dyn PageAllocator>,
    /// For the adapters that need them; weights that were made up have none.
    pub base_weights: Option<Arc<dyn BaseWeights>>,
    /// For people.
    pub facts: ModelFacts,
}

/// What to tell the user about a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// `llama`, `qwen2`, …
    pub architecture: String,
    /// The linears in memory.
    pub weight_bytes: u64,
    /// KV cache and adapters.
    pub kv_bytes: u64,
    /// Tokens that the KV cache holds.
    pub kv_tokens: usize,
    /// The longest sequence.
    pub max_model_len: usize,
    /// What computes: instruction set and threads.
    pub device: String,
}

/// What computes on this machine.
#[must_use]
pub fn describe_device(isa: Isa, num_threads: usize) -> String {
    format!("CPU, {isa}, {} threads", num_threads_of(num_threads))
}

/// `--cpu-isa`.
///
/// # Errors
/// When this machine does not have it.
fn isa(choice: CpuIsaChoice) -> Result<Isa> {
    let wanted = match choice {
        CpuIsaChoice::Auto => return Ok(Isa::detect()),
        CpuIsaChoice::Amx => Isa::Amx,
        CpuIsaChoice::Avx512 => Isa::Avx512,
        CpuIsaChoice::Avx2 => Isa::Avx2,
        CpuIsaChoice::NeonDot => Isa::NeonDot,
        CpuIsaChoice::Neon => Isa::Neon,
        CpuIsaChoice::Portable => Isa::Portable,
    };
    let available = Isa::available();
    if !available.contains(&wanted) {
        let names: Vec<String> = available.iter().map(ToString::to_string).collect();
        bail!("--cpu-isa: this machine does not have {wanted}; it has {}", names.join(", "));
    }
    Ok(wanted)
}

/// `--threads`, of which 0 is one per core.
fn num_threads_of(asked: usize) -> usize {
    if asked == 0 { machine::num_cores() } else { asked }
}

/// Loads the model at `path` and makes an executor within the limits of `args`, for adapters
/// of up to `max_lora_rank`.
///
/// # Errors
/// A sentence about the model, or about flags that contradict each other.
pub fn build_executor(
    path: &Path,
    args: &EngineArgs,
    max_lora_rank: usize,
) -> Result<BuiltExecutor> {
    let gpu = match args.device {
        DeviceChoice::Cuda => Some(gpu::open()?),
        DeviceChoice::Auto => gpu::open_if_usable(),
        DeviceChoice::Cpu => None,
    };
    if let Some(gpu) = gpu {
        if args.pin_threads == PinThreads::On {
            bail!("--pin-threads is for threads that compute on the CPU: leave it out");
        }
        return gpu::build(&gpu, path, args, max_lora_rank);
    }
    let kv_dtype = asked_kv_dtype(args.kv_cache_dtype);
    kv_dtype.map(KvCacheDtype::on_cpu).transpose()?;
    if args.dtype != DtypeChoice::Auto {
        bail!("--dtype is for activations on a GPU; the CPU's are f32: leave it out");
    }
    if args.load_format == LoadFormat::Dummy {
        bail!("--load-format dummy makes weights on a GPU; it needs --device cuda");
    }
    let isa = isa(args.cpu_isa)?;
    let cores = cores::choose(args.pin_threads, num_threads_of(args.threads))?;
    let model = load(path, args, weight_cache(args))?;
    let kv_dtype = kv_dtype.unwrap_or_else(|| KvCacheDtype::default_on_cpu(&model));
    let bytes_per_token = kv_bytes_per_token(&model.config, kv_dtype);
    let plan = MemoryPlan::new(args, model.spec().max_context, bytes_per_token, default_memory())?;
    let (shape, weight_bytes) = (model.config.clone(), model.weight_bytes());
    let mut device = describe_device(isa, args.threads);
    if model.layer_formats().iter().any(|format| format.is_integer()) {
        let _ = write!(device, ", {} activations", activations(args));
    }
    let base_weights = Some(base_weights::in_memory(&model.weights));
    if !cores.is_empty() {
        device.push_str(", each bound to a processor");
    }
    let config = plan.runner_config(args, kv_dtype, max_lora_rank)?;
    let executor = CpuExecutor::new(model, &RunnerConfig { isa, cores, ..config })?;
    let built = BuiltExecutor::new(Box::new(executor), shape, weight_bytes, plan.kv_bytes, device);
    Ok(BuiltExecutor { base_weights, ..built })
}

impl BuiltExecutor {
    fn new(
        executor: Box<dyn Executor>,
        shape: ModelConfig,
        weight_bytes: usize,
        kv_bytes: u64,
        device: String,
    ) -> Self {
        let limits = executor.limits();
        Self {
            executor,
            spec: shape.spec,
            chunk_bytes: limits.chunk_bytes,
            pages: Arc::new(HeapPages),
            base_weights: None,
            facts: ModelFacts {
                architecture: shape.architecture,
                weight_bytes: weight_bytes as u64,
                kv_bytes,
                kv_tokens: limits.num_blocks * limits.block_size,
                max_model_len: limits.max_model_len,
                device,
            },
        }
    }
}

/// The shapes of the model at `path`. Loads it to find them.
///
/// # Errors
/// A sentence about the model.
pub fn read_spec(path: &Path) -> Result<BaseModelSpec> {
    Ok(read_base(path)?.0)
}

/// The shapes and weights of the model at `path`, as the checkpoint has them, and what they are, for
/// people.
///
/// # Errors
/// A sentence about the model.
pub fn read_base(path: &Path) -> Result<(BaseModelSpec, Arc<dyn BaseWeights>, String)> {
    let model = LoadedModel::load(path, &LoadOptions::default())?;
    let formats = model.layer_formats();
    let formats: Vec<String> = formats.iter().map(ToString::to_string).collect();
    let described = format!(
        "weights: {}; in memory {} (layers {}; embedding {})",
        model.origin,
        ByteSize(model.weight_bytes() as u64),
        formats.join(", "),
        model.weights.embedding.format()
    );
    Ok((model.spec().clone(), base_weights::in_memory(&model.weights), described))
}

/// What the model at `path` is, without its weights.
///
/// # Errors
/// A sentence about the model.
pub(crate) fn read_config(path: &Path) -> Result<ModelConfig> {
    Ok(LoadedModel::read_config(path)?)
}

/// The model as it is served without further flags.
///
/// # Errors
/// A sentence about the model.
pub(crate) fn load_for_tools(path: &Path) -> Result<LoadedModel> {
    Ok(LoadedModel::load(path, &LoadOptions::default())?)
}

/// The weights of a checkpoint, read when they are asked for.
///
/// # Errors
/// A sentence about the model.
pub(crate) fn open_weights(path: &Path) -> Result<Arc<dyn BaseWeights>> {
    Ok(base_weights::of_checkpoint(path, Quantize::None)?)
}

/// Bytes of a chunk of the memory pool, with a cache in half precision.
pub(crate) fn chunk_bytes(config: &ModelConfig) -> usize {
    weft_runner::pool_layout(config, KvCacheDtype::F16)
}

fn load(path: &Path, args: &EngineArgs, cache: Option<WeightCache>) -> Result<LoadedModel> {
    let bar = count_bar(0, "loading layers");
    let on_progress = {
        let bar = bar.clone();
        move |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    };
    let options = LoadOptions {
        quantize: quantize(args),
        num_threads: args.threads,
        cache,
        on_progress: Some(Arc::new(on_progress)),
    };
    let model = LoadedModel::load(path, &options);
    bar.finish_and_clear();
    Ok(model?)
}

/// Without a home there is none.
fn weight_cache(args: &EngineArgs) -> Option<WeightCache> {
    let dir = match &args.weight_cache {
        WeightCacheChoice::Auto => cache_dir()?.join("packed"),
        WeightCacheChoice::Off => return None,
        WeightCacheChoice::Dir(dir) => dir.clone(),
    };
    Some(WeightCache::in_dir(dir))
}

fn quantize(args: &EngineArgs) -> Quantize {
    match args.quantize {
        QuantizeChoice::None => Quantize::None,
        QuantizeChoice::Int8 => Quantize::Int8,
        QuantizeChoice::Int4 => Quantize::Int4,
        QuantizeChoice::Nf4 => Quantize::Nf4,
        QuantizeChoice::Nf4DoubleQuant => Quantize::Nf4DoubleQuant,
    }
}

fn activations(args: &EngineArgs) -> Activations {
    match args.cpu_activations {
        Some(CpuActivationsChoice::Int8) => Activations::Int8,
        Some(CpuActivationsChoice::F32) => Activations::F32,
        Some(CpuActivationsChoice::Int12) | None => Activations::Int12,
    }
}

/// `None`: the device's own.
fn asked_kv_dtype(choice: KvCacheChoice) -> Option<KvCacheDtype> {
    match choice {
        KvCacheChoice::Auto => None,
        KvCacheChoice::F32 => Some(KvCacheDtype::F32),
        KvCacheChoice::F16 => Some(KvCacheDtype::F16),
        KvCacheChoice::Bf16 => Some(KvCacheDtype::Bf16),
        KvCacheChoice::Int8 => Some(KvCacheDtype::Int8),
        KvCacheChoice::Fp8 => Some(KvCacheDtype::Fp8),
    }
}

fn kv_bytes_per_token(config: &ModelConfig, dtype: KvCacheDtype) -> u64 {
    kv_block_bytes(config, dtype).div_ceil(BLOCK_SIZE) as u64
}

/// How long sequences may be, and how much memory their KV cache gets.
#[derive(Debug, PartialEq, Eq)]
struct MemoryPlan {
    kv_bytes: u64,
    max_model_len: usize,
}

impl MemoryPlan {
    /// `default_memory` is what there is without `--memory`.
    fn new(
        args: &EngineArgs,
        max_context: usize,
        bytes_per_token: u64,
        default_memory: u64,
    ) -> Result<Self> {
        let block = weft_kernels::kv::BLOCK_SIZE as u64;
        let memory = args.memory.map_or(default_memory, |size| size.0);
        let memory_tokens = memory / (bytes_per_token * block) * block;
        if memory_tokens == 0 {
            bail!(
                "--memory {} holds not even one block of the KV cache ({}); give more",
                ByteSize(memory),
                ByteSize(bytes_per_token * block)
            );
        }
        let max_model_len = match args.max_model_len {
            Some(given) if given > max_context => bail!(
                "--max-model-len {given} is longer than the {max_context} tokens that this model \
                 was trained for"
            ),
            Some(given) if given as u64 > memory_tokens => bail!(
                "--memory {} holds the KV cache of {memory_tokens} tokens, less than one sequence \
                 of --max-model-len {given}; raise the one to {} or lower the other",
                ByteSize(memory),
                ByteSize((given as u64).div_ceil(block) * block * bytes_per_token)
            ),
            Some(given) => given,
            None => max_context.min(usize::try_from(memory_tokens).unwrap_or(usize::MAX)),
        };
        // More than every sequence at its longest is of no use, unless it was asked for.
        let sequence = (max_model_len as u64).div_ceil(block) * block * bytes_per_token;
        let useful = sequence.saturating_mul(args.max_num_seqs as u64);
        let kv_bytes = if args.memory.is_some() { memory } else { memory.min(useful) };
        Ok(Self { kv_bytes, max_model_len })
    }

    fn runner_config(
        &self,
        args: &EngineArgs,
        kv_dtype: KvCacheDtype,
        max_lora_rank: usize,
    ) -> Result<RunnerConfig> {
        Ok(RunnerConfig {
            memory_bytes: usize::try_from(self.kv_bytes).context("--memory is too large")?,
            max_model_len: self.max_model_len,
            max_num_seqs: args.max_num_seqs,
            max_num_batched_tokens: args.max_num_batched_tokens,
            kv_dtype: Some(kv_dtype),
            activations: activations(args),
            isa: Isa::detect(),
            num_threads: args.threads,
            cores: Vec::new(),
            max_lora_rank,
        })
    }
}

fn default_memory() -> u64 {
    machine::available_memory().map_or(FALLBACK_MEMORY, |free| (free.0 / 4).min(MAX_DEFAULT_MEMORY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServeArgs;

    fn plan(flags: &str, max_context: usize) -> Result<MemoryPlan> {
        let flags = format!("m {flags}");
        let args = ServeArgs::parse_flags(flags.split_whitespace()).unwrap();
        MemoryPlan::new(&args.engine, max_context, 1024, default_memory())
    }

    #[test]
    fn without_flags_the_context_is_the_models_if_memory_holds_it() {
        let small = plan("--max-num-seqs 2", 2048).unwrap();
        assert_eq!(small, MemoryPlan { kv_bytes: 2 * 2048 * 1024, max_model_len: 2048 });
        let large = plan("", 1 << 40).unwrap();
        assert!(large.max_model_len < 1 << 40);
    }

    #[test]
    fn given_memory_is_taken_as_it_is_and_bounds_the_context() {
        let ample = plan("--memory 64MiB --max-num-seqs 1", 2048).unwrap();
        assert_eq!(ample, MemoryPlan { kv_bytes: 64 << 20, max_model_len: 2048 });
        let tight = plan("--memory 1MiB", 2048).unwrap();
        assert_eq!(tight, MemoryPlan { kv_bytes: 1 << 20, max_model_len: 1024 });
    }

    #[test]
    fn contradictions_are_refused_with_the_flag() {
        let too_long = plan("--max-model-len 4096", 2048).unwrap_err().to_string();
        assert!(too_long.contains("--max-model-len 4096") && too_long.contains("2048"));
        let too_little = plan("--memory 1MiB --max-model-len 2000", 2048).unwrap_err().to_string();
        assert!(too_little.contains("1024 tokens") && too_little.contains("2.0 MiB"));
        let too_small = plan("--memory 1KiB", 2048).unwrap_err().to_string();
        assert!(too_small.contains("--memory 1.0 KiB"), "{too_small}");
    }
}
