//! Fills a [`PackedLinear`] row by row from what a file holds.

use crate::lanes::{Bf16, Element, F16};
use crate::weight::{Format, PackedLinear, TILE, w4_position, w8_position};

/// Takes the rows of a weight matrix in any order.
#[derive(Debug)]
pub struct Packer {
    linear: PackedLinear,
}

/// A quantized row: `value[k] = scales[k / group] * (codes[k] - offset) + mins[k / group]`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRow<'a> {
    /// One code per input, below 16 for `W4`.
    pub codes: &'a [u8],
    /// One per group; stored in half precision.
    pub scales: &'a [f32],
    /// One per group, or empty if the format has none; stored in half precision.
    pub mins: &'a [f32],
}

impl Packer {
    /// A matrix `[num_outputs, num_inputs]` of zeros.
    ///
    /// # Panics
    /// When `num_inputs` is not a whole number of the format's groups.
    #[must_use]
    pub fn new(format: Format, num_outputs: usize, num_inputs: usize) -> Self {
        Self { linear: PackedLinear::zeroed(format, num_outputs, num_inputs) }
    }

    /// The same for a format of codes whose rows are given, and stored, in another order of inputs:
    /// `order[k]` is the input that the `k`-th code of a row belongs to.
    ///
    /// # Panics
    /// As [`Self::new`], and when `order` does not name each input once.
    #[must_use]
    pub fn with_order(
        format: Format,
        num_outputs: usize,
        num_inputs: usize,
        order: Vec<u32>,
    ) -> Self {
        let mut packer = Self::new(format, num_outputs, num_inputs);
        packer.linear.set_order(order);
        packer
    }

    pub(crate) fn linear_mut(&mut self) -> &mut PackedLinear {
        &mut self.linear
    }

    /// Stores row `row` of a quantized format.
    ///
    /// # Panics
    /// When lengths do not fit the format.
    pub fn set_quantized(&mut self, row: usize, source: QuantizedRow<'_>) {
        let format = self.linear.format();
        let (group, lane) = (format.group(), row % TILE);
        let has_min = match format {
            Format::W4 => true,
            Format::W8 { has_min, .. } => has_min,
            _ => panic!("{format:?} is not quantized"),
        };
        assert!(row < self.linear.num_outputs() && source.codes.len() == self.linear.num_inputs());
        assert_eq!(source.scales.len(), source.codes.len() / group);
        assert_eq!(source.mins.len(), if has_min { source.scales.len() } else { 0 });
        if let Format::W8 { offset, .. } = format {
            // AMX multiplies them as signed bytes.
            let fits = |&code: &u8| i8::try_from(i16::from(code) - i16::from(offset)).is_ok();
            assert!(source.codes.iter().all(fits), "codes less their offset are signed bytes");
        }
        let blocks = self.linear.tile_mut(row / TILE).chunks_exact_mut(format.group_bytes());
        for (index, (block, codes)) in blocks.zip(source.codes.chunks_exact(group)).enumerate() {
            let (scales, rest) = block.split_at_mut(2 * TILE);
            scales[2 * lane..2 * lane + 2]
                .copy_from_slice(&F16::from_f32(source.scales[index]).0.to_le_bytes());
            let (mins, out) = rest.split_at_mut(if has_min { 2 * TILE } else { 0 });
            if has_min {
                mins[2 * lane..2 * lane + 2]
                    .copy_from_slice(&F16::from_f32(source.mins[index]).0.to_le_bytes());
            }
            for (k, &code) in codes.iter().enumerate() {
                if format == Format::W4 {
                    let (byte, shift) = w4_position(lane, k);
                    out[byte] = out[byte] & !(15 << shift) | (code & 15) << shift;
                } else {
                    out[w8_position(lane, k)] = code;
                }
            }
        }
    }

    /// Stores row `row` of a float format, rounding to it.
    ///
    /// # Panics
    /// When the length does not fit, or the format is quantized.
    pub fn set_float(&mut self, row: usize, values: &[f32]) {
        assert!(row < self.linear.num_outputs() && values.len() == self.linear.num_inputs());
        let format = self.linear.format();
        let tile = self.linear.tile_mut(row / TILE);
        for (out, &value) in tile.chunks_exact_mut(format.group_bytes()).zip(values) {
            let lane = row % TILE;
            match format {
                Format::F32 => out[4 * lane..4 * lane + 4].copy_from_slice(&value.to_le_bytes()),
                Format::F16 => out[2 * lane..2 * lane + 2]
                    .copy_from_slice(&F16::from_f32(value).0.to_le_bytes()),
                Format::Bf16 => out[2 * lane..2 * lane + 2]
                    .copy_from_slice(&Bf16::from_f32(value).0.to_le_bytes()),
                _ => panic!("{format:?} is not a float format"),
            }
        }
    }

    /// The packed matrix.
    #[must_use]
    pub fn finish(self) -> PackedLinear {
        self.linear
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quantized_row_reads_back(
            num_outputs in 1usize..40, num_groups in 1usize..4, seed in any::<u32>(), kind in 0..4
        ) {
            let (format, max_code, offset) = match kind {
                0 => (Format::W4, 15u32, 0),
                1 => (Format::W8 { group: 32, offset: 128, has_min: false }, 255, 128),
                2 => (Format::W8 { group: 16, offset: 32, has_min: false }, 63, 32),
                _ => (Format::W8 { group: 32, offset: 0, has_min: true }, 31, 0),
            };
            let group = format.group();
            let num_inputs = num_groups * 32;
            let has_min = kind == 0 || kind == 3;
            let mut packer = Packer::new(format, num_outputs, num_inputs);
            let mut state = seed;
            let mut next = move || { state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); state >> 8 };
            let mut want = Vec::new();
            for row in 0..num_outputs {
                let codes: Vec<u8> = (0..num_inputs).map(|_| (next() % (max_code + 1)) as u8).collect();
                let scales: Vec<f32> = (0..num_inputs / group).map(|_| (next() % 64) as f32 / 32.0).collect();
                let mins: Vec<f32> = if has_min { scales.iter().map(|s| -3.0 * s).collect() } else { vec![] };
                packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
                want.push((0..num_inputs).map(|k| scales[k / group] * (f32::from(codes[k]) - offset as f32)
                    + mins.get(k / group).copied().unwrap_or(0.0)).collect::<Vec<_>>());
            }
            let linear = packer.finish();
            let mut got = vec![0.0; num_inputs];
            for (row, want) in want.iter().enumerate() {
                linear.dequantize_row_into(row, &mut got);
                prop_assert_eq!(&got, want);
            }
        }

        #[test]
        fn a_float_row_reads_back(num_outputs in 1usize..40, num_inputs in 1usize..40) {
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let mut packer = Packer::new(format, num_outputs, num_inputs);
                let row: Vec<f32> = (0..num_inputs).map(|k| k as f32 * 0.25).collect();
                packer.set_float(num_outputs - 1, &row);
                let mut got = vec![0.0; num_inputs];
                packer.finish().dequantize_row_into(num_outputs - 1, &mut got);
                prop_assert_eq!(&got, &row);
            }
        }
    }
}
