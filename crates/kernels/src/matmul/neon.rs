//! Tiles with NEON: those of integer weights as registers of four outputs, two or four at once.
//!
//! In: packed blocks, quantized rows. Out: sums, with the bits of `portable::tile`: products of a
//! group are summed exactly, and what follows is the same. `dot` multiplies bytes, four inputs of four
//! outputs in an instruction; `widening`, for machines without that, 16-bit integers. Float weights are in `float`.

mod dot;
mod float;
mod widening;

pub(crate) use dot::split;
pub(super) use float::float_tile;

use super::{MAX_ROWS, TileSums};
use crate::Isa;
use crate::quantize::QuantizedRows;
use crate::vector::eight_halves;
use crate::weight::{Format, GROUP, TILE};
use std::arch::aarch64::{
    float32x4_t, int32x4_t, vcvtq_f32_s32, vdupq_n_f32, vfmaq_f32, vmulq_n_f32, vst1q_f32,
};
use std::ops::Range;

/// As `portable::tile`.
pub(super) fn tile(
    isa: Isa,
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let num_rows = rows.len();
    assert!(num_rows <= MAX_ROWS && rows.end * x.num_inputs <= x.codes.len());
    assert!(blocks.len() >= x.num_inputs / format.group() * format.group_bytes());
    let has_dot = isa == Isa::NeonDot;
    assert!(!has_dot || x.planes.len() >= rows.end * x.num_inputs / GROUP);
    let mut row = 0;
    while row < num_rows {
        let step = match num_rows - row {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (first, sums) = (rows.start + row, &mut sums[row..]);
        // Two sums a register of outputs and row, and those of all groups: 24 of 32 registers.
        // SAFETY: this module runs only where `Isa::available` found the instructions, and the
        // assertions above cover every address that the kernels read.
        unsafe {
            match (step, has_dot) {
                (4, true) => {
                    dot::rows_at::<4, 2>(format, blocks, x, first, 0, sums);
                    dot::rows_at::<4, 2>(format, blocks, x, first, 2, sums);
                }
                (2, true) => dot::rows_at::<2, 4>(format, blocks, x, first, 0, sums),
                (_, true) => dot::rows_at::<1, 4>(format, blocks, x, first, 0, sums),
                (4, false) => {
                    widening::rows_at::<4, 2>(format, blocks, x, first, 0, sums);
                    widening::rows_at::<4, 2>(format, blocks, x, first, 2, sums);
                }
                (2, false) => widening::rows_at::<2, 4>(format, blocks, x, first, 0, sums),
                (_, false) => widening::rows_at::<1, 4>(format, blocks, x, first, 0, sums),
            }
        }
        row += step;
    }
}

/// Bytes of a register.
const BYTES: usize = 16;
/// Bytes of the halves of a tile's scales or mins that belong to one register.
const HALVES: usize = 8;

/// Sums for some rows and registers of outputs, over the groups so far.
type Acc<const ROWS: usize, const REGISTERS: usize> = [[float32x4_t; REGISTERS]; ROWS];

/// Products of a group, as two sums that are not put together yet.
type Dots<const ROWS: usize, const REGISTERS: usize> = [[[int32x4_t; 2]; REGISTERS]; ROWS];

#[inline]
#[target_feature(enable = "neon")]
fn zero_acc<const ROWS: usize, const REGISTERS: usize>() -> Acc<ROWS, REGISTERS> {
    [[vdupq_n_f32(0.0); REGISTERS]; ROWS]
}

/// `acc += dot * (scale * x_scale)`, then `+= min * x_total`, of group `group`.
///
/// # Safety
/// The machine has NEON; at `block` are the scales of `REGISTERS` registers and, 32 bytes on, their
/// mins; rows `first..first + ROWS` exist and have such a group.
// Inlined where the compiler would not, so that nothing leaves its register.
#[inline(always)]
unsafe fn add_group<
    const ROWS: usize,
    const REGISTERS: usize,
    const WIDTH: usize,
    const HAS_MIN: bool,
>(
    acc: &mut Acc<ROWS, REGISTERS>,
    dots: [[int32x4_t; REGISTERS]; ROWS],
    block: *const u8,
    x: &QuantizedRows,
    first: usize,
    group: usize,
) {
    for pair in 0..REGISTERS / 2 {
        // SAFETY: as promised by the caller; activations have a scale for 32 inputs.
        unsafe {
            let block = block.add(2 * HALVES * pair);
            let scale = eight_halves(block);
            for row in 0..ROWS {
                let index = ((first + row) * x.num_inputs + group * WIDTH) / GROUP;
                let x_scale = *x.scales.get_unchecked(index);
                for i in 0..2 {
                    let register = 2 * pair + i;
                    let (scaled, dot) = (vmulq_n_f32(scale[i], x_scale), dots[row][register]);
                    let acc = &mut acc[row][register];
                    *acc = vfmaq_f32(*acc, vcvtq_f32_s32(dot), scaled);
                }
            }
            if HAS_MIN {
                let min = eight_halves(block.add(2 * TILE));
                for row in 0..ROWS {
                    let index = ((first + row) * x.num_inputs + group * WIDTH) / GROUP;
                    let x_total = vdupq_n_f32(*x.totals.get_unchecked(index));
                    for i in 0..2 {
                        let acc = &mut acc[row][2 * pair + i];
                        *acc = vfmaq_f32(*acc, min[i], x_total);
                    }
                }
            }
        }
    }
}

/// Stores sums of outputs from register `register` on.
#[inline]
#[target_feature(enable = "neon")]
fn store<const ROWS: usize, const REGISTERS: usize>(
    acc: &Acc<ROWS, REGISTERS>,
    register: usize,
    sums: &mut [[f32; TILE]],
) {
    for (acc, sums) in acc.iter().zip(sums) {
        for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<4>().0[register..].iter_mut()) {
            // SAFETY: four floats to write.
            unsafe { vst1q_f32(sums.as_mut_ptr(), *acc) };
        }
    }
}
