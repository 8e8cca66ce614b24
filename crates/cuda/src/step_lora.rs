//! The adapters of a step: pieces of rows for the batched-gather kernels, and linears with all that
//! adapters do to them.

use crate::adapter::CudaAdapter;
use crate::adapter_table::{SiteParts, embedding_index};
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::gains::PieceList;
use crate::ops::kv_cache::PagedKv;
use crate::ops::lora::{
    LoraInput, LoraTarget, OutType, Pieces, bgmv, embedding, scratch_len, sgmv,
};
use crate::ops::matmul::{Linear, linear};
use crate::step_given::StepGiven;
use crate::step_ops::StepOpsConfig;
use crate::step_parts::StepParts;
use crate::tensor::CudaTensor;
use crate::work_list::{LoraPiece, WorkList};
use bytemuck::Zeroable;
use std::ops::Range;

/// A linear that adapters change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) site: u32,
    pub(crate) num_outputs: usize,
    pub(crate) out: DevicePtr,
    pub(crate) is_f32: bool,
    /// It adds to `out`.
    pub(crate) is_accumulated: bool,
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

    /// For decode and for prefill.
    fn pieces(&self) -> [PieceList; 2] {
        [(self.decode.ptr(), self.num_decode), (self.prefill.ptr(), self.num_prefill)]
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
    parts: StepParts,
    given: StepGiven,
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
            parts: StepParts::new(gpu, config)?,
            given: StepGiven::new(gpu, config)?,
            scratch: gpu.alloc(scratch_len(max_rows, max_rank, config.max_inputs))?,
            max_rank: 0,
            padded_rank: 0,
            has_embedding: false,
            has_head: false,
        })
    }

    /// Takes a step's tokens and segments.
    pub(crate) fn plan<'a>(
        &mut self,
        tokens: &[u32],
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
    ) {
        (self.max_rank, self.has_embedding, self.has_head) = (0, false, false);
        self.parts.clear();
        self.given.clear();
        let tables = segments.map(|(rows, adapter)| {
            let Some(adapter) = adapter else { return (rows, DevicePtr::NULL) };
            self.max_rank = self.max_rank.max(adapter.max_rank());
            self.has_embedding |= adapter.has_embedding();
            self.has_head |= adapter.has_head();
            self.parts.add(adapter.parts());
            self.given.add(tokens, rows.clone(), adapter);
            (rows, adapter.table())
        });
        self.lists.work.build(tables);
    }

    /// Whether embeddings or output heads are other than the base's, or keys and values are given: such
    /// steps are not recorded.
    pub(crate) fn has_tables(&self) -> bool {
        self.has_embedding || self.has_head || !self.given.is_empty()
    }

    /// The largest rank of the step, as a power of two; 0 without adapters.
    pub(crate) fn padded_rank(&self) -> usize {
        if self.max_rank == 0 { 0 } else { self.max_rank.next_power_of_two().max(16) }
    }

    /// See [`StepParts::kind`].
    pub(crate) fn parts_kind(&mut self) -> Option<usize> {
        self.parts.kind()
    }

    /// Brings the pieces to the device; padded for a step that is recorded.
    pub(crate) fn upload(&mut self, padded_rows: Option<usize>) -> Result<(), DriverError> {
        self.padded_rank = if padded_rows.is_some() { self.padded_rank() } else { self.max_rank };
        self.given.upload()?;
        if !self.has_pieces() {
            return Ok(());
        }
        self.lists.upload(padded_rows)
    }

    /// Whether any kernel reads them.
    fn has_pieces(&self) -> bool {
        self.max_rank > 0 || self.parts.has_any()
    }

    /// Adds the embedding's updates, after embeddings that adapters give.
    pub(crate) fn embed(
        &self,
        gpu: &Gpu,
        tokens: DevicePtr,
        out: &CudaTensor,
    ) -> Result<(), DriverError> {
        self.given.embed(gpu, out)?;
        if !self.has_embedding {
            return Ok(());
        }
        let target =
            LoraTarget { site: self.embedding_site, num_outputs: out.width(), out: out.ptr() };
        for (pieces, input) in self.inputs(&self.lists, (tokens, 1), out.num_rows()) {
            // SAFETY: the pieces are of rows that `out` has, and the batch holds their adapters.
            unsafe { embedding(gpu, (self.half, pieces), &input, target)? };
        }
        Ok(())
    }

    /// Stores keys and values that adapters give.
    pub(crate) fn store_given(
        &self,
        gpu: &Gpu,
        kv: &PagedKv,
        places: [DevicePtr; 2],
    ) -> Result<(), DriverError> {
        self.given.store(gpu, kv, places)
    }

    /// The linears, which share `x`, with all that adapters do to them. `segments` are runs of its rows.
    ///
    /// # Safety
    /// x and outputs have the linears' shapes.
    pub(crate) unsafe fn project<'a>(
        &mut self,
        gpu: &Gpu,
        x: &CudaTensor,
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
        linears: &[Linear<'_>],
        targets: &[Target],
    ) -> Result<(), DriverError> {
        let num_rows = x.num_rows();
        let is_head = targets.iter().any(|target| target.site == self.head_site);
        if !self.has_pieces() || (is_head && !self.has_head) {
            // SAFETY: the caller's promise.
            return unsafe { linear(gpu, x.ptr(), num_rows, linears) };
        }
        if is_head {
            let tables = segments
                .map(|(rows, adapter)| (rows, adapter.map_or(DevicePtr::NULL, CudaAdapter::table)));
            self.head_lists.work.build(tables);
            self.head_lists.upload(None)?;
        }
        let lists = if is_head { &self.head_lists } else { &self.lists };
        let pieces = lists.pieces();
        let inputs = self.inputs(lists, (x.ptr(), x.width()), num_rows);
        let parts = &mut self.parts;
        let is_scaled = |parts: &StepParts, site: u32| parts.at(site).has(SiteParts::INPUT_GAIN);
        // SAFETY: the caller's promise; pieces are of rows that `x` and the outputs have; the batch holds
        // the adapters; the scratch is as large as for the largest step.
        unsafe {
            for target in targets {
                parts.set_aside(gpu, target, pieces)?;
            }
            if targets.iter().any(|target| is_scaled(parts, target.site)) {
                for (one, target) in linears.iter().zip(targets) {
                    let x = if is_scaled(parts, target.site) {
                        parts.scale_input(gpu, x, target.site, pieces)?
                    } else {
                        x.ptr()
                    };
                    linear(gpu, x, num_rows, std::slice::from_ref(one))?;
                }
            } else {
                linear(gpu, x.ptr(), num_rows, linears)?;
            }
            update(gpu, self.half, inputs, targets)?;
            for target in targets {
                parts.finish(gpu, target, inputs)?;
            }
        }
        Ok(())
    }

    /// What the kernels of each list read.
    fn inputs(
        &self,
        lists: &Lists,
        (x, num_inputs): (DevicePtr, usize),
        num_rows: usize,
    ) -> [(Pieces, LoraInput); 2] {
        let [decode, prefill] = lists.pieces();
        [(Pieces::Decode, decode), (Pieces::Prefill, prefill)].map(|(kind, list)| {
            let (pieces, num_pieces) = list;
            let (max_rank, h) = (self.padded_rank, self.scratch.ptr());
            (kind, LoraInput { pieces, num_pieces, x, num_inputs, num_rows, max_rank, h })
        })
    }
}

/// Adds the low-rank updates of linears that share x.
///
/// # Safety
/// As [`bgmv`] and [`sgmv`].
unsafe fn update(
    gpu: &Gpu,
    half: HalfType,
    inputs: [(Pieces, LoraInput); 2],
    targets: &[Target],
) -> Result<(), DriverError> {
    for same in targets.chunk_by(|a, b| a.is_f32 == b.is_f32) {
        let out = if same[0].is_f32 { OutType::F32 } else { OutType::Half };
        let converted: Vec<LoraTarget> = same
            .iter()
            .map(|&Target { site, num_outputs, out, .. }| LoraTarget { site, num_outputs, out })
            .collect();
        for (kind, input) in &inputs {
            // SAFETY: the caller's promise.
            unsafe {
                match kind {
                    Pieces::Decode => bgmv(gpu, (half, out), input, &converted)?,
                    Pieces::Prefill => sgmv(gpu, (half, out), input, &converted)?,
                }
            }
        }
    }
    Ok(())
}
