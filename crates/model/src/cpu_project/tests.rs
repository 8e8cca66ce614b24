//! Against a double-precision reference, and against itself alone.

use super::*;
use std::sync::Arc;
use weft_kernels::PackedLinear;
use weft_kernels::arena::Arena;
use weft_kernels::pack::Packer;
use weft_kernels::weight::Format;
use weft_types::{
    Activation, AdapterTensor, BlockId, Bottleneck, BottleneckInput, Dtype, LowRankUpdate,
    LoweredAdapter, Module, PackedAdapter, SiteVectors,
};

const RANK: usize = 3;

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    fn tensor(&mut self, rows: usize, cols: usize) -> AdapterTensor {
        let data = self.floats(rows * cols).iter().flat_map(|v| v.to_le_bytes()).collect();
        AdapterTensor { dtype: Dtype::F32, rows, cols, data, row_scales: None }
    }
}

fn site() -> Site {
    Site::Layer { layer: 0, module: Module::O }
}

/// With some of: a low-rank update, input and output vectors, a bottleneck, which may read the residual
/// stream.
fn adapter(
    noise: &mut Noise,
    [num_inputs, num_outputs]: [usize; 2],
    [low_rank, input, output, bottleneck, of_residual]: [bool; 5],
) -> LoweredAdapter {
    let mut adapter = LoweredAdapter::default();
    if low_rank {
        let (a, b) = (noise.tensor(RANK, num_inputs), noise.tensor(RANK, num_outputs));
        adapter.low_rank.push(LowRankUpdate { site: site(), scale: 0.5, a, b });
    }
    if input || output {
        adapter.vectors.push(SiteVectors {
            site: site(),
            input: input.then(|| noise.floats(num_inputs).into()),
            output: output.then(|| noise.floats(num_outputs).into()),
            shift: output.then(|| noise.floats(num_outputs).into()),
        });
    }
    if bottleneck {
        let reads = if of_residual { BottleneckInput::Residual } else { BottleneckInput::Output };
        adapter.bottlenecks.push(Bottleneck {
            site: site(),
            reads,
            a: noise.tensor(RANK, num_outputs),
            a_bias: noise.floats(RANK).into(),
            activation: Activation::Tanh,
            b: noise.tensor(RANK, num_outputs),
            b_bias: noise.floats(num_outputs).into(),
        });
    }
    adapter
}

fn place(lowered: &LoweredAdapter) -> Arc<PlacedAdapter> {
    let packed = PackedAdapter::pack(lowered, 1024).unwrap();
    let chunks: Vec<BlockId> = (0..packed.num_chunks as u32).map(BlockId).collect();
    let lent = Arena::new(chunks.len().max(1), 1024).lend(&chunks);
    Arc::new(PlacedAdapter::copy(&packed, lent))
}

fn numbers(tensor: &AdapterTensor) -> Vec<f64> {
    let floats = tensor.data.as_chunks::<4>().0.iter();
    floats.map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
}

/// The output, or the residual stream `before` with it.
fn reference(
    weight: &[Vec<f32>],
    bias: &[f32],
    x: &[f32],
    adapter: &LoweredAdapter,
    before: &[f64],
) -> Vec<f64> {
    let vectors = adapter.vectors.first();
    let of = |vector: Option<&Box<[f32]>>, i: usize, none: f64| {
        vector.map_or(none, |vector| f64::from(vector[i]))
    };
    let gain_in = |i| of(vectors.and_then(|v| v.input.as_ref()), i, 1.0);
    let dot = |a: &[f64], x: &[f64]| a.iter().zip(x).map(|(a, x)| a * x).sum::<f64>();
    let plain: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let scaled: Vec<f64> = plain.iter().enumerate().map(|(i, x)| x * gain_in(i)).collect();
    let row = |row: &Vec<f32>| row.iter().map(|&w| f64::from(w)).collect::<Vec<_>>();
    let mut y: Vec<f64> = weight.iter().map(|w| dot(&row(w), &scaled)).collect();
    let width = y.len();
    y.iter_mut().zip(bias).for_each(|(y, b)| *y += f64::from(*b));
    if let Some(update) = adapter.low_rank.first() {
        let (a, b) = (numbers(&update.a), numbers(&update.b));
        for (a, b) in a.chunks(x.len()).zip(b.chunks(width)) {
            let h = f64::from(update.scale) * dot(a, &plain);
            y.iter_mut().zip(b).for_each(|(y, b)| *y += h * b);
        }
    }
    for (n, y) in y.iter_mut().enumerate() {
        *y = *y * of(vectors.and_then(|v| v.output.as_ref()), n, 1.0)
            + of(vectors.and_then(|v| v.shift.as_ref()), n, 0.0);
    }
    let output = y.clone();
    y.iter_mut().zip(before).for_each(|(y, before)| *y += before);
    if let Some(bottleneck) = adapter.bottlenecks.first() {
        let (a, b) = (numbers(&bottleneck.a), numbers(&bottleneck.b));
        let x = match bottleneck.reads {
            BottleneckInput::Output => output,
            BottleneckInput::Residual => y.clone(),
        };
        y.iter_mut().zip(&bottleneck.b_bias).for_each(|(y, d)| *y += f64::from(*d));
        for (j, (a, b)) in a.chunks(width).zip(b.chunks(width)).enumerate() {
            let h = (dot(a, &x) + f64::from(bottleneck.a_bias[j])).tanh();
            y.iter_mut().zip(b).for_each(|(y, b)| *y += h * b);
        }
    }
    y
}

struct Linear {
    weight: PackedLinear,
    bias: Vec<f32>,
    accumulate: bool,
}

/// x times the linear, added to `before`.
fn project(linear: &Linear, x: &[f32], before: &[f32], segments: &[AdapterSegment]) -> Vec<f32> {
    let (num_inputs, num_outputs) = (linear.weight.num_inputs(), linear.weight.num_outputs());
    let pool = ThreadPool::new(2);
    let tensor = |width: usize, values: &[f32]| {
        let mut tensor = CpuTensor::new(values.len() / width, width);
        tensor.set_rows(values.len() / width).copy_from_slice(values);
        tensor
    };
    let (x, mut out) = (tensor(num_inputs, x), tensor(num_outputs, before));
    let mut projector = Projector::default();
    // Twice: what a step leaves behind does not matter to the next.
    for _ in 0..2 {
        out.data_mut().copy_from_slice(before);
        let projection = Projection {
            weight: &linear.weight,
            bias: Some(&linear.bias),
            site: site(),
            accumulate: linear.accumulate,
            out: &mut out,
        };
        projector.project((&pool, Isa::detect()), &x, segments, &mut [projection]);
    }
    out.data().to_vec()
}

/// Every choice of parts, some rows each, the base among them.
fn batch(noise: &mut Noise, shape: [usize; 2]) -> (Vec<LoweredAdapter>, Vec<AdapterSegment>) {
    let (mut adapters, mut segments) = (Vec::new(), Vec::new());
    let mut row = 0;
    for choice in 0..32 {
        let parts = [0, 1, 2, 3, 4].map(|part| choice >> part & 1 == 1);
        let lowered = adapter(noise, shape, parts);
        let rows = row..row + 1 + choice % 3;
        row = rows.end;
        let placed = (choice > 0).then(|| place(&lowered));
        segments.push(AdapterSegment { rows, adapter: placed });
        adapters.push(lowered);
    }
    (adapters, segments)
}

#[test]
fn every_choice_of_parts_is_near_its_reference_and_has_the_same_bits_alone() {
    let (num_inputs, num_outputs) = (40, 50);
    let mut noise = Noise(7);
    let (adapters, segments) = batch(&mut noise, [num_inputs, num_outputs]);
    let num_rows = segments.last().unwrap().rows.end;
    let rows: Vec<Vec<f32>> = (0..num_outputs).map(|_| noise.floats(num_inputs)).collect();
    let mut packer = Packer::new(Format::F32, num_outputs, num_inputs);
    rows.iter().enumerate().for_each(|(index, row)| packer.set_float(index, row));
    let (weight, bias) = (packer.finish(), noise.floats(num_outputs));
    let mut linear = Linear { weight, bias, accumulate: false };
    let x = noise.floats(num_rows * num_inputs);
    let before = noise.floats(num_rows * num_outputs);
    for accumulate in [false, true] {
        linear.accumulate = accumulate;
        let got = project(&linear, &x, &before, &segments);
        for (segment, lowered) in segments.iter().zip(&adapters) {
            let of = |width: usize| segment.rows.start * width..segment.rows.end * width;
            let (x, before) = (&x[of(num_inputs)], &before[of(num_outputs)]);
            let got = &got[of(num_outputs)];
            let alone =
                AdapterSegment { rows: 0..segment.rows.len(), adapter: segment.adapter.clone() };
            assert_eq!(project(&linear, x, before, &[alone]), got, "{:?}", segment.rows);
            for (t, got) in got.chunks(num_outputs).enumerate() {
                let x = &x[t * num_inputs..][..num_inputs];
                let before = before[t * num_outputs..][..num_outputs].iter();
                let before: Vec<_> = before
                    .map(|&before| if accumulate { f64::from(before) } else { 0.0 })
                    .collect();
                let want = reference(&rows, &linear.bias, x, lowered, &before);
                for (got, want) in got.iter().zip(want) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 1e-4, "row {t} of {:?}: {got}, not {want}", segment.rows);
                }
            }
        }
    }
}
