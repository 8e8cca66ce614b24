//! Tiles of codes that are multiplied in single precision: `w = scale * number(code)` as the weight's
//! file says it, then the sums of even and of odd inputs. Two sums hide the latency of an addition
//! where there is one row; their order depends on nothing else.

use super::TileSums;
use crate::coded::{SCALE_BYTES, WORD_INPUTS};
use crate::vector::{Vector, multivector};
use crate::weight::{Format, PackedLinear, TILE};
use std::ops::Range;

multivector! {
    /// Sums of outputs `16 * tile..` for `rows` of `x:[T,K]`.
    pub(super) fn tile(weight: &PackedLinear, tile: usize, x: &[f32], rows: Range<usize>, sums: &mut TileSums)
        = tile_body
}

/// A number for each 4-bit code that is its own.
pub(super) const INTEGERS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

#[inline(always)]
fn tile_body<V: Vector>(
    weight: &PackedLinear,
    tile: usize,
    x: &[f32],
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let tile = Tile { weight, blocks: weight.tile(tile) };
    let mut done = 0;
    while done < rows.len() {
        let (x, sums) = (&x[(rows.start + done) * weight.num_inputs()..], &mut sums[done..]);
        // A narrow register file holds the sums of two rows.
        done += match rows.len() - done {
            8.. if V::BLOCK == 4 => tile.rows::<V, 8>(x, sums),
            4.. if V::BLOCK == 4 => tile.rows::<V, 4>(x, sums),
            2.. => tile.rows::<V, 2>(x, sums),
            _ => tile.rows::<V, 1>(x, sums),
        };
    }
}

/// Sums of even and of odd inputs become those of all.
#[inline(always)]
pub(super) fn join<V: Vector, const ROWS: usize>(acc: [[V; 2]; ROWS], sums: &mut [[f32; TILE]]) {
    for (acc, sums) in acc.iter().zip(sums) {
        let (even, odd) = (acc[0].to_lanes(), acc[1].to_lanes());
        for lane in 0..TILE {
            sums[lane] = even[lane] + odd[lane];
        }
    }
}

struct Tile<'a> {
    weight: &'a PackedLinear,
    blocks: &'a [u8],
}

impl Tile<'_> {
    /// The first `ROWS` rows of `x`; returns their number.
    #[inline(always)]
    fn rows<V: Vector, const ROWS: usize>(&self, x: &[f32], sums: &mut [[f32; TILE]]) -> usize {
        let acc = match self.weight.format() {
            Format::Codebook { book, .. } => self.sums::<V, ROWS, 4, false>(book.values(), x),
            Format::ZeroPoint { bits: 4, .. } => self.sums::<V, ROWS, 4, true>(&INTEGERS, x),
            _ => self.sums::<V, ROWS, 8, true>(&INTEGERS, x),
        };
        join(acc, sums);
        ROWS
    }

    /// The sums of even and odd inputs of each row.
    #[inline(always)]
    fn sums<V: Vector, const ROWS: usize, const BITS: usize, const HAS_ZEROS: bool>(
        &self,
        table: &[f32; TILE],
        x: &[f32],
    ) -> [[V; 2]; ROWS] {
        let format = self.weight.format();
        let num_inputs = self.weight.num_inputs();
        let table = V::load(table);
        let mut inputs = [&x[..num_inputs]; ROWS];
        for (row, input) in inputs.iter_mut().enumerate() {
            *input = &x[row * num_inputs..(row + 1) * num_inputs];
        }
        let mut acc = [[V::splat(0.0); 2]; ROWS];
        let mut first = 0;
        // The last cache line of a matrix may be longer than its tiles.
        let num_groups = num_inputs / format.group();
        for block in self.blocks.chunks_exact(format.group_bytes()).take(num_groups) {
            let (header, codes) = block.split_at(format.coded_header_bytes());
            let (scales, zeros) = header.split_at(SCALE_BYTES);
            let scale = V::load_f32(scales.first_chunk().expect("sixteen scales"));
            let zero = if HAS_ZEROS {
                V::load_i8(zeros.first_chunk().expect("sixteen zeros"))
            } else {
                V::splat(0.0)
            };
            for codes in codes.chunks_exact(TILE * WORD_INPUTS * BITS / 8) {
                let eight = if BITS == 8 {
                    let codes =
                        codes.as_chunks().0.first_chunk().expect("eight times sixteen codes");
                    Eight { words: V::splat(0.0), codes, scale, zero, table }
                } else {
                    let words = V::load_f32(codes.first_chunk().expect("sixteen words"));
                    Eight { words, codes: &[[0; TILE]; WORD_INPUTS], scale, zero, table }
                };
                let mut x = [&[0.0; WORD_INPUTS]; ROWS];
                for row in 0..ROWS {
                    x[row] = inputs[row][first..].first_chunk().expect("inputs of a group");
                }
                eight.add::<ROWS, BITS, HAS_ZEROS, 0>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 1>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 2>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 3>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 4>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 5>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 6>(&x, &mut acc);
                eight.add::<ROWS, BITS, HAS_ZEROS, 7>(&x, &mut acc);
                first += WORD_INPUTS;
            }
        }
        acc
    }
}

/// Eight inputs of a tile.
struct Eight<'a, V> {
    /// Of four bits.
    words: V,
    /// Of eight bits.
    codes: &'a [[u8; TILE]; WORD_INPUTS],
    scale: V,
    zero: V,
    table: V,
}

impl<V: Vector> Eight<'_, V> {
    /// Adds the products of input `I`.
    #[inline(always)]
    fn add<const ROWS: usize, const BITS: usize, const HAS_ZEROS: bool, const I: u32>(
        &self,
        x: &[&[f32; WORD_INPUTS]; ROWS],
        acc: &mut [[V; 2]; ROWS],
    ) {
        let i = I as usize;
        let number =
            if BITS == 8 { V::load_i8(&self.codes[i]) } else { self.table.lookup::<I>(self.words) };
        let number = if HAS_ZEROS { number.sub(self.zero) } else { number };
        let weight = number.mul(self.scale);
        for row in 0..ROWS {
            acc[row][i % 2] = V::splat(x[row][i]).mul_add(weight, acc[row][i % 2]);
        }
    }
}
