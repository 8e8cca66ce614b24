//! Linears with all that adapters do to them, on the CPU.
//!
//! In: x, the batch's segments, up to three linears. Out: `y = g_out ⊙ (W (g_in ⊙ x) + b + low-rank) +
//! shift`, then the bottleneck, then the residual stream where a linear adds to it. Most batches have
//! low-rank updates only: then linears share a pass over x. Else each is on its own, and rows that an
//! adapter changes after the sum are kept apart from the residual stream until they are complete. Rows
//! that none changes have the same bits as in other batches: what is added to them is rounded as there.

use crate::batch::AdapterSegment;
use crate::cpu::{CpuDevice, CpuTensor};
use crate::device::Projection;
use std::ops::Range;
use weft_kernels::lora::{self, LoraScratch, LoraTarget};
use weft_kernels::matmul::{self, Input, Job};
use weft_kernels::quantize::{Activations, QuantizedRows};
use weft_kernels::{Isa, PlacedAdapter, ThreadPool};
use weft_types::{BottleneckInput, Site};

/// Memory for projections: it grows to the largest step's and is used again.
#[derive(Debug, Default)]
pub(crate) struct Projector {
    quantized: QuantizedRows,
    pub(crate) lora: LoraScratch,
    segments: Vec<Range<usize>>,
    /// x with input gains, `[T, K]`, and quantized.
    scaled: Vec<f32>,
    scaled_quantized: QuantizedRows,
    /// What is not yet in the residual stream, `[T, N]`.
    apart: Vec<f32>,
}

/// On which threads, with which instructions.
type Workers<'a> = (&'a ThreadPool, Isa);

impl Projector {
    /// Of these activations.
    pub(crate) fn new(activations: Activations) -> Self {
        let quantized = QuantizedRows::new(activations);
        Self { scaled_quantized: quantized.clone(), quantized, ..Self::default() }
    }

    /// See the module.
    pub(crate) fn project(
        &mut self,
        (pool, isa): Workers<'_>,
        x: &CpuTensor,
        segments: &[AdapterSegment],
        projections: &mut [Projection<'_, CpuDevice>],
    ) {
        let num_rows = x.num_rows();
        if projections.iter().any(|projection| projection.weight.format().is_integer()) {
            self.quantized.quantize(pool, isa, x.data(), x.width());
        }
        for projection in projections.iter_mut() {
            projection.out.set_rows(num_rows);
        }
        self.segments.clear();
        self.segments.extend(segments.iter().map(|segment| segment.rows.clone()));
        if projections.iter().any(|projection| AtSite::new(segments, projection.site).is_special())
        {
            for projection in projections {
                self.project_one((pool, isa), x, segments, projection);
            }
            return;
        }
        let input = Input { rows: x.data(), quantized: &self.quantized, num_rows };
        let mut sites = [Site::LmHead; 3];
        for (site, projection) in sites.iter_mut().zip(projections.iter()) {
            *site = projection.site;
        }
        let mut jobs = projections.iter_mut().map(|projection| Job {
            weight: projection.weight,
            bias: projection.bias.map(Vec::as_slice),
            accumulate: projection.accumulate,
            out: projection.out.data_mut(),
        });
        // One to three, on the stack.
        match (jobs.next(), jobs.next(), jobs.next()) {
            (Some(a), Some(b), Some(c)) => matmul::matmul(pool, isa, input, &mut [a, b, c]),
            (Some(a), Some(b), None) => matmul::matmul(pool, isa, input, &mut [a, b]),
            (Some(a), ..) => matmul::matmul(pool, isa, input, &mut [a]),
            (None, ..) => return,
        }
        if segments.iter().all(|segment| segment.adapter.is_none()) {
            return;
        }
        let mut targets = projections.iter_mut().map(|projection| LoraTarget {
            num_outputs: projection.weight.num_outputs(),
            out: projection.out.data_mut(),
        });
        let update =
            |segment: usize, target: usize| segments[segment].adapter.as_ref()?.at(sites[target]);
        let (rows, scratch) = (&self.segments, &mut self.lora);
        let mut apply = |targets: &mut [LoraTarget<'_>]| {
            lora::apply(pool, isa, x.data(), x.width(), rows, targets, update, scratch);
        };
        match (targets.next(), targets.next(), targets.next()) {
            (Some(a), Some(b), Some(c)) => apply(&mut [a, b, c]),
            (Some(a), Some(b), None) => apply(&mut [a, b]),
            (Some(a), ..) => apply(&mut [a]),
            (None, ..) => {}
        }
    }

    /// With gains, shifts and bottlenecks.
    fn project_one(
        &mut self,
        (pool, isa): Workers<'_>,
        x: &CpuTensor,
        segments: &[AdapterSegment],
        projection: &mut Projection<'_, CpuDevice>,
    ) {
        let at = AtSite::new(segments, projection.site);
        let num_outputs = projection.weight.num_outputs();
        let num_rows = x.num_rows();
        let mut input = Input { rows: x.data(), quantized: &self.quantized, num_rows };
        if at.has_input_gain() {
            at.scale_input((pool, isa), x, &mut self.scaled);
            input.rows = &self.scaled;
            if projection.weight.format().is_integer() {
                self.scaled_quantized.quantize(pool, isa, &self.scaled, x.width());
                input.quantized = &self.scaled_quantized;
            }
        }
        let changes = |index: usize| at.changes_output(index);
        let is_apart = projection.accumulate && (0..segments.len()).any(changes);
        let (scratch, rows, apart) = (&mut self.lora, &self.segments, &mut self.apart);
        let out = projection.out.data_mut();
        if is_apart {
            apart.resize(out.len(), 0.0);
        }
        matmul::matmul(
            pool,
            isa,
            input,
            &mut [Job {
                weight: projection.weight,
                bias: projection.bias.map(Vec::as_slice),
                accumulate: projection.accumulate && !is_apart,
                out: if is_apart { &mut apart[..] } else { &mut out[..] },
            }],
        );
        // Adds the low-rank updates of some segments.
        let mut update = |out: &mut [f32], of: &(dyn Fn(usize) -> bool + Sync)| {
            let update = |index: usize, _: usize| {
                of(index).then_some(())?;
                segments[index].adapter.as_ref()?.at(projection.site)
            };
            let mut targets = [LoraTarget { num_outputs, out }];
            lora::apply(pool, isa, x.data(), x.width(), rows, &mut targets, update, scratch);
        };
        let numbers = |rows: &Range<usize>| rows.start * num_outputs..rows.end * num_outputs;
        let add = |apart: &[f32], out: &mut [f32], are_changed: bool| {
            for (index, rows) in rows.iter().enumerate() {
                if changes(index) == are_changed {
                    lora::add_rows(pool, isa, &apart[numbers(rows)], &mut out[numbers(rows)]);
                }
            }
        };
        if is_apart {
            add(apart, out, false);
            update(out, &|index| !changes(index));
            update(apart, &changes);
        } else {
            update(out, &|_| true);
        }
        let y = if is_apart { &mut apart[..] } else { &mut out[..] };
        for (index, rows) in rows.iter().enumerate() {
            if let Some(vectors) = at.vectors(index) {
                lora::gain_and_shift(pool, isa, &vectors, &mut y[numbers(rows)]);
            }
        }
        let bottleneck = |index: usize| at.bottleneck(index, BottleneckInput::Output);
        lora::apply_bottlenecks(pool, isa, rows, (y, num_outputs), bottleneck, scratch);
        if is_apart {
            add(apart, out, true);
        }
        let bottleneck = |index: usize| at.bottleneck(index, BottleneckInput::Residual);
        lora::apply_bottlenecks(pool, isa, rows, (out, num_outputs), bottleneck, scratch);
    }
}

/// What the segments' adapters do at a site beside low-rank updates.
#[derive(Clone, Copy)]
struct AtSite<'a> {
    segments: &'a [AdapterSegment],
    site: Site,
}

impl<'a> AtSite<'a> {
    fn new(segments: &'a [AdapterSegment], site: Site) -> Self {
        Self { segments, site }
    }

    fn adapter(self, index: usize) -> Option<&'a PlacedAdapter> {
        self.segments[index].adapter.as_deref()
    }

    fn vectors(self, index: usize) -> Option<lora::PlacedVectors<'a>> {
        self.adapter(index)?.vectors_at(self.site)
    }

    fn input_gain(self, index: usize) -> Option<lora::PlacedVector<'a>> {
        self.vectors(index)?.input()
    }

    fn bottleneck(
        self,
        index: usize,
        reads: BottleneckInput,
    ) -> Option<lora::PlacedBottleneck<'a>> {
        self.adapter(index)?.bottleneck_at(self.site).filter(|placed| placed.reads() == reads)
    }

    fn changes_output(self, index: usize) -> bool {
        self.vectors(index).is_some_and(|vectors| vectors.changes_output())
            || self.bottleneck(index, BottleneckInput::Output).is_some()
    }

    /// Whether there is anything.
    fn is_special(self) -> bool {
        (0..self.segments.len()).any(|index| {
            self.adapter(index).is_some_and(|adapter| {
                adapter.vectors_at(self.site).is_some()
                    || adapter.bottleneck_at(self.site).is_some()
            })
        })
    }

    fn has_input_gain(self) -> bool {
        (0..self.segments.len()).any(|index| self.input_gain(index).is_some())
    }

    /// x, with the gains of rows that have one.
    fn scale_input(self, (pool, isa): Workers<'_>, x: &CpuTensor, scaled: &mut Vec<f32>) {
        scaled.resize(x.data().len(), 0.0);
        for (index, segment) in self.segments.iter().enumerate() {
            let numbers = segment.rows.start * x.width()..segment.rows.end * x.width();
            let (from, to) = (&x.data()[numbers.clone()], &mut scaled[numbers]);
            match self.input_gain(index) {
                Some(gain) => lora::scale_rows_into(pool, isa, gain, from, to),
                None => to.copy_from_slice(from),
            }
        }
    }
}

#[cfg(test)]
mod tests;
