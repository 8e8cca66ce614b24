//! What an executor needs of a device beyond the decoder's operations: adapters' copies and draws.

use crate::sampler::{self, Drawn};
use crate::{logprobs, sampler::all_finite};
use std::sync::Arc;
use weft_kernels::{LentChunks, PlacedAdapter};
use weft_model::cpu::CpuTensor;
use weft_model::{CpuDevice, Device};
use weft_types::{AdapterLayout, BlockId, ExecuteError, PackedAdapter, TokenLogprobs};

pub use crate::prepare::LogitRow;
pub use crate::sequence::SequenceState;

/// What was read from one row of logits.
#[derive(Debug, Default)]
pub struct Picked {
    pub(crate) drawn: Option<Drawn>,
    pub(crate) prompt_logprobs: Option<TokenLogprobs>,
    pub(crate) is_finite: bool,
}

/// Rows of logits and what is wanted of each.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub(crate) rows: &'a [LogitRow],
    /// The sequence of an index in the plan.
    pub(crate) state: &'a (dyn Fn(usize) -> &'a SequenceState + Sync),
}

impl std::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wanted").field(&self.rows).finish()
    }
}

/// See the module.
pub trait StepDevice: Device + Send {
    /// Chunks of the memory pool that an adapter gets.
    type Chunks: Send + 'static;

    /// Takes chunks from the KV cache, until the adapter is dropped.
    fn lend_chunks(&mut self, chunks: &[BlockId]) -> Self::Chunks;

    /// Copies an adapter to its chunks, on a thread of its own.
    ///
    /// # Errors
    /// When the device fails.
    fn place(packed: &PackedAdapter, chunks: Self::Chunks) -> Result<Self::Adapter, ExecuteError>;

    /// All later calls come from the calling thread, which may be bound to a processor.
    fn stay_on_thread(&mut self) {}

    /// What an adapter consists of.
    fn layout(adapter: &Self::Adapter) -> &Arc<AdapterLayout>;

    /// Whether it computes by itself, while the caller does other things.
    const RUNS_BEHIND: bool = false;

    /// Begins what [`Self::pick`] needs, without waiting for it.
    ///
    /// # Errors
    /// When the device fails.
    fn begin_pick(
        &mut self,
        logits: &mut Self::Tensor,
        wanted: Wanted<'_>,
    ) -> Result<(), ExecuteError> {
        let _ = (logits, wanted);
        Ok(())
    }

    /// Reads what is wanted of rows of logits, one `picked` a row. After [`Self::begin_pick`].
    ///
    /// # Errors
    /// When the device fails.
    fn pick(
        &mut self,
        logits: &mut Self::Tensor,
        wanted: Wanted<'_>,
        picked: &mut [Picked],
    ) -> Result<(), ExecuteError>;

    /// The first failure since the last call.
    ///
    /// # Errors
    /// That one.
    fn check(&mut self) -> Result<(), ExecuteError> {
        Ok(())
    }
}

impl StepDevice for CpuDevice {
    type Chunks = LentChunks;

    fn lend_chunks(&mut self, chunks: &[BlockId]) -> LentChunks {
        self.lend(chunks)
    }

    fn place(packed: &PackedAdapter, chunks: LentChunks) -> Result<PlacedAdapter, ExecuteError> {
        Ok(PlacedAdapter::copy(packed, chunks))
    }

    fn stay_on_thread(&mut self) {
        self.pool().bind_caller();
    }

    fn layout(adapter: &PlacedAdapter) -> &Arc<AdapterLayout> {
        adapter.layout()
    }

    fn pick(
        &mut self,
        logits: &mut CpuTensor,
        wanted: Wanted<'_>,
        picked: &mut [Picked],
    ) -> Result<(), ExecuteError> {
        let width = logits.width();
        self.pool().zip_rows(logits.data_mut(), width, picked, |i, row, picked| {
            let logit_row = &wanted.rows[i];
            *picked = pick_row(logit_row, (wanted.state)(logit_row.planned), row);
        });
        Ok(())
    }
}

/// Reads what is wanted of a row of logits in host memory.
pub(crate) fn pick_row(row: &LogitRow, state: &SequenceState, logits: &mut [f32]) -> Picked {
    if (row.prompt_logprobs || !row.sample) && !all_finite(logits) {
        return Picked::default();
    }
    let prompt_logprobs = row.prompt_logprobs.then(|| {
        let num_top = state.spec.sampling.prompt_logprobs.unwrap_or_default() as usize;
        logprobs::of(logits, state.spec.prompt[row.position + 1], num_top)
    });
    let drawn = if row.sample { sampler::draw(logits, state) } else { None };
    Picked { is_finite: drawn.is_some() || !row.sample, drawn, prompt_logprobs }
}
