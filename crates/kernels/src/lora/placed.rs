//! An adapter on the device: its packed form, and the chunks that its pages were copied to.

use crate::arena::LentChunks;
use std::ops::Range;
use std::sync::Arc;
use weft_types::{Dtype, PackedAdapter, PackedEmbedding, PackedMatrix, PackedUpdate, RowRun, Site};

/// An adapter whose bytes are on the device. Dropping it gives the chunks back.
#[derive(Debug)]
pub struct PlacedAdapter {
    packed: Arc<PackedAdapter>,
    chunks: LentChunks,
}

impl PlacedAdapter {
    /// Copies the pages, one to each chunk.
    ///
    /// # Panics
    /// When there are not as many chunks as pages or a page is larger than a chunk.
    #[must_use]
    pub fn copy(packed: Arc<PackedAdapter>, mut chunks: LentChunks) -> Self {
        assert_eq!(packed.num_chunks(), chunks.len(), "one chunk for each page");
        let embedding = packed.embedding.as_ref();
        debug_assert!(embedding.is_none_or(|update| update.a.dtype != Dtype::I8), "no row scales");
        for (index, page) in packed.pages.iter().enumerate() {
            chunks.write(index, page);
        }
        Self { packed, chunks }
    }

    /// What was copied.
    #[must_use]
    pub fn packed(&self) -> &PackedAdapter {
        &self.packed
    }

    /// The update at `site`, if the adapter has one.
    #[must_use]
    pub fn at(&self, site: Site) -> Option<PlacedUpdate<'_>> {
        let PackedUpdate { scales, a, b, .. } = self.packed.at(site)?;
        Some(PlacedUpdate { scales, a: self.matrix(a), b: self.matrix(b) })
    }

    /// The update of the token embedding, if any.
    #[must_use]
    pub fn embedding(&self) -> Option<PlacedEmbedding<'_>> {
        let PackedEmbedding { scale, a, b } = self.packed.embedding.as_ref()?;
        Some(PlacedEmbedding { scale: *scale, a: self.matrix(a), b: self.matrix(b) })
    }

    fn matrix<'a>(&'a self, matrix: &'a PackedMatrix) -> PlacedMatrix<'a> {
        let PackedMatrix { dtype, rows, cols, .. } = *matrix;
        let mut placed = PlacedMatrix {
            dtype,
            rows,
            cols,
            row_bytes: matrix.row_bytes(),
            first: Run { first: 0, end: 0, bytes: &[] },
            runs: &matrix.runs,
            chunks: &self.chunks,
        };
        if !matrix.runs.is_empty() {
            placed.first = placed.find_run(0);
        }
        placed
    }
}

/// `y[t,:] += Σ_j scales[j] · (x[t,:] · A[j,:]) · B[j,:]`, see [`PackedUpdate`].
#[derive(Clone, Copy, Debug)]
pub struct PlacedUpdate<'a> {
    /// `[rank]`
    pub(super) scales: &'a [f32],
    /// `[rank, K]`
    pub(super) a: PlacedMatrix<'a>,
    /// `[rank, N]`
    pub(super) b: PlacedMatrix<'a>,
}

impl PlacedUpdate<'_> {
    /// The exact rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// `h[t,:] += scale · A[token[t],:] B`, see [`PackedEmbedding`].
#[derive(Clone, Copy, Debug)]
pub struct PlacedEmbedding<'a> {
    pub(super) scale: f32,
    /// `[vocab, rank]`
    pub(super) a: PlacedMatrix<'a>,
    /// `[rank, hidden]`
    pub(super) b: PlacedMatrix<'a>,
}

/// A row-major matrix in runs of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedMatrix<'a> {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    row_bytes: usize,
    /// The first run: almost always the only one.
    first: Run<'a>,
    runs: &'a [RowRun],
    chunks: &'a LentChunks,
}

/// Rows that lie one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    /// The first row.
    pub(super) first: usize,
    /// One past the last.
    pub(super) end: usize,
    /// All of them.
    pub(super) bytes: &'a [u8],
}

impl Run<'_> {
    #[inline(always)]
    pub(super) fn rows(&self) -> Range<usize> {
        self.first..self.end
    }
}

impl<'a> PlacedMatrix<'a> {
    #[inline(always)]
    pub(super) fn num_runs(&self) -> usize {
        self.runs.len()
    }

    #[inline(always)]
    pub(super) fn run(&self, index: usize) -> Run<'a> {
        if index == 0 { self.first } else { self.later_run(index) }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        let run = if row < self.first.end { self.first } else { self.run_of(row) };
        &run.bytes[(row - run.first) * self.row_bytes..][..self.row_bytes]
    }

    #[cold]
    fn run_of(&self, row: usize) -> Run<'a> {
        self.find_run(self.runs.partition_point(|run| run.first_row as usize <= row) - 1)
    }

    #[cold]
    fn later_run(&self, index: usize) -> Run<'a> {
        self.find_run(index)
    }

    fn find_run(&self, index: usize) -> Run<'a> {
        let RowRun { first_row, page, offset } = self.runs[index];
        let first = first_row as usize;
        let end = self.runs.get(index + 1).map_or(self.rows, |next| next.first_row as usize);
        let (offset, len) = (offset as usize, (end - first) * self.row_bytes);
        Run { first, end, bytes: self.chunks.bytes(page as usize, offset..offset + len) }
    }
}
