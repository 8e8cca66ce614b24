//! Tiles of `W4` and `W8` in single precision: `w = scale * (code - offset) + min`, as GGUF defines it, then
//! the sums of even and of odd inputs. What integer activations are compared with.

use super::TileSums;
use super::coded::{INTEGERS, join};
use crate::lanes::F16;
use crate::vector::{Stored, Vector, multivector};
use crate::weight::{Format, PackedLinear, TILE};
use std::ops::Range;

multivector! {
    /// Sums of outputs `16 * tile..` for `rows` of `x:[T,K]`.
    pub(super) fn tile(weight: &PackedLinear, tile: usize, x: &[f32], rows: Range<usize>, sums: &mut TileSums)
        = tile_body
}

/// Inputs that are unrolled.
const EIGHT: usize = 8;

#[inline(always)]
fn tile_body<V: Vector>(
    weight: &PackedLinear,
    tile: usize,
    x: &[f32],
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    let blocks = weight.tile(tile);
    let mut done = 0;
    while done < rows.len() {
        let (x, sums) = (&x[(rows.start + done) * weight.num_inputs()..], &mut sums[done..]);
        // A narrow register file holds the sums of two rows.
        done += match rows.len() - done {
            8.. if V::BLOCK == 4 => rows_at::<V, 8>(weight, blocks, x, sums),
            4.. if V::BLOCK == 4 => rows_at::<V, 4>(weight, blocks, x, sums),
            2.. => rows_at::<V, 2>(weight, blocks, x, sums),
            _ => rows_at::<V, 1>(weight, blocks, x, sums),
        };
    }
}

/// The first `ROWS` rows of `x`; returns their number.
#[inline(always)]
fn rows_at<V: Vector, const ROWS: usize>(
    weight: &PackedLinear,
    blocks: &[u8],
    x: &[f32],
    sums: &mut [[f32; TILE]],
) -> usize {
    let acc = match weight.format() {
        Format::W8 { has_min: false, .. } => sums_of::<V, ROWS, 8, false>(weight, blocks, x),
        Format::W8 { .. } => sums_of::<V, ROWS, 8, true>(weight, blocks, x),
        _ => sums_of::<V, ROWS, 4, true>(weight, blocks, x),
    };
    join(acc, sums);
    ROWS
}

/// The sums of even and odd inputs of each row.
#[inline(always)]
fn sums_of<V: Vector, const ROWS: usize, const BITS: usize, const HAS_MIN: bool>(
    weight: &PackedLinear,
    blocks: &[u8],
    x: &[f32],
) -> [[V; 2]; ROWS] {
    let (format, num_inputs) = (weight.format(), weight.num_inputs());
    let offset = if let Format::W8 { offset, .. } = format { offset } else { 0 };
    let (table, offset) = (V::load(&INTEGERS), V::splat(f32::from(offset)));
    let mut inputs = [&x[..num_inputs]; ROWS];
    for (row, input) in inputs.iter_mut().enumerate() {
        *input = &x[row * num_inputs..(row + 1) * num_inputs];
    }
    let mut acc = [[V::splat(0.0); 2]; ROWS];
    let mut first = 0;
    // The last cache line of a matrix may be longer than its tiles.
    let num_groups = num_inputs / format.group();
    for block in blocks.chunks_exact(format.group_bytes()).take(num_groups) {
        let (scales, rest) = block.split_at(2 * TILE);
        let (mins, codes) = rest.split_at(if HAS_MIN { 2 * TILE } else { 0 });
        let scale = F16::load::<V>(scales);
        let min = if HAS_MIN { F16::load::<V>(mins) } else { V::splat(0.0) };
        for codes in codes.chunks_exact(TILE * EIGHT * BITS / 8) {
            let words = V::load_f32(codes.first_chunk().expect("sixteen words"));
            let more = if BITS == 8 {
                V::load_f32(codes.last_chunk().expect("sixteen words"))
            } else {
                words
            };
            let eight = Eight { words: [words, more], scale, min, table, offset };
            let mut x = [&[0.0; EIGHT]; ROWS];
            for row in 0..ROWS {
                x[row] = inputs[row][first..].first_chunk().expect("inputs of a group");
            }
            // Where a code lies: see `w4_position` and `w8_position`.
            eight.add::<ROWS, BITS, HAS_MIN, 0, 0, 0>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 1, 4, 2>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 2, 1, 1>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 3, 5, 3>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 4, 2, 0>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 5, 6, 2>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 6, 3, 1>(&x, &mut acc);
            eight.add::<ROWS, BITS, HAS_MIN, 7, 7, 3>(&x, &mut acc);
            first += EIGHT;
        }
    }
    acc
}

/// Eight inputs of a tile.
struct Eight<V> {
    /// Of eight codes of four bits, twice; or of four codes of eight bits each.
    words: [V; 2],
    scale: V,
    min: V,
    table: V,
    offset: V,
}

impl<V: Vector> Eight<V> {
    /// Adds the products of input `I`, whose code is this nibble or byte of its word.
    #[inline(always)]
    fn add<
        const ROWS: usize,
        const BITS: usize,
        const HAS_MIN: bool,
        const I: usize,
        const NIBBLE: u32,
        const BYTE: u32,
    >(
        &self,
        x: &[&[f32; EIGHT]; ROWS],
        acc: &mut [[V; 2]; ROWS],
    ) {
        let number = if BITS == 8 {
            self.words[I / 4].byte::<BYTE>().sub(self.offset)
        } else {
            self.table.lookup::<NIBBLE>(self.words[0])
        };
        let weight =
            if HAS_MIN { number.mul_add(self.scale, self.min) } else { number.mul(self.scale) };
        for row in 0..ROWS {
            acc[row][I % 2] = V::splat(x[row][I]).mul_add(weight, acc[row][I % 2]);
        }
    }
}
