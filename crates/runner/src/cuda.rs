//! Executors on a GPU.

use crate::executor::ModelExecutor;
use crate::layout::{KvCacheDtype, RunnerConfig, RunnerError};
use crate::penalties::TokenCounts;
use crate::rng::uniform;
use crate::sampler::Drawn;
use crate::step_device::{Picked, StepDevice, Wanted, pick_row};
use std::sync::Arc;
use weft_cuda::ops::sampling::{DrawStatus, MAX_TOP, RowRequest};
use weft_cuda::step_ops::StepOps;
use weft_cuda::step_tables::StepLimits;
use weft_cuda::tensor::CudaTensor;
use weft_cuda::{CudaAdapter, CudaArena, CudaChunks, DriverError, Gpu, HalfType};
use weft_kernels::kv::BLOCK_SIZE;
use weft_model::cuda::CudaModel;
use weft_model::{CudaDevice, Decoder};
use weft_types::{
    AdapterLayout, BlockId, ExecuteError, PackedAdapter, TokenLogprob, TokenLogprobs,
};

/// Rows of one pass over the output head.
const MAX_LOGIT_ROWS: usize = 256;

/// On a GPU, or on an emulated one.
pub type CudaExecutor = ModelExecutor<CudaDevice>;

impl From<DriverError> for RunnerError {
    fn from(error: DriverError) -> Self {
        Self::Device(error.to_string())
    }
}

impl From<HalfType> for KvCacheDtype {
    fn from(half: HalfType) -> Self {
        match half {
            HalfType::F16 => Self::F16,
            HalfType::Bf16 => Self::Bf16,
        }
    }
}

impl ModelExecutor<CudaDevice> {
    /// Makes the memory pool and the activations.
    ///
    /// # Errors
    /// When the limits contradict each other or the device has not as much memory.
    pub fn on_gpu(
        gpu: &Gpu,
        model: CudaModel,
        half: HalfType,
        config: &RunnerConfig,
    ) -> Result<Self, RunnerError> {
        let kv_dtype = config.kv_dtype.unwrap_or(half.into());
        let kv_type = kv_dtype.on_gpu()?;
        let limits = config.limits(&model.config, kv_dtype)?;
        let num_layers = model.config.spec.num_layers;
        let arena = CudaArena::new(gpu, limits.num_blocks, limits.chunk_bytes, num_layers)?;
        let max_logit_rows = limits.max_num_seqs.min(MAX_LOGIT_ROWS);
        let step_limits = StepLimits {
            max_rows: limits.max_num_batched_tokens,
            max_seqs: limits.max_num_seqs,
            max_blocks: limits.max_num_seqs * limits.max_model_len.div_ceil(BLOCK_SIZE),
            max_logit_rows,
        };
        let device = CudaDevice::new(
            gpu,
            &model.config,
            (half, kv_type),
            arena,
            step_limits,
            [limits.max_model_len, config.max_lora_rank],
        )?;
        let mut decoder = Decoder::new(
            model.config,
            Arc::new(model.weights),
            device,
            limits.max_num_batched_tokens,
            max_logit_rows,
        );
        match decoder.device_mut().take_failure() {
            Some(error) => Err(error.into()),
            None => Self::with_decoder(decoder, limits),
        }
    }
}

/// Whether the sampler on the device does it: not log probabilities of prompts, nor of very many
/// tokens.
fn can_draw(wanted: Wanted<'_>) -> bool {
    wanted.rows.iter().all(|row| {
        let sampling = &(wanted.state)(row.planned).spec.sampling;
        let num_top = sampling.logprobs.unwrap_or_default() as usize;
        row.sample && !row.prompt_logprobs && num_top <= MAX_TOP
    })
}

/// Begins to draw on the device.
fn begin_draw(
    ops: &mut StepOps,
    logits: &CudaTensor,
    wanted: Wanted<'_>,
) -> Result<(), DriverError> {
    let plan = ops.sampling_plan(logits.width())?;
    for row in wanted.rows {
        let state = (wanted.state)(row.planned);
        let sampling = &state.spec.sampling;
        let is_early = state.num_drawn < u64::from(state.spec.min_tokens);
        let banned = if is_early { state.spec.stop_token_ids.as_slice() } else { &[] };
        let u = uniform(sampling.seed, state.num_drawn);
        let seen = state.counts.iter().flat_map(TokenCounts::seen);
        plan.push(RowRequest { sampling, u, banned, mask: None }, seen);
    }
    ops.sample(logits)
}

/// Waits for what was drawn.
fn read_drawn(
    ops: &mut StepOps,
    wanted: Wanted<'_>,
    picked: &mut [Picked],
) -> Result<(), DriverError> {
    let drawn = ops.drawn()?;
    for ((picked, drawn), row) in picked.iter_mut().zip(drawn.iter()).zip(wanted.rows) {
        let wants_logprobs = (wanted.state)(row.planned).spec.sampling.logprobs.is_some();
        let of = |token, logprob| TokenLogprob { token, logprob };
        let logprobs = wants_logprobs.then(|| TokenLogprobs {
            chosen: of(drawn.token, drawn.logprob),
            top: drawn.top.iter().map(|top| of(top.token, top.logprob)).collect(),
        });
        let is_finite = drawn.status != DrawStatus::NotFinite;
        let drawn = is_finite.then_some(Drawn { token: drawn.token, logprobs });
        *picked = Picked { drawn, prompt_logprobs: None, is_finite };
    }
    Ok(())
}

fn failed(error: &DriverError) -> ExecuteError {
    ExecuteError { message: format!("the GPU failed: {error}") }
}

impl StepDevice for CudaDevice {
    type Chunks = CudaChunks;

    const RUNS_BEHIND: bool = true;

    fn lend_chunks(&mut self, chunks: &[BlockId]) -> CudaChunks {
        self.ops().arena().lend(chunks)
    }

    fn place(packed: &PackedAdapter, chunks: CudaChunks) -> Result<CudaAdapter, ExecuteError> {
        CudaAdapter::place(packed, chunks).map_err(|error| failed(&error))
    }

    fn layout(adapter: &CudaAdapter) -> &Arc<AdapterLayout> {
        adapter.layout()
    }

    fn begin_pick(
        &mut self,
        logits: &mut CudaTensor,
        wanted: Wanted<'_>,
    ) -> Result<(), ExecuteError> {
        let outcome = self.ops().finish();
        outcome.map_err(|error| failed(&error))?;
        self.check()?;
        match can_draw(wanted) {
            true => begin_draw(self.ops(), logits, wanted).map_err(|error| failed(&error)),
            false => Ok(()),
        }
    }

    fn pick(
        &mut self,
        logits: &mut CudaTensor,
        wanted: Wanted<'_>,
        picked: &mut [Picked],
    ) -> Result<(), ExecuteError> {
        if can_draw(wanted) {
            return read_drawn(self.ops(), wanted, picked).map_err(|error| failed(&error));
        }
        let width = logits.width();
        let mut values = Vec::new();
        logits.read_f32(&mut values).map_err(|error| failed(&error))?;
        for ((logits, row), picked) in values.chunks_exact_mut(width).zip(wanted.rows).zip(picked) {
            *picked = pick_row(row, (wanted.state)(row.planned), logits);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), ExecuteError> {
        self.take_failure().map_or(Ok(()), |error| Err(failed(&error)))
    }
}
