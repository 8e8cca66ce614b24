//! An adapter on the device: its layout, and the chunks that its pages were copied to.

use crate::arena::LentChunks;
use std::ops::Range;
use std::sync::Arc;
use weft_types::{
    AdapterLayout, Dtype, PackedAdapter, PackedEmbedding, PackedMatrix, PackedUpdate, RowRun, Site,
};

/// An adapter whose bytes are on the device. Dropping it gives the chunks back.
#[derive(Debug)]
pub struct PlacedAdapter {
    layout: Arc<AdapterLayout>,
    chunks: LentChunks,
}

impl PlacedAdapter {
    /// Copies the pages, one to each chunk.
    ///
    /// # Panics
    /// When there are not as many chunks as pages or a page is larger than a chunk.
    #[must_use]
    pub fn copy(packed: &PackedAdapter, mut chunks: LentChunks) -> Self {
        assert_eq!(packed.num_chunks, chunks.len(), "one chunk for each page");
        let embedding = packed.embedding.as_ref();
        debug_assert!(embedding.is_none_or(|update| update.a.dtype != Dtype::I8), "no row scales");
        for (index, page) in packed.pages.iter().enumerate() {
            chunks.write(index, page);
            // Threads that compute need not wait for the whole copy.
            std::thread::yield_now();
        }
        Self { layout: Arc::clone(&packed.layout), chunks }
    }

    /// What was copied.
    #[must_use]
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// The update at `site`, if the adapter has one.
    #[must_use]
    pub fn at(&self, site: Site) -> Option<PlacedUpdate<'_>> {
        Some(PlacedUpdate { packed: self.layout.at(site)?, chunks: &self.chunks })
    }

    /// The update of the token embedding, if any.
    #[must_use]
    pub fn embedding(&self) -> Option<PlacedEmbedding<'_>> {
        Some(PlacedEmbedding { packed: self.layout.embedding.as_ref()?, chunks: &self.chunks })
    }

    /// One of its matrices.
    #[inline]
    pub(super) fn matrix<'a>(&'a self, packed: &'a PackedMatrix) -> PlacedMatrix<'a> {
        PlacedMatrix::new(packed, &self.chunks)
    }
}

/// A [`PackedUpdate`] on the device.
#[derive(Clone, Copy, Debug)]
pub struct PlacedUpdate<'a> {
    packed: &'a PackedUpdate,
    chunks: &'a LentChunks,
}

impl<'a> PlacedUpdate<'a> {
    /// Shapes and scales.
    #[must_use]
    pub fn packed(&self) -> &'a PackedUpdate {
        self.packed
    }

    /// `[rank, K]`
    #[inline]
    pub(super) fn a(&self) -> PlacedMatrix<'a> {
        PlacedMatrix::new(&self.packed.a, self.chunks)
    }

    /// `[rank, N]`
    #[inline]
    pub(super) fn b(&self) -> PlacedMatrix<'a> {
        PlacedMatrix::new(&self.packed.b, self.chunks)
    }
}

/// A [`PackedEmbedding`] on the device.
#[derive(Clone, Copy, Debug)]
pub struct PlacedEmbedding<'a> {
    packed: &'a PackedEmbedding,
    chunks: &'a LentChunks,
}

impl<'a> PlacedEmbedding<'a> {
    pub(super) fn scale(&self) -> f32 {
        self.packed.scale
    }

    /// `[vocab, rank]`
    pub(super) fn a(&self) -> PlacedMatrix<'a> {
        PlacedMatrix::new(&self.packed.a, self.chunks)
    }

    /// `[rank, hidden]`
    pub(super) fn b(&self) -> PlacedMatrix<'a> {
        PlacedMatrix::new(&self.packed.b, self.chunks)
    }
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
    #[inline]
    fn new(packed: &'a PackedMatrix, chunks: &'a LentChunks) -> Self {
        let PackedMatrix { dtype, rows, cols, .. } = *packed;
        let first = Run { first: 0, end: 0, bytes: &[] };
        let (row_bytes, runs) = (packed.row_bytes(), &*packed.runs);
        let mut placed = Self { dtype, rows, cols, row_bytes, first, runs, chunks };
        if !runs.is_empty() {
            placed.first = placed.find_run(0);
        }
        placed
    }

    #[inline(always)]
    pub(super) fn num_runs(&self) -> usize {
        self.runs.len()
    }

    #[inline(always)]
    pub(super) fn run(&self, index: usize) -> Run<'a> {
        if index == 0 { self.first } else { self.find_run(index) }
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

    /// Inlined, so that kernels keep their sums in registers from one run to the next.
    #[inline(always)]
    fn find_run(&self, index: usize) -> Run<'a> {
        let RowRun { first_row, page, offset } = self.runs[index];
        let first = first_row as usize;
        let end = self.runs.get(index + 1).map_or(self.rows, |next| next.first_row as usize);
        let (offset, len) = (offset as usize, (end - first) * self.row_bytes);
        Run { first, end, bytes: self.chunks.bytes(page as usize, offset..offset + len) }
    }
}
