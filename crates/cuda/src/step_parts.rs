//! What the adapters of a step do beside low-rank updates: which of gains, shifts and bottlenecks there
//! are at which site, and the launches for them. A site where no adapter of the step has any costs nothing.

use crate::adapter_table::{Gain, SiteParts, bottleneck_index, embedding_index};
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::bottleneck::bottleneck;
use crate::ops::gains::{Aside, PieceList, apply_gains};
use crate::ops::lora::{LoraInput, LoraTarget, Pieces};
use crate::ops::rows::copy_halves;
use crate::step_lora::Target;
use crate::step_ops::StepOpsConfig;
use crate::tensor::CudaTensor;
use weft_types::BottleneckInput;

/// Sets of sites that recorded steps may have: further ones run eagerly.
const MAX_KINDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct StepParts {
    half: HalfType,
    num_layers: usize,
    /// By site, of all adapters of the step together.
    sites: Vec<SiteParts>,
    has_any: bool,
    /// Those of steps so far.
    kinds: Vec<Vec<SiteParts>>,
    /// The residual stream of rows that a linear's adapter changes, `[T, hidden]`.
    aside: Buffer<f32>,
    /// A linear's input with gains, or a bottleneck's input, `[T, widest]` of `half`.
    scratch: Buffer<u16>,
}

impl StepParts {
    pub(crate) fn new(gpu: &Gpu, config: &StepOpsConfig) -> Result<Self, DriverError> {
        let (limits, shape) = (config.limits, config.kv_shape);
        let max_rows = limits.max_rows.max(limits.max_logit_rows).next_multiple_of(32);
        let widest = config.max_inputs.max(config.num_heads * shape.head_dim);
        Ok(Self {
            half: config.half,
            num_layers: shape.num_layers,
            sites: vec![SiteParts::default(); embedding_index(shape.num_layers) as usize],
            has_any: false,
            kinds: Vec::new(),
            aside: gpu.alloc(max_rows * config.hidden_size)?,
            scratch: gpu.alloc(max_rows * widest)?,
        })
    }

    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.has_any) {
            self.sites.fill(SiteParts::default());
        }
    }

    /// Takes an adapter of the step.
    pub(crate) fn add(&mut self, parts: &[SiteParts]) {
        self.has_any |= !parts.is_empty();
        for (site, part) in self.sites.iter_mut().zip(parts) {
            *site = site.or(*part);
        }
    }

    pub(crate) fn has_any(&self) -> bool {
        self.has_any
    }

    /// The same number for steps that launch the same; `None` for what is not worth recording.
    pub(crate) fn kind(&mut self) -> Option<usize> {
        if !self.has_any {
            return Some(0);
        }
        let known = self.kinds.iter().position(|kind| *kind == self.sites);
        let index = match known {
            Some(index) => index,
            None if self.kinds.len() == MAX_KINDS => return None,
            None => {
                self.kinds.push(self.sites.clone());
                self.kinds.len() - 1
            }
        };
        Some(index + 1)
    }

    /// At the site of a linear.
    pub(crate) fn at(&self, site: u32) -> SiteParts {
        self.sites[site as usize]
    }

    /// x with input gains, until the next call of any of these.
    ///
    /// # Safety
    /// Pieces are of rows of x, and the batch holds their adapters.
    pub(crate) unsafe fn scale_input(
        &mut self,
        gpu: &Gpu,
        x: &CudaTensor,
        site: u32,
        pieces: [PieceList; 2],
    ) -> Result<DevicePtr, DriverError> {
        let num = x.num_rows() * x.width();
        assert!(!x.is_f32() && num <= self.scratch.len(), "x of {num} numbers");
        let scaled = self.scratch.ptr();
        // SAFETY: the scratch is as large, the rest is the caller's promise.
        unsafe {
            copy_halves(gpu, (x.ptr(), scaled), num)?;
            for list in pieces {
                apply_gains(gpu, Some(self.half), list, (site, Gain::In), (scaled, x.width()))?;
            }
        }
        Ok(scaled)
    }

    /// Before a linear that adds to the residual stream: rows that adapters change begin at zero.
    ///
    /// # Safety
    /// Pieces are of rows that the target has, and the batch holds their adapters.
    pub(crate) unsafe fn set_aside(
        &mut self,
        gpu: &Gpu,
        target: &Target,
        pieces: [PieceList; 2],
    ) -> Result<(), DriverError> {
        let Some(aside) = self.aside(target) else { return Ok(()) };
        for list in pieces {
            // SAFETY: the caller's promise, and the scratch is as large as a step's residual stream.
            unsafe { aside.set_aside(gpu, list)? };
        }
        Ok(())
    }

    /// After base and low-rank updates: gains, shifts, bottlenecks, and the residual stream again.
    /// `input` of each list has everything but x.
    ///
    /// # Safety
    /// As above.
    pub(crate) unsafe fn finish(
        &mut self,
        gpu: &Gpu,
        target: &Target,
        inputs: [(Pieces, LoraInput); 2],
    ) -> Result<(), DriverError> {
        let (parts, aside) = (self.at(target.site), self.aside(target));
        let &Target { site, num_outputs, out, is_f32, .. } = target;
        for (kind, input) in inputs {
            let pieces = (input.pieces, input.num_pieces);
            let half = (!is_f32).then_some(self.half);
            // SAFETY: the caller's promise; the scratch is as large as the output of O or Down.
            unsafe {
                if parts.has(SiteParts::OUTPUT) {
                    apply_gains(gpu, half, pieces, (site, Gain::Out), (out, num_outputs))?;
                }
                if parts.has(SiteParts::BOTTLENECK) {
                    self.bottleneck(gpu, target, kind, input, BottleneckInput::Output)?;
                }
                if let Some(aside) = aside {
                    aside.put_back(gpu, pieces)?;
                }
                if parts.has(SiteParts::RESIDUAL_BOTTLENECK) {
                    self.bottleneck(gpu, target, kind, input, BottleneckInput::Residual)?;
                }
            }
        }
        Ok(())
    }

    /// The bottlenecks that read this, of the pieces of a list.
    ///
    /// # Safety
    /// As above.
    unsafe fn bottleneck(
        &self,
        gpu: &Gpu,
        target: &Target,
        kind: Pieces,
        input: LoraInput,
        reads: BottleneckInput,
    ) -> Result<(), DriverError> {
        let &Target { site, num_outputs, out, is_f32, .. } = target;
        let Some(site) = bottleneck_index(site, self.num_layers, reads) else { return Ok(()) };
        assert!(is_f32, "a bottleneck reads f32");
        let input = LoraInput { x: self.scratch.ptr(), num_inputs: num_outputs, ..input };
        let target = LoraTarget { site, num_outputs, out };
        // SAFETY: the caller's promise; the scratch is as large as the output of O or Down.
        unsafe { bottleneck(gpu, (self.half, kind), &input, target) }
    }

    /// Where the residual stream waits, if an adapter of the step changes what is added to it.
    fn aside(&self, target: &Target) -> Option<Aside> {
        let changes = SiteParts::OUTPUT.or(SiteParts::BOTTLENECK);
        let bottleneck = bottleneck_index(target.site, self.num_layers, BottleneckInput::Output)?;
        let waits = target.is_accumulated && self.at(target.site).has(changes);
        let &Target { site, num_outputs: width, out: y, .. } = target;
        waits.then(|| Aside { site, bottleneck, y, aside: self.aside.ptr(), width })
    }
}
