//! Tiles of float weights: inputs in order, one accumulator per row and output.

use super::{MAX_ROWS, TileSums};
use crate::isa::multiversion;
use crate::lanes::{Bf16, Element, F16, axpy_lanes, load};
use crate::weight::TILE;
use std::ops::Range;

multiversion! {
    pub(super) fn tile_f32(values: &[f32], x: &[f32], num_inputs: usize, rows: Range<usize>, sums: &mut TileSums)
        = tile_f32_body
}
multiversion! {
    pub(super) fn tile_f16(values: &[F16], x: &[f32], num_inputs: usize, rows: Range<usize>, sums: &mut TileSums)
        = tile_f16_body
}
multiversion! {
    pub(super) fn tile_bf16(values: &[Bf16], x: &[f32], num_inputs: usize, rows: Range<usize>, sums: &mut TileSums)
        = tile_bf16_body
}

#[inline(always)]
fn tile_f32_body<const FMA: bool>(
    values: &[f32],
    x: &[f32],
    num_inputs: usize,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    tile::<f32, FMA>(values, x, num_inputs, rows, sums);
}

#[inline(always)]
fn tile_f16_body<const FMA: bool>(
    values: &[F16],
    x: &[f32],
    num_inputs: usize,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    tile::<F16, FMA>(values, x, num_inputs, rows, sums);
}

#[inline(always)]
fn tile_bf16_body<const FMA: bool>(
    values: &[Bf16],
    x: &[f32],
    num_inputs: usize,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    tile::<Bf16, FMA>(values, x, num_inputs, rows, sums);
}

#[inline(always)]
fn tile<T: Element, const FMA: bool>(
    values: &[T],
    x: &[f32],
    num_inputs: usize,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let num_rows = rows.len();
    let x = &x[rows.start * num_inputs..rows.end * num_inputs];
    match num_rows {
        MAX_ROWS => rows_at::<T, FMA, MAX_ROWS>(values, x, num_inputs, sums),
        4..MAX_ROWS => {
            rows_at::<T, FMA, 4>(values, x, num_inputs, sums);
            for row in 4..num_rows {
                rows_at::<T, FMA, 1>(values, &x[row * num_inputs..], num_inputs, &mut sums[row..]);
            }
        }
        _ => {
            for row in 0..num_rows {
                rows_at::<T, FMA, 1>(values, &x[row * num_inputs..], num_inputs, &mut sums[row..]);
            }
        }
    }
}

#[inline(always)]
fn rows_at<T: Element, const FMA: bool, const ROWS: usize>(
    values: &[T],
    x: &[f32],
    num_inputs: usize,
    sums: &mut [[f32; TILE]],
) {
    let mut acc = [[0.0; TILE]; ROWS];
    let mut inputs = [&x[..num_inputs]; ROWS];
    for (row, input) in inputs.iter_mut().enumerate() {
        *input = &x[row * num_inputs..(row + 1) * num_inputs];
    }
    for (k, w) in values.chunks_exact(TILE).take(num_inputs).enumerate() {
        let w = load(w);
        for row in 0..ROWS {
            axpy_lanes::<FMA>(inputs[row][k], &w, &mut acc[row]);
        }
    }
    sums[..ROWS].copy_from_slice(&acc);
}
