//! The packed form of an adapter: what is kept in host memory and copied into device chunks.
//!
//! The matrices of a [`LoweredAdapter`] laid out in *pages* as large as a chunk of the device's
//! memory pool, so that a load is one copy a page, wherever its chunks are. Rows are contiguous and
//! none crosses a page: kernels get one pointer per run of rows. No rank is padded; what is lost is
//! less than a row a page.

use crate::adapter::{
    AdapterTensor, Dtype, EmbeddingUpdate, LowRankUpdate, LoweredAdapter, Module, Site,
};
use crate::id::ContentHash;
use crate::page::{HeapPages, Page, PageAllocator};
use std::ops::Deref;
use std::sync::Arc;

/// Every run of rows begins at a multiple of this: a cache line.
const ALIGNMENT: usize = 64;

/// Rows `first_row ..` of a matrix, until the next run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRun {
    /// Index in the matrix.
    pub first_row: u32,
    /// Which page.
    pub page: u32,
    /// Where in the page.
    pub offset: u32,
}

/// A row-major matrix in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedMatrix {
    /// Element type.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns: the contiguous direction.
    pub cols: usize,
    /// In order; almost always one.
    pub runs: Box<[RowRun]>,
}

impl PackedMatrix {
    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.cols * self.dtype.size()
    }
}

/// `y[t,:] += Σ_j scales[j] · (x[t,:] · A[j,:]) · B[j,:]`, `A:[rank,K]`, `B:[rank,N]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedUpdate {
    /// Where it applies.
    pub site: Site,
    /// `[rank]`: the method's scale, times the scales of quantized rows.
    pub scales: Box<[f32]>,
    /// `[rank, K]`
    pub a: PackedMatrix,
    /// `[rank, N]`
    pub b: PackedMatrix,
}

impl PackedUpdate {
    /// The exact rank: never padded.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// `h[t,:] += scale * A[token[t],:] B`, `A:[vocab, rank]`, `B:[rank, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedEmbedding {
    /// As in [`crate::EmbeddingUpdate`].
    pub scale: f32,
    /// `[vocab, rank]`
    pub a: PackedMatrix,
    /// `[rank, hidden]`
    pub b: PackedMatrix,
}

/// What there is in an adapter's pages, and where: all that is needed beside the copied pages.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLayout {
    /// Of the adapter's files.
    pub content_hash: ContentHash,
    /// At most one per site, sorted by site.
    pub low_rank: Vec<PackedUpdate>,
    /// The update of the token embedding, if any.
    pub embedding: Option<PackedEmbedding>,
    /// Pages in all: chunks that it takes on a device.
    pub num_chunks: usize,
    /// Bytes of all pages.
    pub num_bytes: usize,
}

/// One adapter, ready to be copied to a device whose chunks are as large as its pages.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedAdapter {
    /// Shared with the copies, which outlive the pages.
    pub layout: Arc<AdapterLayout>,
    /// All matrices. Every page but the last has the length of a chunk; the last may be shorter.
    pub pages: Arc<[Page]>,
}

impl Deref for PackedAdapter {
    type Target = AdapterLayout;

    fn deref(&self) -> &AdapterLayout {
        &self.layout
    }
}

/// Why an adapter cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has a matrix row of {row_bytes} bytes, more than the {chunk_bytes} bytes of a chunk of this \
     server's memory pool"
)]
pub struct RowTooLarge {
    /// Bytes of the row.
    pub row_bytes: usize,
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
}

impl PackedAdapter {
    /// Lays an adapter out for chunks of `chunk_bytes`, on the heap. The layout depends on nothing
    /// else.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn pack(adapter: &LoweredAdapter, chunk_bytes: usize) -> Result<Self, RowTooLarge> {
        Self::pack_with(Packer::new(chunk_bytes), adapter)
    }

    /// As [`Self::pack`], with an empty packer.
    ///
    /// # Errors
    /// As there.
    pub fn pack_with(mut packer: Packer, adapter: &LoweredAdapter) -> Result<Self, RowTooLarge> {
        for update in &adapter.low_rank {
            packer.push(update)?;
        }
        packer.finish(adapter.content_hash, adapter.embedding.as_ref())
    }
}

/// Packs an adapter update by update, so that it need not be in memory twice.
#[derive(Debug)]
pub struct Packer {
    pages: Pages,
    low_rank: Vec<PackedUpdate>,
}

impl Packer {
    /// For chunks of `chunk_bytes`, on the heap.
    #[must_use]
    pub fn new(chunk_bytes: usize) -> Self {
        Self::in_pages_of(Arc::new(HeapPages), chunk_bytes)
    }

    /// As [`Self::new`], in memory of `allocator`.
    #[must_use]
    pub fn in_pages_of(allocator: Arc<dyn PageAllocator>, chunk_bytes: usize) -> Self {
        Self { pages: Pages { allocator, chunk_bytes, pages: Vec::new() }, low_rank: Vec::new() }
    }

    /// Adds an update; its site comes after those of all before it.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push(&mut self, update: &LowRankUpdate) -> Result<(), RowTooLarge> {
        let row_scale = |tensor: &AdapterTensor, j: usize| {
            tensor.row_scales.as_ref().map_or(1.0, |scales| scales[j])
        };
        let scale = |j| update.scale * row_scale(&update.a, j) * row_scale(&update.b, j);
        self.low_rank.push(PackedUpdate {
            site: update.site,
            scales: (0..update.rank()).map(scale).collect(),
            a: self.pages.push(&update.a)?,
            b: self.pages.push(&update.b)?,
        });
        Ok(())
    }

    /// Adds the update of the embedding, if any, and names the whole.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn finish(
        mut self,
        content_hash: ContentHash,
        embedding: Option<&EmbeddingUpdate>,
    ) -> Result<PackedAdapter, RowTooLarge> {
        let embedding = match embedding {
            Some(update) => Some(PackedEmbedding {
                scale: update.scale,
                a: self.pages.push(&update.a)?,
                b: self.pages.push(&update.b)?,
            }),
            None => None,
        };
        let pages = self.pages.finish();
        let layout = AdapterLayout {
            content_hash,
            low_rank: self.low_rank,
            embedding,
            num_chunks: pages.len(),
            num_bytes: pages.iter().map(|page| page.len()).sum(),
        };
        Ok(PackedAdapter { layout: Arc::new(layout), pages })
    }
}

impl AdapterLayout {
    /// The largest rank of any update.
    #[must_use]
    pub fn max_rank(&self) -> usize {
        let embedding = self.embedding.iter().map(|update| update.b.rows);
        self.low_rank.iter().map(PackedUpdate::rank).chain(embedding).max().unwrap_or(0)
    }

    /// The update at `site`, if the adapter has one.
    #[must_use]
    pub fn at(&self, site: Site) -> Option<&PackedUpdate> {
        // An adapter of all linears has it here.
        if let Site::Layer { layer, module } = site
            && let Some(update) =
                self.low_rank.get(layer as usize * Module::ALL.len() + module as usize)
            && update.site == site
        {
            return Some(update);
        }
        let index = self.low_rank.binary_search_by_key(&site, |update| update.site).ok()?;
        self.low_rank.get(index)
    }
}

#[derive(Debug)]
struct Pages {
    allocator: Arc<dyn PageAllocator>,
    chunk_bytes: usize,
    pages: Vec<Page>,
}

impl Pages {
    fn push(&mut self, tensor: &AdapterTensor) -> Result<PackedMatrix, RowTooLarge> {
        let row_bytes = tensor.cols * tensor.dtype.size();
        if row_bytes > self.chunk_bytes {
            return Err(RowTooLarge { row_bytes, chunk_bytes: self.chunk_bytes });
        }
        let mut runs = Vec::with_capacity(1);
        let mut row = 0;
        while row < tensor.rows {
            let used = self.pages.last().map_or(self.chunk_bytes, |page| page.len());
            let offset = used.next_multiple_of(ALIGNMENT);
            let num_rows =
                (self.chunk_bytes.saturating_sub(offset) / row_bytes.max(1)).min(tensor.rows - row);
            if num_rows == 0 {
                if let Some(page) = self.pages.last_mut() {
                    page.pad(self.chunk_bytes);
                }
                self.pages.push(Page::new(self.allocator.lend(self.chunk_bytes)));
                continue;
            }
            let Some(index) = self.pages.len().checked_sub(1) else { continue };
            let page = &mut self.pages[index];
            page.pad(offset);
            page.push(&tensor.data[row * row_bytes..(row + num_rows) * row_bytes]);
            runs.push(RowRun { first_row: row as u32, page: index as u32, offset: offset as u32 });
            row += num_rows;
        }
        let (dtype, rows, cols) = (tensor.dtype, tensor.rows, tensor.cols);
        Ok(PackedMatrix { dtype, rows, cols, runs: runs.into() })
    }

    /// The last page gives back what it does not need.
    fn finish(mut self) -> Arc<[Page]> {
        if let Some(last) = self.pages.pop() {
            self.pages.push(last.shrunk(&*self.allocator));
        }
        self.pages.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: usize, cols: usize, first: u8) -> AdapterTensor {
        let data = (0..rows * cols * 2).map(|i| first.wrapping_add(i as u8)).collect();
        AdapterTensor { dtype: Dtype::F16, rows, cols, data, row_scales: None }
    }

    fn adapter(ranks: &[usize]) -> LoweredAdapter {
        let updates = ranks.iter().enumerate().map(|(layer, &rank)| LowRankUpdate {
            site: Site::Layer { layer: layer as u32, module: Module::Down },
            scale: 2.0,
            a: tensor(rank, 24, layer as u8),
            b: tensor(rank, 40, 100 + layer as u8),
        });
        let low_rank = updates.collect();
        LoweredAdapter { content_hash: ContentHash([1; 32]), low_rank, embedding: None }
    }

    fn unpacked(packed: &PackedAdapter, matrix: &PackedMatrix) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, run) in matrix.runs.iter().enumerate() {
            assert_eq!(run.offset as usize % ALIGNMENT, 0);
            let next =
                matrix.runs.get(index + 1).map_or(matrix.rows, |next| next.first_row as usize);
            let len = (next - run.first_row as usize) * matrix.row_bytes();
            bytes.extend_from_slice(&packed.pages[run.page as usize][run.offset as usize..][..len]);
        }
        bytes
    }

    #[test]
    fn every_byte_is_found_again_and_no_row_crosses_a_page() {
        let lowered = adapter(&[1, 3, 16, 5, 64]);
        for chunk_bytes in [80, 192, 256, 1000, 1 << 20] {
            let packed = PackedAdapter::pack(&lowered, chunk_bytes).unwrap();
            for (update, packed_update) in lowered.low_rank.iter().zip(&packed.low_rank) {
                assert_eq!(unpacked(&packed, &packed_update.a), *update.a.data);
                assert_eq!(unpacked(&packed, &packed_update.b), *update.b.data);
                assert_eq!(packed.at(update.site), Some(packed_update));
                assert!(packed_update.scales.iter().all(|&scale| scale == 2.0));
            }
            let (last, others) = packed.pages.split_last().unwrap();
            assert!(last.len() <= chunk_bytes);
            assert!(others.iter().all(|page| page.len() == chunk_bytes));
        }
    }

    #[test]
    fn a_row_larger_than_a_chunk_is_refused() {
        let error = PackedAdapter::pack(&adapter(&[2]), 79).unwrap_err();
        assert_eq!(error, RowTooLarge { row_bytes: 80, chunk_bytes: 79 });
    }
}
