//! Tiles of float weights: the operations of `matmul::float` in its order, halves converted by the
//! instruction for it, and of eight rows four at a time, which is what fits in registers.

use super::TileSums;
use crate::lanes::{Bf16, F16};
use crate::vector::{Neon, Stored, Vector};
use crate::weight::{Format, TILE};
use std::ops::Range;

/// Sums of a tile of `[num_inputs][16]` floats for `rows` of `x:[T,K]`.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(in crate::matmul) unsafe fn float_tile(
    format: Format,
    values: &[u8],
    x: &[f32],
    num_inputs: usize,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let x = &x[rows.start * num_inputs..rows.end * num_inputs];
    match format {
        Format::F16 => tile_of::<F16>(values, x, num_inputs, sums),
        Format::Bf16 => tile_of::<Bf16>(values, x, num_inputs, sums),
        _ => tile_of::<f32>(values, x, num_inputs, sums),
    }
}

#[inline(always)]
fn tile_of<T: Stored>(values: &[u8], x: &[f32], num_inputs: usize, sums: &mut TileSums) {
    let num_rows = x.len() / num_inputs;
    let mut row = 0;
    while row < num_rows {
        let (x, sums) = (&x[row * num_inputs..], &mut sums[row..]);
        row += match num_rows - row {
            4.. => rows::<T, 4>(values, x, num_inputs, sums),
            2.. => rows::<T, 2>(values, x, num_inputs, sums),
            _ => rows::<T, 1>(values, x, num_inputs, sums),
        };
    }
}

/// The first `ROWS` rows of `x`; returns their number.
#[inline(always)]
fn rows<T: Stored, const ROWS: usize>(
    values: &[u8],
    x: &[f32],
    num_inputs: usize,
    sums: &mut [[f32; TILE]],
) -> usize {
    let mut inputs = [&x[..num_inputs]; ROWS];
    for (row, input) in inputs.iter_mut().enumerate() {
        *input = &x[row * num_inputs..(row + 1) * num_inputs];
    }
    let mut acc = [Neon::splat(0.0); ROWS];
    for (k, w) in values.chunks_exact(TILE * T::SIZE).take(num_inputs).enumerate() {
        let w = T::load::<Neon>(w);
        for row in 0..ROWS {
            acc[row] = Neon::splat(inputs[row][k]).mul_add(w, acc[row]);
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        *sums = acc.to_lanes();
    }
    ROWS
}
