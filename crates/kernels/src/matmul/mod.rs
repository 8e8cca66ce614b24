//! `y:[T,N] (+)= x:[T,K] W^T (+ bias)` for packed weights, one pass over the weights per call.
//!
//! Work is split by tiles of sixteen outputs. A tile's weights are read once for all rows, eight
//! rows at a time in registers. For integer formats the products of a group are summed exactly in
//! 32-bit integers, then scaled and added in single precision, group by group: an order that
//! depends on neither the number of rows nor the threads. AMX and AVX-512 give the same bits, so
//! that each can take the row counts that it is faster at; so do all sets of aarch64.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bytes;
mod coded;
mod dequantized;
mod float;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;

use crate::Isa;
use crate::lanes::{Bf16, F16};
use crate::pool::{DisjointMut, ThreadPool};
#[cfg(target_arch = "x86_64")]
use crate::quantize::Activations;
use crate::quantize::QuantizedRows;
use crate::weight::{Format, PackedLinear, TILE};

/// Sums of one tile for up to [`MAX_ROWS`] rows.
pub(crate) type TileSums = [[f32; TILE]; MAX_ROWS];

/// Rows whose sums are kept in registers at once.
pub(crate) const MAX_ROWS: usize = 8;

/// The input of a matmul.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[T, K]`, for weights that are multiplied in single precision.
    pub rows: &'a [f32],
    /// The same rows quantized, for integer weights, which are multiplied with `rows` if these are of
    /// single precision; else unused.
    pub quantized: &'a QuantizedRows,
    /// T
    pub num_rows: usize,
}

/// One weight that multiplies the input.
#[derive(Debug)]
pub struct Job<'a> {
    /// W
    pub weight: &'a PackedLinear,
    /// `[N]`
    pub bias: Option<&'a [f32]>,
    /// Add to `out` instead of overwriting it.
    pub accumulate: bool,
    /// `[T, N]`
    pub out: &'a mut [f32],
}

/// Runs all jobs on one input.
///
/// # Panics
/// When shapes do not agree.
pub fn matmul(pool: &ThreadPool, isa: Isa, input: Input<'_>, jobs: &mut [Job<'_>]) {
    struct Target<'a> {
        weight: &'a PackedLinear,
        x: &'a [f32],
        bias: Option<&'a [f32]>,
        accumulate: bool,
        out: DisjointMut<'a, f32>,
        first_tile: usize,
    }
    let mut ordered: [Vec<f32>; 3] = Default::default();
    for (ordered, job) in ordered.iter_mut().zip(&*jobs) {
        if let Some(order) = job.weight.order() {
            *ordered = gather_columns(pool, input.rows, order);
        }
    }
    let mut num_tiles = 0;
    // At most q, k, v: no allocation.
    let mut targets: [Option<Target<'_>>; 3] = [None, None, None];
    assert!(jobs.len() <= targets.len(), "at most three linears share an input");
    for ((target, job), ordered) in targets.iter_mut().zip(jobs).zip(&ordered) {
        let (num_inputs, num_outputs) = (job.weight.num_inputs(), job.weight.num_outputs());
        if job.weight.format().is_integer() && input.quantized.is_integer() {
            assert_eq!(input.quantized.num_inputs, num_inputs, "input width");
            assert!(input.quantized.codes.len() >= input.num_rows * num_inputs);
        } else {
            assert_eq!(input.rows.len(), input.num_rows * num_inputs, "input width");
        }
        assert_eq!(job.out.len(), input.num_rows * num_outputs, "output width");
        assert!(job.bias.is_none_or(|bias| bias.len() == num_outputs), "bias width");
        *target = Some(Target {
            weight: job.weight,
            x: if job.weight.order().is_some() { ordered } else { input.rows },
            bias: job.bias,
            accumulate: job.accumulate,
            out: DisjointMut::new(job.out),
            first_tile: num_tiles,
        });
        num_tiles += job.weight.num_tiles();
    }
    // About eight claims a thread: enough to even out, few enough to be cheap.
    let grain = num_tiles.div_ceil(pool.num_threads() * 8);
    pool.run(num_tiles, grain, |tiles| {
        #[cfg(target_arch = "x86_64")]
        let registers = (isa == Isa::Amx).then(amx::TileRegisters::of_this_thread);
        for tile in tiles {
            let target = targets.iter().flatten().rev().find(|target| target.first_tile <= tile);
            let target = target.expect("the first target starts at tile 0");
            let (weight, tile) = (target.weight, tile - target.first_tile);
            let columns = tile * TILE..((tile + 1) * TILE).min(weight.num_outputs());
            let bias = target.bias.map(|bias| &bias[columns.clone()]);
            let store_row = |row: usize, sums: &[f32; TILE]| {
                let start = row * weight.num_outputs();
                // SAFETY: tiles are disjoint columns, and each is claimed once.
                let out = unsafe { target.out.slice(start + columns.start..start + columns.end) };
                store(sums, bias, target.accumulate, out);
            };
            #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
            let mut first = 0;
            #[cfg(target_arch = "x86_64")]
            if let Some(registers) = &registers
                && weight.format().is_integer()
                && input.quantized.is_integer()
            {
                let (x, num_rows) = (input.quantized, input.num_rows);
                let next = if tile + 1 < weight.num_tiles() { weight.tile(tile + 1) } else { &[] };
                let (format, blocks) = (weight.format(), weight.tile(tile));
                first = registers.tile(format, blocks, next, x, num_rows, store_row);
            }
            if first == input.num_rows {
                continue;
            }
            let mut sums = TileSums::default();
            for row in (first..input.num_rows).step_by(MAX_ROWS) {
                let num_rows = MAX_ROWS.min(input.num_rows - row);
                let input = Input { rows: target.x, ..input };
                tile_sums(isa, weight, tile, input, row..row + num_rows, &mut sums);
                for (row, sums) in (row..row + num_rows).zip(&sums) {
                    store_row(row, sums);
                }
            }
        }
    });
}

/// `out[t,k] = x[t,order[k]]`, for weights whose inputs are stored in another order (act-order). Models
/// with such weights pay for it with an allocation a linear, and for q, k and v once each.
fn gather_columns(pool: &ThreadPool, x: &[f32], order: &[u32]) -> Vec<f32> {
    let num_inputs = order.len();
    assert!(x.len().is_multiple_of(num_inputs), "input width");
    let mut out = vec![0.0; x.len()];
    let rows = DisjointMut::new(&mut out);
    pool.run(x.len() / num_inputs, 8, |range| {
        for row in range {
            let columns = row * num_inputs..(row + 1) * num_inputs;
            let x = &x[columns.clone()];
            // SAFETY: each row is claimed once.
            let out = unsafe { rows.slice(columns) };
            for (out, &input) in out.iter_mut().zip(order) {
                *out = x[input as usize];
            }
        }
    });
    out
}

fn store(sums: &[f32; TILE], bias: Option<&[f32]>, accumulate: bool, out: &mut [f32]) {
    if let (Ok(out), None) = (<&mut [f32; TILE]>::try_from(&mut *out), bias) {
        // All but the last tile, and most models.
        for lane in 0..TILE {
            out[lane] = if accumulate { out[lane] + sums[lane] } else { sums[lane] };
        }
        return;
    }
    for (lane, out) in out.iter_mut().enumerate() {
        let value = sums[lane] + bias.map_or(0.0, |bias| bias[lane]);
        *out = if accumulate { *out + value } else { value };
    }
}

fn tile_sums(
    isa: Isa,
    weight: &PackedLinear,
    tile: usize,
    input: Input<'_>,
    rows: std::ops::Range<usize>,
    sums: &mut TileSums,
) {
    match weight.format() {
        #[cfg(target_arch = "aarch64")]
        format if format.is_float() && isa != Isa::Portable => {
            let (values, num_inputs) = (weight.tile(tile), weight.num_inputs());
            // SAFETY: an `Isa` other than portable is only made by `Isa::available`, which checked
            // that this machine has NEON.
            unsafe { neon::float_tile(format, values, input.rows, num_inputs, rows, sums) };
        }
        Format::F32 => {
            float::tile_f32(
                isa,
                weight.float_tile(tile),
                input.rows,
                weight.num_inputs(),
                rows,
                sums,
            );
        }
        Format::F16 => {
            let values: &[F16] = weight.float_tile(tile);
            float::tile_f16(isa, values, input.rows, weight.num_inputs(), rows, sums);
        }
        Format::Bf16 => {
            let values: &[Bf16] = weight.float_tile(tile);
            float::tile_bf16(isa, values, input.rows, weight.num_inputs(), rows, sums);
        }
        Format::W4 | Format::W8 { .. } if !input.quantized.is_integer() => {
            dequantized::tile(isa, weight, tile, input.rows, rows, sums);
        }
        format @ (Format::W4 | Format::W8 { .. }) => {
            let blocks = weight.tile(tile);
            #[cfg(target_arch = "x86_64")]
            let is_int8 = input.quantized.activations == Activations::Int8;
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 if is_int8 && format == Format::W4 => {
                    bytes::tile_avx2(blocks, input.quantized, rows, sums);
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Amx => avx512::tile(format, blocks, input.quantized, rows, sums),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::tile(format, blocks, input.quantized, rows, sums),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => {
                    neon::tile(isa, format, blocks, input.quantized, rows, sums);
                }
                _ => portable::tile(format, blocks, input.quantized, rows, sums),
            }
        }
        Format::Codebook { .. } | Format::ZeroPoint { .. } => {
            coded::tile(isa, weight, tile, input.rows, rows, sums);
        }
    }
}

/// `y = x W^T` in double precision, from the weights as stored: the reference for tests.
///
/// # Panics
/// When `x` is not `[T, K]`.
#[must_use]
pub fn reference(x: &[f32], weight: &PackedLinear) -> Vec<f64> {
    let num_inputs = weight.num_inputs();
    let mut row = vec![0.0; num_inputs];
    let num_rows = x.len() / num_inputs;
    let mut y = vec![0.0; num_rows * weight.num_outputs()];
    for output in 0..weight.num_outputs() {
        weight.dequantize_row_into(output, &mut row);
        for (t, x) in x.chunks_exact(num_inputs).enumerate() {
            y[t * weight.num_outputs() + output] =
                x.iter().zip(&row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        }
    }
    y
}

#[cfg(test)]
mod tests;
