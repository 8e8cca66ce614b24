//! The adapters of a step: pieces of rows for the batched-gather kernels, and the updates of linears.

use crate::adapter::CudaAdapter;
use crate::adapter_table::embedding_index;
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::lora::{
    LoraInput, LoraTarget, MAX_TARGETS, OutType, Pieces, bgmv, embedding, scratch_len, sgmv,
};
use crate::step_ops::StepOpsConfig;
use crate::tensor::CudaTensor;
use crate::work_list::{LoraPiece, WorkList};
use bytemuck::Zeroable;
use std::ops::Range;

/// A linear to which updates are added.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target {
    pub(crate) site: u32,
    pub(crate) num_outputs: usize,
    pub(crate) out: DevicePtr,
    pub(crate) is_f32: bool,
}

/// A list of pieces on the device.
#[derive(Debug)]
struct Lists {
    work: WorkList,
    staged: Vec<LoraPiece>,
    decode: Buffer<LoraPiece>,
    num_decode: usize,
    prefill: Buffer<LoraPiece>,
    num_prefill: usize,
}

impl Lists {
    fn new(gpu: &Gpu, max_rows: usize) -> Result<Self, DriverError> {
        let max_rows = max_rows.next_multiple_of(32);
        Ok(Self {
            work: WorkList::with_capacity(max_rows),
            staged: Vec::with_capacity(max_rows),
            decode: gpu.alloc(WorkList::max_decode_pieces(max_rows))?,
            num_decode: 0,
            prefill: gpu.alloc(WorkList::max_prefill_pieces(max_rows))?,
            num_prefill: 0,
        })
    }

    /// With `padded_rows`, as many pieces as such a step can have.
    fn upload(&mut self, padded_rows: Option<usize>) -> Result<(), DriverError> {
        let (decode, prefill) = (self.work.decode(), self.work.prefill());
        let mut fill = |buffer: &mut Buffer<LoraPiece>, pieces: &[LoraPiece], at_least: usize| {
            self.staged.clear();
            self.staged.extend_from_slice(pieces);
            self.staged.resize(pieces.len().max(at_least), LoraPiece::zeroed());
            if !self.staged.is_empty() {
                buffer.write(0, &self.staged)?;
            }
            Ok::<_, DriverError>(self.staged.len())
        };
        let padded_rows = padded_rows.unwrap_or(0);
        self.num_decode = fill(&mut self.decode, decode, WorkList::max_decode_pieces(padded_rows))?;
        self.num_prefill =
            fill(&mut self.prefill, prefill, WorkList::max_prefill_pieces(padded_rows))?;
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StepLora {
    half: HalfType,
    head_site: u32,
    embedding_site: u32,
    /// Of all rows.
    lists: Lists,
    /// Of rows of the output head.
    head_lists: Lists,
    scratch: Buffer<f32>,
    max_rank: usize,
    padded_rank: usize,
    has_embedding: bool,
    has_head: bool,
}

impl StepLora {
    pub(crate) fn new(gpu: &Gpu, config: &StepOpsConfig) -> Result<Self, DriverError> {
        let (limits, num_layers) = (config.limits, config.kv_shape.num_layers);
        let max_rows = limits.max_rows.next_multiple_of(32);
        let max_rank = config.max_rank.next_power_of_two();
        let embedding_site = embedding_index(num_layers);
        Ok(Self {
            half: config.half,
            head_site: embedding_site - 1,
            embedding_site,
            lists: Lists::new(gpu, limits.max_rows)?,
            head_lists: Lists::new(gpu, limits.max_logit_rows)?,
            scratch: gpu.alloc(scratch_len(max_rows, max_rank, config.max_inputs))?,
            max_rank: 0,
            padded_rank: 0,
            has_embedding: false,
            has_head: false,
        })
    }

    /// Takes a step's segments.
    pub(crate) fn plan<'a>(
        &mut self,
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
    ) {
        (self.max_rank, self.has_embedding, self.has_head) = (0, false, false);
        let tables = segments.map(|(rows, adapter)| {
            let Some(adapter) = adapter else { return (rows, DevicePtr::NULL) };
            self.max_rank = self.max_rank.max(adapter.max_rank());
            self.has_embedding |= adapter.has_embedding();
            self.has_head |= adapter.has_head();
            (rows, adapter.table())
        });
        self.lists.work.build(tables);
    }

    /// Whether embeddings or output heads have updates: such steps are not recorded.
    pub(crate) fn has_tables(&self) -> bool {
        self.has_embedding || self.has_head
    }

    /// The largest rank of the step, as a power of two; 0 without adapters.
    pub(crate) fn padded_rank(&self) -> usize {
        if self.max_rank == 0 { 0 } else { self.max_rank.next_power_of_two().max(16) }
    }

    /// Brings the pieces to the device; padded for a step that is recorded.
    pub(crate) fn upload(&mut self, padded_rows: Option<usize>) -> Result<(), DriverError> {
        self.padded_rank = if padded_rows.is_some() { self.padded_rank() } else { self.max_rank };
        if self.max_rank == 0 {
            return Ok(());
        }
        self.lists.upload(padded_rows)
    }

    /// Adds the embedding's updates.
    pub(crate) fn embed(
        &self,
        gpu: &Gpu,
        tokens: DevicePtr,
        out: &CudaTensor,
    ) -> Result<(), DriverError> {
        if !self.has_embedding {
            return Ok(());
        }
        let target =
            LoraTarget { site: self.embedding_site, num_outputs: out.width(), out: out.ptr() };
        let lists = &self.lists;
        for (pieces, buffer, num_pieces) in [
            (Pieces::Decode, &lists.decode, lists.num_decode),
            (Pieces::Prefill, &lists.prefill, lists.num_prefill),
        ] {
            if num_pieces > 0 {
                let input = LoraInput {
                    pieces: buffer.ptr(),
                    num_pieces,
                    x: tokens,
                    num_inputs: 1,
                    num_rows: out.num_rows(),
                    max_rank: self.padded_rank,
                    h: self.scratch.ptr(),
                };
                // SAFETY: the pieces are of rows that `out` has, and the batch holds their adapters.
                unsafe { embedding(gpu, (self.half, pieces), &input, target)? };
            }
        }
        Ok(())
    }

    /// Adds the updates of linears that share `x`. `segments` are runs of its rows.
    pub(crate) fn apply<'a>(
        &mut self,
        gpu: &Gpu,
        x: &CudaTensor,
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
        targets: &[Target],
    ) -> Result<(), DriverError> {
        if self.max_rank == 0 {
            return Ok(());
        }
        let is_head = targets.iter().any(|target| target.site == self.head_site);
        if is_head {
            if !self.has_head {
                return Ok(());
            }
            let tables = segments
                .map(|(rows, adapter)| (rows, adapter.map_or(DevicePtr::NULL, CudaAdapter::table)));
            self.head_lists.work.build(tables);
            self.head_lists.upload(None)?;
        }
        let lists = if is_head { &self.head_lists } else { &self.lists };
        let out_type = |is_f32: bool| if is_f32 { OutType::F32 } else { OutType::Half };
        for same in targets.chunk_by(|a, b| a.is_f32 == b.is_f32) {
            let out = out_type(same[0].is_f32);
            let mut converted = [LoraTarget::default(); MAX_TARGETS];
            for (converted, &Target { site, num_outputs, out, .. }) in
                converted.iter_mut().zip(same)
            {
                *converted = LoraTarget { site, num_outputs, out };
            }
            let converted = &converted[..same.len()];
            let input = |buffer: &Buffer<LoraPiece>, num_pieces: usize| LoraInput {
                pieces: buffer.ptr(),
                num_pieces,
                x: x.ptr(),
                num_inputs: x.width(),
                num_rows: x.num_rows(),
                max_rank: self.padded_rank,
                h: self.scratch.ptr(),
            };
            // SAFETY: the pieces are of rows that `x` and the outputs have; the batch holds the
            // adapters; the scratch is as large as for the largest step.
            unsafe {
                if lists.num_decode > 0 {
                    let input = input(&lists.decode, lists.num_decode);
                    bgmv(gpu, (self.half, out), &input, converted)?;
                }
                if lists.num_prefill > 0 {
                    let input = input(&lists.prefill, lists.num_prefill);
                    sgmv(gpu, (self.half, out), &input, converted)?;
                }
            }
        }
        Ok(())
    }
}
