//! How much the executor may hold, and how its memory is cut.

use weft_cuda::ops::kv_cache::KvType;
use weft_kernels::arena::ALIGNMENT;
use weft_kernels::kv::BLOCK_SIZE;
use weft_kernels::quantize::Activations;
use weft_kernels::weight::Format;
use weft_kernels::{Isa, KvDtype};
use weft_model::cpu::kv_shape;
use weft_model::{LoadedModel, ModelConfig};
use weft_types::{ExecutorLimits, Module};

/// How much the executor may hold.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Bytes for the KV cache and the adapters.
    pub memory_bytes: usize,
    /// The longest sequence.
    pub max_model_len: usize,
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// `None`: on the CPU single precision under an F32 model, else half; on a GPU the type of
    /// activations.
    pub kv_dtype: Option<KvCacheDtype>,
    /// What activations are when they meet integer weights on the CPU.
    pub activations: Activations,
    /// Which instructions compute on the CPU.
    pub isa: Isa,
    /// Threads; 0 is one per core.
    pub num_threads: usize,
    /// Logical processors that the CPU's threads are bound to, one each; empty: to none.
    pub cores: Vec<usize>,
    /// The largest rank of an adapter.
    pub max_lora_rank: usize,
}

/// How keys and values are stored; no device has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCacheDtype {
    /// Single precision: on the CPU.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 8-bit integers with a scale for each token's key and value of a head: on the CPU.
    Int8,
    /// Eight bits (e4m3) without scales, saturated at ±448: on GPUs.
    Fp8,
}

impl KvCacheDtype {
    /// Bytes of one number, without scales.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 | Self::Fp8 => 1,
        }
    }

    /// As the CPU has it.
    ///
    /// # Errors
    /// When it has not.
    pub fn on_cpu(self) -> Result<KvDtype, RunnerError> {
        match self {
            Self::F32 => Ok(KvDtype::F32),
            Self::F16 => Ok(KvDtype::F16),
            Self::Bf16 => Ok(KvDtype::Bf16),
            Self::Int8 => Ok(KvDtype::Int8),
            Self::Fp8 => {
                let here = "the CPU takes f32, f16, bf16 or int8";
                Err(RunnerError::KvCacheDtype { given: "fp8", is_for: "GPUs", here })
            }
        }
    }

    /// As a GPU has it.
    ///
    /// # Errors
    /// When it has not.
    pub fn on_gpu(self) -> Result<KvType, RunnerError> {
        let given = match self {
            Self::F16 => return Ok(KvType::F16),
            Self::Bf16 => return Ok(KvType::Bf16),
            Self::Fp8 => return Ok(KvType::E4m3),
            Self::F32 => "f32",
            Self::Int8 => "int8",
        };
        let here = "a GPU takes f16, bf16 or fp8";
        Err(RunnerError::KvCacheDtype { given, is_for: "the CPU", here })
    }

    /// What the CPU takes for a model if nothing was asked for.
    #[must_use]
    pub fn default_on_cpu(model: &LoadedModel) -> Self {
        match model.weights.embedding.format() {
            Format::F32 => Self::F32,
            _ => Self::F16,
        }
    }
}

/// Why an executor could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The cache would not hold one sequence.
    #[error(
        "--memory of {memory_bytes} bytes holds the KV cache of {num_tokens} tokens, less than one \
         sequence of --max-model-len {max_model_len}; raise the one to {needed_bytes} or lower the other"
    )]
    MemoryTooSmall {
        /// What was given.
        memory_bytes: usize,
        /// What it would hold.
        num_tokens: usize,
        /// What one sequence needs at most.
        max_model_len: usize,
        /// For that many.
        needed_bytes: usize,
    },
    /// A limit is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The device has no such numbers.
    #[error("--kv-cache-dtype {given} is for {is_for}; {here}")]
    KvCacheDtype {
        /// What was asked for.
        given: &'static str,
        /// Which devices have it.
        is_for: &'static str,
        /// What this one has.
        here: &'static str,
    },
    /// The device has not as much memory, or failed.
    #[error("{0}")]
    Device(String),
    /// The system refused.
    #[error("cannot start the thread that copies adapters: {0}")]
    Thread(std::io::Error),
}

/// Bytes of a chunk of the memory pool: it holds a KV block, and any row of an adapter of the seven
/// linears in single precision.
#[must_use]
pub fn pool_layout(config: &ModelConfig, kv_dtype: KvCacheDtype) -> usize {
    let widths = Module::ALL.map(|module| {
        let shape = config.spec.linear(module);
        shape.num_inputs.max(shape.num_outputs)
    });
    let row_bytes = size_of::<f32>() * widths.into_iter().max().unwrap_or(0);
    kv_block_bytes(config, kv_dtype).max(row_bytes).next_multiple_of(ALIGNMENT)
}

/// Bytes of a KV block, of [`BLOCK_SIZE`] tokens over all layers.
#[must_use]
pub fn kv_block_bytes(config: &ModelConfig, kv_dtype: KvCacheDtype) -> usize {
    let shape = kv_shape(config);
    match kv_dtype.on_cpu() {
        Ok(kv_dtype) => shape.block_bytes(kv_dtype),
        Err(_) => shape.block_len() * kv_dtype.size(),
    }
}

impl RunnerConfig {
    /// The limits of an executor for a model.
    pub(crate) fn limits(
        &self,
        model: &ModelConfig,
        kv_dtype: KvCacheDtype,
    ) -> Result<ExecutorLimits, RunnerError> {
        for (name, value) in [
            ("--max-model-len", self.max_model_len),
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
        ] {
            if value == 0 {
                return Err(RunnerError::Zero(name));
            }
        }
        let chunk_bytes = pool_layout(model, kv_dtype);
        let num_blocks = self.memory_bytes / chunk_bytes;
        let needed = self.max_model_len.div_ceil(BLOCK_SIZE);
        if num_blocks < needed {
            return Err(RunnerError::MemoryTooSmall {
                memory_bytes: self.memory_bytes,
                num_tokens: num_blocks * BLOCK_SIZE,
                max_model_len: self.max_model_len,
                needed_bytes: needed * chunk_bytes,
            });
        }
        Ok(ExecutorLimits {
            block_size: BLOCK_SIZE,
            num_blocks,
            chunk_bytes,
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
        })
    }
}
