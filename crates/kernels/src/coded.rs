//! Codes that are multiplied in single precision, as the number that they stand for times a scale: how a
//! group of a tile lies in memory, from rows and back. Knows no file; `matmul/coded.rs` multiplies.
//!
//! | part | bytes |
//! |---|---|
//! | scales | 16 × f32 |
//! | zeros, of `ZeroPoint` only | 16 × i8 |
//! | 4-bit codes | for eight inputs, 16 × a 32-bit word with input `i` in nibble `i` |
//! | 8-bit codes | for each input, 16 × i8 |
//!
//! Eight-bit codes and their zeros are stored less 128: the difference stays the same.

use crate::pack::Packer;
use crate::weight::{Format, PackedLinear, TILE};

/// Inputs whose 4-bit codes share a word.
pub(crate) const WORD_INPUTS: usize = 8;
/// Bytes of the scales of a group of a tile.
pub(crate) const SCALE_BYTES: usize = 4 * TILE;

/// A row: `value[k] = scales[k / group] * number(codes[k])`, with the codebook's number, or the code less
/// `zeros[k / group]`. Where the weight has an order, `k` counts stored inputs.
#[derive(Clone, Copy, Debug)]
pub struct CodedRow<'a> {
    /// One per input, below 16 for four bits.
    pub codes: &'a [u8],
    /// One per group.
    pub scales: &'a [f32],
    /// One per group of a `ZeroPoint`, below 16 for four bits; else empty.
    pub zeros: &'a [u8],
}

impl Format {
    /// Bits of a code, and whether groups have zeros; `None` for formats that are not of this kind.
    pub(crate) fn coded(self) -> Option<(usize, bool)> {
        match self {
            Self::Codebook { .. } => Some((4, false)),
            Self::ZeroPoint { bits, .. } => Some((bits, true)),
            _ => None,
        }
    }

    /// Bytes of a group of a tile before its codes.
    pub(crate) fn coded_header_bytes(self) -> usize {
        SCALE_BYTES + if matches!(self, Self::ZeroPoint { .. }) { TILE } else { 0 }
    }
}

/// What eight-bit codes and zeros are stored less.
fn bias(bits: usize) -> u8 {
    if bits == 8 { 0x80 } else { 0 }
}

fn nibble_position(lane: usize, k: usize) -> (usize, u32) {
    let nibble = k % WORD_INPUTS;
    (k / WORD_INPUTS * 4 * TILE + lane * 4 + nibble / 2, 4 * (nibble as u32 % 2))
}

impl Packer {
    /// Stores row `row` of a `Codebook` or `ZeroPoint` format.
    ///
    /// # Panics
    /// When lengths or codes do not fit the format.
    pub fn set_coded(&mut self, row: usize, source: CodedRow<'_>) {
        let linear = self.linear_mut();
        let format = linear.format();
        let (bits, has_zeros) = format.coded().expect("a format of codes");
        let (group, lane) = (format.group(), row % TILE);
        assert!(row < linear.num_outputs() && source.codes.len() == linear.num_inputs());
        assert_eq!(source.scales.len(), source.codes.len() / group);
        assert_eq!(source.zeros.len(), if has_zeros { source.scales.len() } else { 0 });
        let fits = |codes: &[u8]| bits == 8 || codes.iter().all(|&code| code < 16);
        assert!(fits(source.codes) && fits(source.zeros), "codes and zeros of {bits} bits");
        let blocks = linear.tile_mut(row / TILE).chunks_exact_mut(format.group_bytes());
        for (index, (block, codes)) in blocks.zip(source.codes.chunks_exact(group)).enumerate() {
            let (header, out) = block.split_at_mut(format.coded_header_bytes());
            header[4 * lane..4 * lane + 4].copy_from_slice(&source.scales[index].to_le_bytes());
            if let Some(&zero) = source.zeros.get(index) {
                header[SCALE_BYTES + lane] = zero ^ bias(bits);
            }
            for (k, &code) in codes.iter().enumerate() {
                if bits == 8 {
                    out[k * TILE + lane] = code ^ bias(bits);
                } else {
                    let (byte, shift) = nibble_position(lane, k);
                    out[byte] = out[byte] & !(15 << shift) | code << shift;
                }
            }
        }
    }
}

impl PackedLinear {
    /// Row `row` of a `Codebook` or `ZeroPoint` format as [`Packer::set_coded`] took it, for another
    /// device's layout.
    ///
    /// # Panics
    /// When `row` is out of range, the format is another or a length does not fit.
    pub fn coded_row_into(
        &self,
        row: usize,
        codes: &mut [u8],
        scales: &mut [f32],
        zeros: &mut [u8],
    ) {
        let (bits, has_zeros) = self.format().coded().expect("a format of codes");
        let (group, lane) = (self.format().group(), row % TILE);
        assert!(row < self.num_outputs(), "row {row} of {}", self.num_outputs());
        assert_eq!(codes.len(), self.num_inputs());
        assert_eq!(scales.len(), self.num_inputs() / group);
        assert_eq!(zeros.len(), if has_zeros { scales.len() } else { 0 });
        let blocks = self.tile(row / TILE).chunks_exact(self.format().group_bytes());
        for (index, (block, codes)) in blocks.zip(codes.chunks_exact_mut(group)).enumerate() {
            let (header, stored) = block.split_at(self.format().coded_header_bytes());
            scales[index] = f32::from_le_bytes(header.as_chunks().0[lane]);
            if has_zeros {
                zeros[index] = header[SCALE_BYTES + lane] ^ bias(bits);
            }
            for (k, code) in codes.iter_mut().enumerate() {
                *code = if bits == 8 {
                    stored[k * TILE + lane] ^ bias(bits)
                } else {
                    let (byte, shift) = nibble_position(lane, k);
                    stored[byte] >> shift & 15
                };
            }
        }
    }

    /// As `dequantize_row_into`, of these formats.
    pub(crate) fn dequantize_coded_row_into(&self, row: usize, out: &mut [f32]) {
        let group = self.format().group();
        let num_groups = self.num_inputs() / group;
        let has_zeros = matches!(self.format(), Format::ZeroPoint { .. });
        let mut codes = vec![0; self.num_inputs()];
        let mut scales = vec![0.0; num_groups];
        let mut zeros = vec![0; if has_zeros { num_groups } else { 0 }];
        self.coded_row_into(row, &mut codes, &mut scales, &mut zeros);
        for (k, &code) in codes.iter().enumerate() {
            let number = match self.format() {
                Format::Codebook { book, .. } => book.values()[usize::from(code)],
                _ => f32::from(i16::from(code) - i16::from(zeros[k / group])),
            };
            let input = self.order().map_or(k, |order| order[k] as usize);
            out[input] = scales[k / group] * number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codebook::Codebook;
    use proptest::prelude::*;

    /// Formats with groups of `group`.
    fn formats(group: usize) -> [Format; 4] {
        [
            Format::Codebook { book: Codebook::Nf4, group },
            Format::Codebook { book: Codebook::Fp4, group },
            Format::ZeroPoint { bits: 4, group },
            Format::ZeroPoint { bits: 8, group },
        ]
    }

    proptest! {
        #[test]
        fn a_row_of_codes_reads_back_in_any_order_of_inputs(
            num_outputs in 1usize..40, num_groups in 1usize..4, words in 1usize..9, seed in any::<u32>(),
            kind in 0usize..4, reversed in any::<bool>()
        ) {
            let group = words * WORD_INPUTS;
            let format = formats(group)[kind];
            let num_inputs = num_groups * group;
            let mut state = seed;
            let mut next = move |below: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) % below) as u8
            };
            let (bits, has_zeros) = format.coded().unwrap();
            let order: Vec<u32> = (0..num_inputs as u32).rev().collect();
            let mut packer = if reversed {
                Packer::with_order(format, num_outputs, num_inputs, order)
            } else {
                Packer::new(format, num_outputs, num_inputs)
            };
            let mut want = Vec::new();
            for row in 0..num_outputs {
                let codes: Vec<u8> = (0..num_inputs).map(|_| next(1 << bits)).collect();
                let scales: Vec<f32> = (0..num_groups).map(|_| f32::from(next(64)) / 37.0).collect();
                let zeros: Vec<u8> =
                    (0..if has_zeros { num_groups } else { 0 }).map(|_| next(1 << bits)).collect();
                packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
                let mut values: Vec<f32> = (0..num_inputs).map(|k| scales[k / group] * match format {
                    Format::Codebook { book, .. } => book.values()[usize::from(codes[k])],
                    _ => f32::from(codes[k]) - f32::from(zeros[k / group]),
                }).collect();
                if reversed {
                    values.reverse();
                }
                want.push(values);
            }
            let linear = packer.finish();
            let mut got = vec![0.0; num_inputs];
            for (row, want) in want.iter().enumerate() {
                linear.dequantize_row_into(row, &mut got);
                prop_assert_eq!(&got, want);
            }
        }
    }

    #[test]
    fn four_bits_and_an_absmax_for_sixty_four_are_four_and_a_half_bits() {
        let bits = |format| 8 * PackedLinear::zeroed(format, 64, 128).num_bytes();
        assert_eq!(bits(formats(64)[0]), 64 * 128 * 9 / 2);
        // A scale of 32 bits and a zero of 8 for 128.
        assert_eq!(bits(formats(128)[2]), 64 * (128 * 4 + 40));
        assert_eq!(bits(formats(128)[3]), 64 * (128 * 8 + 40));
    }
}
