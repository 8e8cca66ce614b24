//! The executor: a decoder on the CPU device, and the sampling state of the live sequences.

use crate::logprobs;
use crate::prepare::{LogitRow, Prepared};
use crate::sampler::{self, Drawn};
use crate::sequence::SequenceState;
use rustc_hash::FxHashMap;
use weft_kernels::KvDtype;
use weft_kernels::kv::BLOCK_SIZE;
use weft_kernels::weight::Format;
use weft_model::cpu::kv_shape;
use weft_model::{CpuDevice, Decoder, LoadedModel};
use weft_types::{
    ExecuteError, Executor, ExecutorLimits, SeqId, SequenceOutput, SequenceSpec, StepOutput,
    StepPlan, TokenLogprobs,
};

/// How much the executor may hold.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Bytes for the KV cache.
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
}

/// Rows of one pass over the output head.
const MAX_LOGIT_ROWS: usize = 64;

/// A model ready to run steps.
#[derive(Debug)]
pub struct CpuExecutor {
    decoder: Decoder<CpuDevice>,
    limits: ExecutorLimits,
    sequences: FxHashMap<SeqId, SequenceState>,
    prepared: Prepared,
    picked: Vec<Picked>,
}

/// What was read from one row of logits.
#[derive(Debug, Default)]
struct Picked {
    drawn: Option<Drawn>,
    prompt_logprobs: Option<TokenLogprobs>,
    is_finite: bool,
}

impl CpuExecutor {
    /// Makes the cache and the threads.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn new(model: LoadedModel, config: &RunnerConfig) -> Result<Self, RunnerError> {
        for (name, value) in [
            ("--max-model-len", config.max_model_len),
            ("--max-num-seqs", config.max_num_seqs),
            ("--max-num-batched-tokens", config.max_num_batched_tokens),
        ] {
            if value == 0 {
                return Err(RunnerError::Zero(name));
            }
        }
        let kv_dtype = config.kv_dtype.unwrap_or(match model.weights.embedding.format() {
            Format::F32 => KvDtype::F32,
            _ => KvDtype::F16,
        });
        let block_bytes = kv_shape(&model.config).block_bytes(kv_dtype);
        let num_blocks = config.memory_bytes / block_bytes;
        let needed = config.max_model_len.div_ceil(BLOCK_SIZE);
        if num_blocks < needed {
            return Err(RunnerError::MemoryTooSmall {
                memory_bytes: config.memory_bytes,
                num_tokens: num_blocks * BLOCK_SIZE,
                max_model_len: config.max_model_len,
                needed_bytes: needed * block_bytes,
            });
        }
        let num_threads = match config.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let device =
            CpuDevice::new(&model.config, num_threads, kv_dtype, num_blocks, config.max_model_len);
        let decoder = Decoder::new(
            model.config,
            model.weights,
            device,
            config.max_num_batched_tokens,
            config.max_num_seqs.min(MAX_LOGIT_ROWS),
        );
        let limits = ExecutorLimits {
            block_size: BLOCK_SIZE,
            num_blocks,
            max_model_len: config.max_model_len,
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
        };
        Ok(Self {
            decoder,
            limits,
            sequences: FxHashMap::default(),
            prepared: Prepared::default(),
            picked: Vec::new(),
        })
    }

    /// Reads what is wanted of the rows `range` of the batch's logits.
    fn pick(&mut self, plan: &StepPlan, range: std::ops::Range<usize>) {
        let rows = &self.prepared.logit_rows[range.clone()];
        self.picked.clear();
        self.picked.resize_with(rows.len(), Picked::default);
        let vocab_size = self.decoder.config().spec.vocab_size;
        let (logits, device) = self.decoder.logits(&self.prepared.batch, range);
        let sequences = &self.sequences;
        device.pool().zip_rows(
            logits.data_mut(),
            vocab_size,
            &mut self.picked,
            |i, row, picked| {
                let state = &sequences[&plan.sequences[rows[i].planned].seq];
                *picked = pick_row(&rows[i], state, row);
            },
        );
    }
}

fn pick_row(row: &LogitRow, state: &SequenceState, logits: &mut [f32]) -> Picked {
    if !sampler::all_finite(logits) {
        return Picked::default();
    }
    let prompt_logprobs = row.prompt_logprobs.then(|| {
        let num_top = state.spec.sampling.prompt_logprobs.unwrap_or_default() as usize;
        logprobs::of(logits, state.spec.prompt[row.position + 1], num_top)
    });
    let drawn = if row.sample { sampler::draw(logits, state) } else { None };
    Picked { drawn, prompt_logprobs, is_finite: true }
}

impl Executor for CpuExecutor {
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        self.sequences.insert(seq, SequenceState::new(spec));
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        output.sequences.clear();
        output.sequences.resize_with(plan.sequences.len(), SequenceOutput::default);
        if let Some(unknown) =
            plan.sequences.iter().find(|planned| !self.sequences.contains_key(&planned.seq))
        {
            let message = format!("{:?} was planned but never announced", unknown.seq);
            return Err(ExecuteError { message });
        }
        let shape = self.decoder.attention_shape(0);
        self.prepared.fill(plan, &self.sequences, &shape);
        self.decoder.forward(&self.prepared.batch);

        let num_rows = self.prepared.logit_rows.len();
        for start in (0..num_rows).step_by(self.decoder.max_logit_rows()) {
            let end = (start + self.decoder.max_logit_rows()).min(num_rows);
            self.pick(plan, start..end);
            for (row, picked) in self.prepared.logit_rows[start..end].iter().zip(&mut self.picked) {
                let output = &mut output.sequences[row.planned];
                output.prompt_logprobs.extend(picked.prompt_logprobs.take());
                if !picked.is_finite {
                    let message = "the model's output is not finite: the weights of the base or \
                                   of the adapter overflow on this input";
                    output.failed = Some(ExecuteError { message: message.into() });
                }
                if let Some(drawn) = picked.drawn.take() {
                    let state = self.sequences.get_mut(&plan.sequences[row.planned].seq);
                    state.expect("looked up above").push(drawn.token);
                    output.token = Some(drawn.token);
                    output.logprobs = drawn.logprobs;
                }
            }
        }
        Ok(())
    }
}
