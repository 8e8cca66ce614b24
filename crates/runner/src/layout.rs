//! How much the executor may hold, and how its memory is cut.

use weft_kernels::KvDtype;
use weft_kernels::arena::ALIGNMENT;
use weft_kernels::kv::BLOCK_SIZE;
use weft_kernels::weight::Format;
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
    /// `None`: single precision under an F32 model, else half.
    pub kv_dtype: Option<KvDtype>,
    /// Threads; 0 is one per core.
    pub num_threads: usize,
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
pub fn pool_layout(config: &ModelConfig, kv_dtype: KvDtype) -> usize {
    let widths = Module::ALL.map(|module| {
        let shape = config.spec.linear(module);
        shape.num_inputs.max(shape.num_outputs)
    });
    let row_bytes = size_of::<f32>() * widths.into_iter().max().unwrap_or(0);
    kv_shape(config).block_bytes(kv_dtype).max(row_bytes).next_multiple_of(ALIGNMENT)
}

impl RunnerConfig {
    /// The dtype of the KV cache under a model on the CPU.
    pub(crate) fn kv_dtype(&self, model: &LoadedModel) -> KvDtype {
        self.kv_dtype.unwrap_or(match model.weights.embedding.format() {
            Format::F32 => KvDtype::F32,
            _ => KvDtype::F16,
        })
    }

    /// The limits of an executor for a model.
    pub(crate) fn limits(
        &self,
        model: &ModelConfig,
        kv_dtype: KvDtype,
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
