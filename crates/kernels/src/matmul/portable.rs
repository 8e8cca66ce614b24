//! Tiles of integer weights in plain Rust: the meaning that the SIMD versions must keep.

use super::TileSums;
use crate::isa::PORTABLE_FMA;
use crate::lanes::{Element, F16, fma};
use crate::quantize::QuantizedRows;
use crate::weight::{Format, GROUP, TILE, w4_position, w8_position};
use std::ops::Range;

pub(super) fn tile(
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let (group, num_inputs) = (format.group(), x.num_inputs);
    let (offset, has_min) = match format {
        Format::W8 { offset, has_min, .. } => (i32::from(offset), has_min),
        _ => (0, true),
    };
    *sums = TileSums::default();
    for (index, block) in blocks.chunks_exact(format.group_bytes()).enumerate() {
        let (scales, rest) = block.split_at(2 * TILE);
        let (mins, packed) = rest.split_at(if has_min { 2 * TILE } else { 0 });
        let mut codes = [[0i32; TILE]; GROUP];
        for (k, codes) in codes[..group].iter_mut().enumerate() {
            for (lane, code) in codes.iter_mut().enumerate() {
                *code = i32::from(if format == Format::W4 {
                    let (byte, shift) = w4_position(lane, k);
                    packed[byte] >> shift & 15
                } else {
                    packed[w8_position(lane, k)]
                });
            }
        }
        for (row, sums) in rows.clone().zip(sums.iter_mut()) {
            let start = row * num_inputs + index * group;
            let x_scale = x.scales[start / GROUP];
            let x_sum: i32 = x.sums[start / 16..(start + group) / 16].iter().sum();
            let mut dot = [-offset * x_sum; TILE];
            for (codes, &x) in codes.iter().zip(&x.codes[start..start + group]) {
                for lane in 0..TILE {
                    dot[lane] += codes[lane] * i32::from(x);
                }
            }
            for lane in 0..TILE {
                let scaled = half(scales, lane) * x_scale;
                sums[lane] = fma::<PORTABLE_FMA>(dot[lane] as f32, scaled, sums[lane]);
            }
            if has_min {
                let x_total = x_scale * x_sum as f32;
                for lane in 0..TILE {
                    sums[lane] = fma::<PORTABLE_FMA>(half(mins, lane), x_total, sums[lane]);
                }
            }
        }
    }
}

fn half(bytes: &[u8], index: usize) -> f32 {
    F16(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])).to_f32()
}
