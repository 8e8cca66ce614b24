//! Products with `smlal`: two inputs of two outputs in an instruction, as 16-bit integers. The sums of
//! even and odd inputs are put together after a group.

use super::{Acc, BYTES, Dots, HALVES, add_group, store, zero_acc};
use crate::quantize::QuantizedRows;
use crate::weight::{Format, GROUP, TILE};
use std::arch::aarch64::{
    int16x8_t, int32x4_t, uint32x4_t, vaddq_s32, vandq_u32, vdupq_n_s16, vdupq_n_s32, vdupq_n_u32,
    vget_low_s16, vld1q_u32, vmlal_high_s16, vmlal_s16, vpaddq_s32, vreinterpretq_s16_s32,
    vreinterpretq_s16_u32, vshrq_n_u32,
};

/// Sums of `REGISTERS` registers of outputs from `register` on.
///
/// # Safety
/// The machine has NEON; `blocks` holds a whole tile; rows `first..first + ROWS` exist.
#[target_feature(enable = "neon")]
pub(super) unsafe fn rows_at<const ROWS: usize, const REGISTERS: usize>(
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    register: usize,
    sums: &mut [[f32; TILE]],
) {
    // SAFETY: as promised by the caller.
    let acc: Acc<ROWS, REGISTERS> = unsafe {
        match format {
            Format::W8 { group: 16, offset, .. } => {
                w8::<ROWS, REGISTERS, 16, false>(blocks, x, first, register, offset)
            }
            Format::W8 { offset, has_min: false, .. } => {
                w8::<ROWS, REGISTERS, GROUP, false>(blocks, x, first, register, offset)
            }
            Format::W8 { offset, .. } => {
                w8::<ROWS, REGISTERS, GROUP, true>(blocks, x, first, register, offset)
            }
            _ => w4(blocks, x, first, register),
        }
    };
    store(&acc, register, sums);
}

/// # Safety
/// As [`rows_at`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn w4<const ROWS: usize, const REGISTERS: usize>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    register: usize,
) -> Acc<ROWS, REGISTERS> {
    let mask = vdupq_n_u32(0x000f_000f);
    let stride = x.num_inputs / 2;
    let mut acc = zero_acc();
    // SAFETY: `block` walks over blocks of 320 bytes, of which the same registers of each 64-byte line
    // and each row of scales are read; `pairs` over the rows' codes, two to a 32-bit word.
    unsafe {
        let mut block = blocks.as_ptr();
        let mut pairs = x.codes.as_ptr().add(first * x.num_inputs).cast::<i32>();
        for group in 0..x.num_inputs / GROUP {
            let mut dots = [[[vdupq_n_s32(0); 2]; REGISTERS]; ROWS];
            for part in 0..4 {
                let codes = block.add(4 * TILE + 64 * part + BYTES * register);
                let pairs = pairs.add(4 * part);
                add_products::<ROWS, REGISTERS, 4, 4>(&mut dots, codes, mask, pairs, stride);
            }
            add_group::<ROWS, REGISTERS, GROUP, true>(
                &mut acc,
                joined(dots, [0; ROWS]),
                block.add(HALVES * register),
                x,
                first,
                group,
            );
            block = block.add(Format::W4.group_bytes());
            pairs = pairs.add(GROUP / 2);
        }
    }
    acc
}

/// # Safety
/// As [`rows_at`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn w8<const ROWS: usize, const REGISTERS: usize, const WIDTH: usize, const HAS_MIN: bool>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    register: usize,
    offset: u8,
) -> Acc<ROWS, REGISTERS> {
    let mask = vdupq_n_u32(0x00ff_00ff);
    let header = if HAS_MIN { 4 * TILE } else { 2 * TILE };
    let (stride, offset) = (x.num_inputs / 2, i32::from(offset));
    let mut acc = zero_acc();
    // SAFETY: as in `w4`, with blocks of `header + 16 * WIDTH` bytes; sums have one entry for 16 inputs.
    unsafe {
        let mut block = blocks.as_ptr();
        let mut pairs = x.codes.as_ptr().add(first * x.num_inputs).cast::<i32>();
        for group in 0..x.num_inputs / WIDTH {
            let mut dots = [[[vdupq_n_s32(0); 2]; REGISTERS]; ROWS];
            for part in 0..WIDTH / 4 {
                let codes = block.add(header + 64 * part + BYTES * register);
                let pairs = pairs.add(2 * part);
                add_products::<ROWS, REGISTERS, 2, 8>(&mut dots, codes, mask, pairs, stride);
            }
            let mut offsets = [0; ROWS];
            for (row, total) in offsets.iter_mut().enumerate() {
                let index = ((first + row) * x.num_inputs + group * WIDTH) / 16;
                let mut x_sum = *x.sums.get_unchecked(index);
                if WIDTH == GROUP {
                    x_sum += *x.sums.get_unchecked(index + 1);
                }
                *total = -offset * x_sum;
            }
            add_group::<ROWS, REGISTERS, WIDTH, HAS_MIN>(
                &mut acc,
                joined(dots, offsets),
                block.add(HALVES * register),
                x,
                first,
                group,
            );
            block = block.add(header + TILE * WIDTH);
            pairs = pairs.add(WIDTH / 2);
        }
    }
    acc
}

/// Even plus odd plus what belongs to the row.
#[inline]
#[target_feature(enable = "neon")]
fn joined<const ROWS: usize, const REGISTERS: usize>(
    dots: Dots<ROWS, REGISTERS>,
    offsets: [i32; ROWS],
) -> [[int32x4_t; REGISTERS]; ROWS] {
    let mut joined = [[vdupq_n_s32(0); REGISTERS]; ROWS];
    for row in 0..ROWS {
        for i in 0..REGISTERS {
            let [low, high] = dots[row][i];
            joined[row][i] = vaddq_s32(vpaddq_s32(low, high), vdupq_n_s32(offsets[row]));
        }
    }
    joined
}

/// Adds the products of `PAIRS` pairs of inputs: `dots` has those of the first two outputs and those
/// of the other two, even and odd inputs side by side. A weight has `BITS` bits.
///
/// # Safety
/// The machine has NEON; `REGISTERS` registers are readable at `codes`, and `PAIRS` words at `x` and
/// every `stride` words on for each row.
#[inline(always)]
unsafe fn add_products<
    const ROWS: usize,
    const REGISTERS: usize,
    const PAIRS: usize,
    const BITS: i32,
>(
    dots: &mut Dots<ROWS, REGISTERS>,
    codes: *const u8,
    mask: uint32x4_t,
    x: *const i32,
    stride: usize,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut packed = [mask; REGISTERS];
        for (i, packed) in packed.iter_mut().enumerate() {
            *packed = vld1q_u32(codes.add(BYTES * i).cast());
        }
        // Pairs outside and rows inside: more inputs at once would not fit in registers.
        for pair in 0..PAIRS {
            let mut w = [vdupq_n_s16(0); REGISTERS];
            for (w, packed) in w.iter_mut().zip(&mut packed) {
                *w = vreinterpretq_s16_u32(vandq_u32(*packed, mask));
                *packed = vshrq_n_u32::<BITS>(*packed);
            }
            for (row, dots) in dots.iter_mut().enumerate() {
                let x = vdupq_n_s32(x.add(row * stride + pair).read_unaligned());
                let x: int16x8_t = vreinterpretq_s16_s32(x);
                for (dots, &w) in dots.iter_mut().zip(&w) {
                    dots[0] = vmlal_s16(dots[0], vget_low_s16(w), vget_low_s16(x));
                    dots[1] = vmlal_high_s16(dots[1], w, x);
                }
            }
        }
    }
}
