//! `t[t,j] = s[j] · Σ_k x[t,k] A[j,k]`   x:[T,K] s:[r] A:[r,K] t:[T,r]
//!
//! Lanes run over k; a dot product's sums and their order do not depend on the rows or ranks that
//! are computed beside it.

use super::placed::PlacedMatrix;
use super::{Item, Part};
use crate::lanes::{Bf16, F16, LANES};
use crate::pool::DisjointMut;
use crate::vector::{Stored, Vector, multivector, prefetch};
use weft_types::Dtype;

multivector! {
    /// Computes the ranks `item.columns` of `item.rows`; x starts at the segment's first row.
    pub(super) fn shrink<'a>(a: &PlacedMatrix<'_>, scales: &[f32], x: &[f32], item: &Item, part: &Part, shrunk: DisjointMut<'a, f32>)
        = shrink_body
}

/// Asks memory for what [`shrink`] reads first.
pub(super) fn prefetch_front(a: &PlacedMatrix<'_>) {
    let front = &a.run(0).bytes;
    for line in (0..front.len().min(4 * a.cols * a.dtype.size())).step_by(64) {
        prefetch(front, line);
    }
}

#[inline(always)]
fn shrink_body<V: Vector>(
    a: &PlacedMatrix<'_>,
    scales: &[f32],
    x: &[f32],
    item: &Item,
    part: &Part,
    shrunk: DisjointMut<'_, f32>,
) {
    let shrink = Shrink { a, scales, x, item, part, shrunk };
    match a.dtype {
        Dtype::F32 => shrink.run::<f32, V>(),
        Dtype::F16 => shrink.run::<F16, V>(),
        Dtype::Bf16 => shrink.run::<Bf16, V>(),
        Dtype::I8 => shrink.run::<i8, V>(),
    }
}

#[derive(Clone, Copy)]
struct Shrink<'a> {
    a: &'a PlacedMatrix<'a>,
    scales: &'a [f32],
    x: &'a [f32],
    item: &'a Item,
    part: &'a Part,
    shrunk: DisjointMut<'a, f32>,
}

impl Shrink<'_> {
    #[inline(always)]
    fn run<T: Stored, V: Vector>(self) {
        let mut row = self.item.rows.start;
        while row + V::BLOCK <= self.item.rows.end {
            match V::BLOCK {
                4 => self.rows::<T, V, 4>(row),
                _ => self.rows::<T, V, 2>(row),
            }
            row += V::BLOCK;
        }
        while row < self.item.rows.end {
            self.rows::<T, V, 1>(row);
            row += 1;
        }
    }

    #[inline(always)]
    fn rows<T: Stored, V: Vector, const ROWS: usize>(self, row: usize) {
        let mut rank = self.item.columns.start;
        while rank + V::BLOCK <= self.item.columns.end {
            match V::BLOCK {
                4 => self.dots::<T, V, ROWS, 4>(row, rank),
                _ => self.dots::<T, V, ROWS, 2>(row, rank),
            }
            rank += V::BLOCK;
        }
        while rank < self.item.columns.end {
            self.dots::<T, V, ROWS, 1>(row, rank);
            rank += 1;
        }
    }

    /// Products of `ROWS` rows of x with `RANKS` rows of A: lanes over inputs, then a fixed tree.
    #[inline(always)]
    fn dots<T: Stored, V: Vector, const ROWS: usize, const RANKS: usize>(
        self,
        row: usize,
        rank: usize,
    ) {
        let num_inputs = self.a.cols;
        let mut x: [&[f32]; ROWS] = [&[]; ROWS];
        for i in 0..ROWS {
            x[i] = &self.x[(row + i) * num_inputs..(row + i + 1) * num_inputs];
        }
        let mut a: [&[u8]; RANKS] = [&[]; RANKS];
        for j in 0..RANKS {
            a[j] = self.a.row(rank + j);
        }
        let mut acc = [[V::splat(0.0); RANKS]; ROWS];
        let mut k = 0;
        while k + LANES <= num_inputs {
            // The ranks that come next.
            if k * T::SIZE % 64 == 0 {
                for j in 0..RANKS {
                    prefetch(a[j], (RANKS * num_inputs + k) * T::SIZE);
                }
            }
            let mut columns = [V::splat(0.0); RANKS];
            for j in 0..RANKS {
                columns[j] = T::load::<V>(&a[j][k * T::SIZE..]);
            }
            for i in 0..ROWS {
                let x = V::load(x[i][k..].first_chunk().expect("checked by the loop"));
                for j in 0..RANKS {
                    acc[i][j] = x.mul_add(columns[j], acc[i][j]);
                }
            }
            k += LANES;
        }
        for i in 0..ROWS {
            for j in 0..RANKS {
                let mut sum = acc[i][j];
                if k < num_inputs {
                    let mut lanes = sum.to_lanes();
                    for (lane, k) in (k..num_inputs).enumerate() {
                        let a = T::at(&a[j][k * T::SIZE..]);
                        lanes[lane] = V::scalar_mul_add(x[i][k], a, lanes[lane]);
                    }
                    sum = V::load(&lanes);
                }
                let index = self.part.start + (row + i) * self.part.rank + rank + j;
                // SAFETY: items are disjoint in rows and ranks.
                unsafe { self.shrunk.write(index, self.scales[rank + j] * sum.sum()) };
            }
        }
    }
}
