//! `y[t,c] += Σ_j t[t,j] B[j,c]`   t:[T,r] B:[r,N] y:[T,N]
//!
//! Lanes run over c; ranks are summed in order, whatever rows and columns are computed beside and
//! in however many runs B lies.

use super::Item;
use super::placed::{PlacedMatrix, Run};
use crate::lanes::{Bf16, F16, LANES};
use crate::pool::DisjointMut;
use crate::vector::{Stored, Vector, multivector, prefetch};
use weft_types::Dtype;

multivector! {
    /// Adds to the columns `item.columns` of `item.rows`; t starts at the segment's first row,
    /// which is row `first_row` of `out`.
    pub(super) fn expand<'a>(b: &PlacedMatrix<'_>, t: &[f32], first_row: usize, item: &Item, out: DisjointMut<'a, f32>)
        = expand_body
}

/// Asks memory for what [`expand`] reads first.
pub(super) fn prefetch_front(b: &PlacedMatrix<'_>) {
    let run = b.run(0);
    for row in run.bytes.chunks(b.cols * b.dtype.size()) {
        prefetch(row, 0);
        prefetch(row, 64);
    }
}

#[inline(always)]
fn expand_body<V: Vector>(
    b: &PlacedMatrix<'_>,
    t: &[f32],
    first_row: usize,
    item: &Item,
    out: DisjointMut<'_, f32>,
) {
    let expand = Expand { b, t, first_row, item, out };
    match b.dtype {
        Dtype::F32 => expand.run::<f32, V>(),
        Dtype::F16 => expand.run::<F16, V>(),
        Dtype::Bf16 => expand.run::<Bf16, V>(),
        Dtype::I8 => expand.run::<i8, V>(),
    }
}

#[derive(Clone, Copy)]
struct Expand<'a> {
    b: &'a PlacedMatrix<'a>,
    t: &'a [f32],
    first_row: usize,
    item: &'a Item,
    out: DisjointMut<'a, f32>,
}

impl Expand<'_> {
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
        let mut column = self.item.columns.start;
        while column + V::BLOCK * LANES <= self.item.columns.end {
            match V::BLOCK {
                4 => self.block::<T, V, ROWS, 4>(row, column),
                _ => self.block::<T, V, ROWS, 2>(row, column),
            }
            column += V::BLOCK * LANES;
        }
        while column + LANES <= self.item.columns.end {
            self.block::<T, V, ROWS, 1>(row, column);
            column += LANES;
        }
        for i in 0..ROWS {
            let rest = column..self.item.columns.end;
            let t = &self.t[(row + i) * self.b.rows..][..self.b.rows];
            for (column, out) in rest.clone().zip(self.out_row(row + i, rest)) {
                let mut acc = 0.0;
                for index in 0..self.b.num_runs() {
                    let run = self.b.run(index);
                    for (j, &t) in t[run.rows()].iter().enumerate() {
                        let b = T::at(&run.bytes[(j * self.b.cols + column) * T::SIZE..]);
                        acc = V::scalar_mul_add(t, b, acc);
                    }
                }
                *out += acc;
            }
        }
    }

    /// Columns of a row of y, which are this item's alone.
    #[inline(always)]
    fn out_row<'b>(self, row: usize, columns: std::ops::Range<usize>) -> &'b mut [f32]
    where
        Self: 'b,
    {
        let start = (self.first_row + row) * self.b.cols;
        // SAFETY: items are disjoint in rows and columns, segments in rows; a row is borrowed once
        // at a time.
        unsafe { self.out.slice(start + columns.start..start + columns.end) }
    }

    /// `y[row.., column..] += t[row..] B[:, column..]` for `ROWS` rows and `16 WIDTH` columns.
    #[inline(always)]
    fn block<T: Stored, V: Vector, const ROWS: usize, const WIDTH: usize>(
        self,
        row: usize,
        column: usize,
    ) {
        let mut acc = [[V::splat(0.0); WIDTH]; ROWS];
        // Almost always the only one.
        acc = self.add_run::<T, V, ROWS, WIDTH>(self.b.run(0), row, column, acc);
        for index in 1..self.b.num_runs() {
            acc = self.add_run::<T, V, ROWS, WIDTH>(self.b.run(index), row, column, acc);
        }
        for i in 0..ROWS {
            let out = self.out_row(row + i, column..column + WIDTH * LANES);
            for w in 0..WIDTH {
                let lanes = acc[i][w].to_lanes();
                for (out, lane) in out[w * LANES..].iter_mut().zip(lanes) {
                    *out += lane;
                }
            }
        }
    }

    /// Adds the ranks of one run.
    #[inline(always)]
    fn add_run<T: Stored, V: Vector, const ROWS: usize, const WIDTH: usize>(
        self,
        run: Run<'_>,
        row: usize,
        column: usize,
        mut acc: [[V; WIDTH]; ROWS],
    ) -> [[V; WIDTH]; ROWS] {
        let (rank, num_outputs) = (self.b.rows, self.b.cols);
        let num_ranks = run.end - run.first;
        let mut t: [&[f32]; ROWS] = [&[]; ROWS];
        for i in 0..ROWS {
            t[i] = &self.t[(row + i) * rank + run.first..][..num_ranks];
        }
        for j in 0..num_ranks {
            let b = &run.bytes[(j * num_outputs + column) * T::SIZE..];
            // The columns that come next: rows lie too far apart for the processor to see it coming.
            for line in (0..WIDTH * LANES * T::SIZE).step_by(64) {
                prefetch(b, WIDTH * LANES * T::SIZE + line);
            }
            let mut columns = [V::splat(0.0); WIDTH];
            for w in 0..WIDTH {
                columns[w] = T::load::<V>(&b[w * LANES * T::SIZE..]);
            }
            for i in 0..ROWS {
                let t = V::splat(t[i][j]);
                for w in 0..WIDTH {
                    acc[i][w] = t.mul_add(columns[w], acc[i][w]);
                }
            }
        }
        acc
    }
}
