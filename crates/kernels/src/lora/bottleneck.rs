//! `y[t,:] += act(y[t,:] A^T + c) B + d`   y:[T,N] A:[r,N] c:[r] B:[r,N] d:[N]
//!
//! Serial adapters (Houlsby 2019, Pfeiffer 2020): both products are those of low-rank updates, with a
//! nonlinearity between. Rows, ranks and outputs are split over threads; sums have one order.

use super::expand::expand;
use super::placed::PlacedMatrix;
use super::shrink::shrink;
use super::vectors::shift_row;
use super::{LoraScratch, OUTPUTS_PER_ITEM, Part, PlacedAdapter, RANKS_PER_ITEM, split};
use crate::Isa;
use crate::pool::{DisjointMut, ThreadPool};
use std::ops::Range;
use weft_types::{Activation, BottleneckInput, PackedBottleneck, Site};

/// Of items that have whole rows: more than any rank.
const WHOLE_ROWS: usize = 1 << 30;

/// A [`PackedBottleneck`] on the device.
#[derive(Clone, Copy, Debug)]
pub struct PlacedBottleneck<'a> {
    packed: &'a PackedBottleneck,
    adapter: &'a PlacedAdapter,
}

impl PlacedAdapter {
    /// The bottleneck at `site`, if the adapter has one.
    #[must_use]
    pub fn bottleneck_at(&self, site: Site) -> Option<PlacedBottleneck<'_>> {
        Some(PlacedBottleneck { packed: self.layout().bottleneck_at(site)?, adapter: self })
    }
}

impl<'a> PlacedBottleneck<'a> {
    /// What it is to be applied to.
    #[must_use]
    pub fn reads(&self) -> BottleneckInput {
        self.packed.reads
    }

    fn a(&self) -> PlacedMatrix<'a> {
        self.adapter.matrix(&self.packed.a)
    }

    fn b(&self) -> PlacedMatrix<'a> {
        self.adapter.matrix(&self.packed.b)
    }

    /// `t[j] = act(t[j] + c[j]) · b_scales[j]`
    fn activate(&self, t: &mut [f32]) {
        let bias = self.adapter.vector(&self.packed.a_bias);
        for ((t, bias), scale) in t.iter_mut().zip(bias).zip(&self.packed.b_scales) {
            *t = activated(self.packed.activation, *t + f32::from_le_bytes(*bias)) * scale;
        }
    }
}

/// Applies each segment's bottleneck to its rows of y, which are `num_outputs` wide.
/// `bottleneck(segment)` names them.
///
/// # Panics
/// When a shape does not fit.
pub fn apply_bottlenecks<'a>(
    pool: &ThreadPool,
    isa: Isa,
    segments: &[Range<usize>],
    (y, num_outputs): (&mut [f32], usize),
    bottleneck: impl Fn(usize) -> Option<PlacedBottleneck<'a>> + Sync,
    scratch: &mut LoraScratch,
) {
    let LoraScratch { shrunk, parts, items, .. } = scratch;
    parts.clear();
    let mut num_shrunk = 0;
    for (segment, rows) in segments.iter().enumerate() {
        let Some(placed) = bottleneck(segment) else { continue };
        let PackedBottleneck { a, b, a_bias, b_bias, .. } = placed.packed;
        assert_eq!((a.cols, b.cols, b_bias.cols), (num_outputs, num_outputs, num_outputs));
        assert_eq!((a.rows, a_bias.cols), (b.rows, b.rows), "one rank");
        parts.push(Part { segment, target: 0, rank: a.rows, start: num_shrunk });
        num_shrunk += rows.len() * a.rows;
    }
    if parts.is_empty() {
        return;
    }
    shrunk.resize(num_shrunk, 0.0);
    let find = |part: &Part| bottleneck(part.segment).expect("found a moment ago");
    let shrunk = DisjointMut::new(shrunk);
    let grain = |num_items: usize| num_items.div_ceil(8 * pool.num_threads());

    split(parts, segments, RANKS_PER_ITEM, |part| part.rank, items);
    pool.run(items.len(), grain(items.len()), |range| {
        for item in &items[range] {
            let part = &parts[item.part];
            let placed = find(part);
            let x = &y[segments[part.segment].start * num_outputs..];
            shrink(isa, &placed.a(), &placed.packed.a_scales, x, item, part, shrunk);
        }
    });
    let y = DisjointMut::new(y);
    split(parts, segments, WHOLE_ROWS, |part| part.rank, items);
    pool.run(items.len(), grain(items.len()), |range| {
        for item in &items[range] {
            let part = &parts[item.part];
            let placed = find(part);
            let bias = placed.adapter.vector(&placed.packed.b_bias);
            for row in item.rows.clone() {
                let start = part.start + row * part.rank;
                let first = (segments[part.segment].start + row) * num_outputs;
                // SAFETY: rows are disjoint, and shrinking has ended.
                unsafe {
                    placed.activate(shrunk.slice(start..start + part.rank));
                    shift_row(isa, bias, y.slice(first..first + num_outputs));
                }
            }
        }
    });
    split(parts, segments, OUTPUTS_PER_ITEM, |_| num_outputs, items);
    pool.run(items.len(), grain(items.len()), |range| {
        for item in &items[range] {
            let part = &parts[item.part];
            let rows = &segments[part.segment];
            // SAFETY: the part's rows are activated; nobody writes them any more.
            let t = unsafe { shrunk.read(part.start..part.start + rows.len() * part.rank) };
            expand(isa, &find(part).b(), t, rows.start, item, y);
        }
    });
}

fn activated(activation: Activation, x: f32) -> f32 {
    /// √(2 / π)
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    match activation {
        // A NaN stays one: who checks must find it.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Gelu => 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + libm::tanhf(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
        }
        Activation::Silu => x / (1.0 + libm::expf(-x)),
        Activation::Tanh => libm::tanhf(x),
        Activation::Identity => x,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DTYPES, noise, place_lowered, tensor, value};
    use super::*;
    use weft_types::{Bottleneck, LoweredAdapter};

    #[test]
    fn activations_are_those_of_torch() {
        // torch.nn.functional of 0.7 and -1.3, in double precision.
        for (activation, want) in [
            (Activation::Relu, [0.7, 0.0]),
            (Activation::Gelu, [0.530_625_443_4, -0.125_840_630_0]),
            (Activation::GeluTanh, [0.530_570_134_7, -0.126_070_987_7]),
            (Activation::Silu, [0.467_730_541_5, -0.278_414_522_0]),
            (Activation::Tanh, [0.604_367_777_1, -0.861_723_159_3]),
            (Activation::Identity, [0.7, -1.3]),
        ] {
            for (x, want) in [0.7, -1.3].into_iter().zip(want) {
                let got = f64::from(activated(activation, x));
                assert!((got - want).abs() < 1e-6, "{activation:?}({x}) = {got}, not {want}");
            }
            assert!(activated(activation, f32::NAN).is_nan(), "{activation:?}");
        }
    }

    fn run(placed: &PlacedAdapter, y: &[f32], isa: Isa, num_threads: usize) -> Vec<f32> {
        let width = placed.layout().bottlenecks[0].b.cols;
        // A row before that no adapter has.
        let mut rows = vec![0.5; width];
        rows.extend_from_slice(y);
        let segments = [0..1, 1..rows.len() / width];
        let find = |segment: usize| placed.bottleneck_at(Site::LmHead).filter(|_| segment == 1);
        let pool = ThreadPool::new(num_threads);
        let y = (rows.as_mut_slice(), width);
        apply_bottlenecks(&pool, isa, &segments, y, find, &mut LoraScratch::default());
        assert_eq!(rows[..width], vec![0.5; width]);
        rows.split_off(width)
    }

    #[test]
    fn both_products_are_near_their_reference_in_any_type_and_never_depend_on_other_rows() {
        let (width, rank, num_rows) = (70, 11, 37);
        let mut next = noise(1);
        let y: Vec<f32> = (0..num_rows * width).map(|_| next()).collect();
        for dtype in DTYPES {
            let mut floats = |len: usize| (0..len).map(|_| next()).collect::<Box<[f32]>>();
            let (a_bias, b_bias) = (floats(rank), floats(width));
            let (a, b) =
                (tensor(dtype, rank, width, &mut next), tensor(dtype, rank, width, &mut next));
            let activation = Activation::Tanh;
            let (site, reads) = (Site::LmHead, BottleneckInput::Output);
            let bottleneck = Bottleneck { site, reads, a, a_bias, activation, b, b_bias };
            let lowered =
                LoweredAdapter { bottlenecks: vec![bottleneck], ..LoweredAdapter::default() };
            let placed = place_lowered(&lowered, 1 << 16);
            let split = place_lowered(&lowered, 2 * (4 * width).next_multiple_of(64));
            let Bottleneck { a, a_bias, b, b_bias, .. } = &lowered.bottlenecks[0];
            for isa in Isa::available() {
                let got = run(&placed, &y, isa, 2);
                assert_eq!(run(&split, &y, isa, 2), got, "{dtype:?} in several pages");
                for (y, got) in y.chunks(width).zip(got.chunks(width)) {
                    assert_eq!(run(&placed, y, isa, 1), got, "{dtype:?} alone");
                    for n in 0..width {
                        let of_rank = |j: usize| {
                            let sum: f64 =
                                (0..width).map(|k| f64::from(y[k]) * value(a, j, k)).sum();
                            (sum + f64::from(a_bias[j])).tanh() * value(b, j, n)
                        };
                        let sum: f64 = (0..rank).map(of_rank).sum();
                        let want = f64::from(y[n]) + f64::from(b_bias[n]) + sum;
                        assert!((f64::from(got[n]) - want).abs() < 1e-4, "{dtype:?} {isa}");
                    }
                }
            }
        }
    }
}
