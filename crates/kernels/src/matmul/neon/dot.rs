//! Products with `sdot`: four signed bytes by four signed bytes, summed, in each of four outputs.
//!
//! A 12-bit code of an activation is `16 * high + low`, both signed bytes: two sums, put together after
//! a group. A 4-bit weight is a byte already, an 8-bit one becomes one when its offset is subtracted.

use super::{Acc, BYTES, Dots, HALVES, add_group, store, zero_acc};
use crate::quantize::QuantizedRows;
use crate::weight::{CacheLine, Format, GROUP, TILE};
use std::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, vaddq_s16, vaddq_s32, vandq_u8, vcombine_s8, vdupq_n_s8,
    vdupq_n_s16, vdupq_n_s32, vdupq_n_u8, vld1q_s8, vld1q_s16, vld1q_u8, vmovn_s16, vqtbl1q_s8,
    vreinterpretq_s8_u8, vshlq_n_s16, vshlq_n_s32, vshrq_n_s16, vshrq_n_u8, vst1q_s8, vsubq_s16,
    vsubq_u8,
};
use std::arch::asm;

/// Order of the codes of eight inputs, high halves and then low ones, in a register: that in which
/// 4-bit weights lie (`weight::w4_position`), first those of low nibbles.
const ORDER: [u8; BYTES] = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15];
/// From that order to the one of 8-bit weights (`weight::w8_position`): 0 2 1 3 and 4 6 5 7.
const REORDER: [u8; BYTES] = [0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15];

/// High and low halves of each eight codes: a line of four registers a group.
///
/// # Safety
/// The machine has NEON.
///
/// # Panics
/// When `codes` are not as many groups as there are lines.
pub(crate) unsafe fn split(codes: &[i16], planes: &mut [CacheLine]) {
    let (groups, rest) = codes.as_chunks::<GROUP>();
    assert!(rest.is_empty() && groups.len() == planes.len(), "a line a group");
    for (codes, plane) in groups.iter().zip(planes) {
        for (codes, plane) in codes.as_chunks::<8>().0.iter().zip(plane.0.as_chunks_mut().0) {
            // SAFETY: as promised by the caller.
            unsafe { split_eight(codes, plane) };
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn split_eight(codes: &[i16; 8], plane: &mut [u8; BYTES]) {
    // SAFETY: sixteen bytes to read, as many to write.
    unsafe {
        let codes: int16x8_t = vld1q_s16(codes.as_ptr());
        // From -8 to 7, so that both halves are signed.
        let high = vshrq_n_s16::<4>(vaddq_s16(codes, vdupq_n_s16(8)));
        let low = vsubq_s16(codes, vshlq_n_s16::<4>(high));
        let halves = vcombine_s8(vmovn_s16(high), vmovn_s16(low));
        vst1q_s8(plane.as_mut_ptr().cast(), vqtbl1q_s8(halves, vld1q_u8(ORDER.as_ptr())));
    }
}

/// Sums of `REGISTERS` registers of outputs from `register` on.
///
/// # Safety
/// The machine has dot products; `blocks` holds a whole tile; rows `first..first + ROWS` exist, also in
/// the planes.
#[target_feature(enable = "neon,dotprod")]
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
#[target_feature(enable = "neon,dotprod")]
unsafe fn w4<const ROWS: usize, const REGISTERS: usize>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    register: usize,
) -> Acc<ROWS, REGISTERS> {
    let mask = vdupq_n_u8(15);
    let stride = x.num_inputs / GROUP * 64;
    let mut acc = zero_acc();
    // SAFETY: `block` walks over blocks of 320 bytes, of which the same registers of each 64-byte line
    // and each row of scales are read; `planes` over the rows' lines, one a group.
    unsafe {
        let mut block = blocks.as_ptr();
        let mut planes = x.planes.as_ptr().cast::<i8>().add(first * stride);
        for group in 0..x.num_inputs / GROUP {
            let mut dots = zero_dots();
            for part in 0..4 {
                let codes = block.add(4 * TILE + 64 * part + BYTES * register);
                for i in 0..REGISTERS {
                    let packed = vld1q_u8(codes.add(BYTES * i));
                    let w = [
                        vreinterpretq_s8_u8(vandq_u8(packed, mask)),
                        vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed)),
                    ];
                    for row in 0..ROWS {
                        let x = vld1q_s8(planes.add(row * stride + BYTES * part));
                        add_products(&mut dots[row][i], w, x);
                    }
                }
            }
            add_group::<ROWS, REGISTERS, GROUP, true>(
                &mut acc,
                joined(dots),
                block.add(HALVES * register),
                x,
                first,
                group,
            );
            block = block.add(Format::W4.group_bytes());
            planes = planes.add(64);
        }
    }
    acc
}

/// # Safety
/// As [`rows_at`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn w8<const ROWS: usize, const REGISTERS: usize, const WIDTH: usize, const HAS_MIN: bool>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    register: usize,
    offset: u8,
) -> Acc<ROWS, REGISTERS> {
    let offset = vdupq_n_u8(offset);
    let header = if HAS_MIN { 4 * TILE } else { 2 * TILE };
    let stride = x.num_inputs / GROUP * 64;
    let mut acc = zero_acc();
    // SAFETY: as in `w4`, with blocks of `header + 16 * WIDTH` bytes and two bytes of planes an input.
    unsafe {
        let reorder = vld1q_u8(REORDER.as_ptr());
        let mut block = blocks.as_ptr();
        let mut planes = x.planes.as_ptr().cast::<i8>().add(first * stride);
        for group in 0..x.num_inputs / WIDTH {
            let mut dots = zero_dots();
            for part in 0..WIDTH / 8 {
                let codes = block.add(header + 128 * part + BYTES * register);
                let mut inputs = [vdupq_n_s8(0); ROWS];
                for (row, input) in inputs.iter_mut().enumerate() {
                    let x = vld1q_s8(planes.add(row * stride + BYTES * part));
                    *input = vqtbl1q_s8(x, reorder);
                }
                for i in 0..REGISTERS {
                    let codes = codes.add(BYTES * i);
                    let w = [
                        vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(codes), offset)),
                        vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(codes.add(64)), offset)),
                    ];
                    for row in 0..ROWS {
                        add_products(&mut dots[row][i], w, inputs[row]);
                    }
                }
            }
            add_group::<ROWS, REGISTERS, WIDTH, HAS_MIN>(
                &mut acc,
                joined(dots),
                block.add(HALVES * register),
                x,
                first,
                group,
            );
            block = block.add(header + TILE * WIDTH);
            planes = planes.add(2 * WIDTH);
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "neon")]
fn zero_dots<const ROWS: usize, const REGISTERS: usize>() -> Dots<ROWS, REGISTERS> {
    [[[vdupq_n_s32(0); 2]; REGISTERS]; ROWS]
}

/// `16 * high + low`
#[inline]
#[target_feature(enable = "neon")]
fn joined<const ROWS: usize, const REGISTERS: usize>(
    dots: Dots<ROWS, REGISTERS>,
) -> [[int32x4_t; REGISTERS]; ROWS] {
    let mut joined = [[vdupq_n_s32(0); REGISTERS]; ROWS];
    for row in 0..ROWS {
        for i in 0..REGISTERS {
            let [high, low] = dots[row][i];
            joined[row][i] = vaddq_s32(vshlq_n_s32::<4>(high), low);
        }
    }
    joined
}

/// Adds the products of eight inputs: `x` has four high halves for `w[0]`, four for `w[1]`, then the
/// low halves.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products(dots: &mut [int32x4_t; 2], w: [int8x16_t; 2], x: int8x16_t) {
    dots[0] = dot::<0>(dots[0], w[0], x);
    dots[1] = dot::<2>(dots[1], w[0], x);
    dots[0] = dot::<1>(dots[0], w[1], x);
    dots[1] = dot::<3>(dots[1], w[1], x);
}

/// `sum += w · x[LANE]`, of four bytes each. In assembly: the compiler's function for it is newer than
/// the compiler that we ask for.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: u32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
