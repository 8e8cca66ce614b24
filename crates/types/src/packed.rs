//! The packed form of an adapter: what is kept in host memory and copied into device chunks.
//!
//! The matrices of a [`LoweredAdapter`] laid out in *pages* as large as a chunk of the device's
//! memory pool, so that a load is one copy a page, wherever its chunks are. Rows are contiguous and
//! none crosses a page: kernels get one pointer per run of rows. No rank is padded; what is lost is
//! less than a row a page.

use crate::adapter::{
    Activation, AdapterTensor, Bottleneck, BottleneckInput, Dtype, EmbeddingUpdate, KvPrefix,
    LowRankUpdate, LoweredAdapter, Module, Site, SiteVectors, TokenRows,
};
use crate::id::{ContentHash, TokenId};
use crate::page::{HeapPages, Page, PageAllocator};
use std::collections::HashMap;
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

/// See [`SiteVectors`]: matrices of one row, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedVectors {
    /// Where it applies.
    pub site: Site,
    /// `[1, K]`
    pub input: Option<PackedMatrix>,
    /// `[1, N]`
    pub output: Option<PackedMatrix>,
    /// `[1, N]`
    pub shift: Option<PackedMatrix>,
}

/// See [`Bottleneck`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedBottleneck {
    /// Where it applies.
    pub site: Site,
    /// What is multiplied with A.
    pub reads: BottleneckInput,
    /// `[rank]`: of the rows of A, 1 if they have none.
    pub a_scales: Box<[f32]>,
    /// `[rank]`: of the rows of B, 1 if they have none.
    pub b_scales: Box<[f32]>,
    /// Between the two.
    pub activation: Activation,
    /// `[rank, N]`
    pub a: PackedMatrix,
    /// `[1, rank]` f32
    pub a_bias: PackedMatrix,
    /// `[rank, N]`
    pub b: PackedMatrix,
    /// `[1, N]` f32
    pub b_bias: PackedMatrix,
}

/// See [`TokenRows`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTokenRows {
    /// `[n]`, ascending.
    pub tokens: Box<[u32]>,
    /// `[n, hidden]`
    pub rows: PackedMatrix,
}

/// See [`KvPrefix`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackedKvPrefix {
    /// Virtual tokens.
    pub num_tokens: usize,
    /// `[layers * 2 * num_tokens, kv heads * head dim]`
    pub rows: PackedMatrix,
}

/// What there is in an adapter's pages, and where: all that is needed beside the copied pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterLayout {
    /// Of the adapter's files.
    pub content_hash: ContentHash,
    /// At most one per site, sorted by site.
    pub low_rank: Vec<PackedUpdate>,
    /// The update of the token embedding, if any.
    pub embedding: Option<PackedEmbedding>,
    /// At most one per site, sorted by site.
    pub vectors: Vec<PackedVectors>,
    /// At most one per site, sorted by site.
    pub bottlenecks: Vec<PackedBottleneck>,
    /// Tokens with embeddings of their own.
    pub token_rows: Option<PackedTokenRows>,
    /// Keys and values of virtual tokens.
    pub kv_prefix: Option<PackedKvPrefix>,
    /// See [`LoweredAdapter::num_virtual_tokens`].
    pub num_virtual_tokens: usize,
    /// See [`LoweredAdapter::invocation_tokens`].
    pub invocation_tokens: Option<Box<[TokenId]>>,
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
        adapter.low_rank.iter().try_for_each(|update| packer.push(update))?;
        adapter.embedding.iter().try_for_each(|update| packer.push_embedding(update))?;
        adapter.vectors.iter().try_for_each(|vectors| packer.push_vectors(vectors))?;
        adapter.bottlenecks.iter().try_for_each(|bottleneck| packer.push_bottleneck(bottleneck))?;
        adapter.token_rows.iter().try_for_each(|rows| packer.push_token_rows(rows))?;
        adapter.kv_prefix.iter().try_for_each(|prefix| packer.push_kv_prefix(prefix))?;
        packer.set_num_virtual_tokens(adapter.num_virtual_tokens);
        packer.set_invocation_tokens(adapter.invocation_tokens.clone());
        Ok(packer.finish(adapter.content_hash))
    }

    /// The rows of a matrix of this adapter, in order: whole rows, as many as are contiguous.
    pub fn runs(&self, matrix: &PackedMatrix) -> impl Iterator<Item = &[u8]> {
        let row_bytes = matrix.row_bytes();
        let begins = matrix.runs.iter().map(|run| run.first_row as usize);
        let ends = begins.skip(1).chain([matrix.rows]);
        matrix.runs.iter().zip(ends).map(move |(run, end)| {
            let len = (end - run.first_row as usize) * row_bytes;
            &self.pages[run.page as usize][run.offset as usize..][..len]
        })
    }
}

/// Packs an adapter part by part, so that it need not be in memory twice.
#[derive(Debug)]
pub struct Packer {
    pages: Pages,
    layout: AdapterLayout,
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
        let (pages, packed) = (Vec::new(), HashMap::new());
        let pages = Pages { allocator, chunk_bytes, pages, packed };
        Self { pages, layout: AdapterLayout::default() }
    }

    /// Adds an update; its site comes after those of all before it.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push(&mut self, update: &LowRankUpdate) -> Result<(), RowTooLarge> {
        let scale = |j| update.scale * row_scale(&update.a, j) * row_scale(&update.b, j);
        self.layout.low_rank.push(PackedUpdate {
            site: update.site,
            scales: (0..update.rank()).map(scale).collect(),
            a: self.pages.push(&update.a)?,
            b: self.pages.push(&update.b)?,
        });
        Ok(())
    }

    /// Adds the update of the embedding.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push_embedding(&mut self, update: &EmbeddingUpdate) -> Result<(), RowTooLarge> {
        self.layout.embedding = Some(PackedEmbedding {
            scale: update.scale,
            a: self.pages.push(&update.a)?,
            b: self.pages.push(&update.b)?,
        });
        Ok(())
    }

    /// Adds the vectors of a site, which comes after those of all before it.
    ///
    /// # Errors
    /// When one is larger than a chunk.
    pub fn push_vectors(&mut self, vectors: &SiteVectors) -> Result<(), RowTooLarge> {
        let mut pack = |vector: &Option<Box<[f32]>>| {
            vector.as_deref().map(|values| self.pages.push_vector(values)).transpose()
        };
        let (input, output) = (pack(&vectors.input)?, pack(&vectors.output)?);
        let shift = pack(&vectors.shift)?;
        self.layout.vectors.push(PackedVectors { site: vectors.site, input, output, shift });
        Ok(())
    }

    /// Adds a bottleneck; its site comes after those of all before it.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push_bottleneck(&mut self, bottleneck: &Bottleneck) -> Result<(), RowTooLarge> {
        let scales = |tensor: &AdapterTensor| {
            (0..tensor.rows).map(|j| row_scale(tensor, j)).collect::<Box<[f32]>>()
        };
        self.layout.bottlenecks.push(PackedBottleneck {
            site: bottleneck.site,
            reads: bottleneck.reads,
            a_scales: scales(&bottleneck.a),
            b_scales: scales(&bottleneck.b),
            activation: bottleneck.activation,
            a: self.pages.push(&bottleneck.a)?,
            a_bias: self.pages.push_vector(&bottleneck.a_bias)?,
            b: self.pages.push(&bottleneck.b)?,
            b_bias: self.pages.push_vector(&bottleneck.b_bias)?,
        });
        Ok(())
    }

    /// Adds the tokens with embeddings of their own.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push_token_rows(&mut self, rows: &TokenRows) -> Result<(), RowTooLarge> {
        let (tokens, rows) = (rows.tokens.clone(), self.pages.push(&rows.rows)?);
        self.layout.token_rows = Some(PackedTokenRows { tokens, rows });
        Ok(())
    }

    /// Adds the keys and values of virtual tokens.
    ///
    /// # Errors
    /// When a row is larger than a chunk.
    pub fn push_kv_prefix(&mut self, prefix: &KvPrefix) -> Result<(), RowTooLarge> {
        let (num_tokens, rows) = (prefix.num_tokens, self.pages.push(&prefix.rows)?);
        self.layout.kv_prefix = Some(PackedKvPrefix { num_tokens, rows });
        Ok(())
    }

    /// How many virtual tokens prompts begin with.
    pub fn set_num_virtual_tokens(&mut self, num_virtual_tokens: usize) {
        self.layout.num_virtual_tokens = num_virtual_tokens;
    }

    /// From which tokens of the prompt on the adapter is active.
    pub fn set_invocation_tokens(&mut self, tokens: Option<Box<[TokenId]>>) {
        self.layout.invocation_tokens = tokens;
    }

    /// Names the whole.
    #[must_use]
    pub fn finish(self, content_hash: ContentHash) -> PackedAdapter {
        let pages = self.pages.finish();
        let layout = AdapterLayout {
            content_hash,
            num_chunks: pages.len(),
            num_bytes: pages.iter().map(|page| page.len()).sum(),
            ..self.layout
        };
        PackedAdapter { layout: Arc::new(layout), pages }
    }
}

fn row_scale(tensor: &AdapterTensor, row: usize) -> f32 {
    tensor.row_scales.as_ref().map_or(1.0, |scales| scales[row])
}

impl AdapterLayout {
    /// The largest rank of any update.
    #[must_use]
    pub fn max_rank(&self) -> usize {
        let embedding = self.embedding.iter().map(|update| update.b.rows);
        let bottlenecks = self.bottlenecks.iter().map(|bottleneck| bottleneck.a.rows);
        let low_rank = self.low_rank.iter().map(PackedUpdate::rank);
        low_rank.chain(embedding).chain(bottlenecks).max().unwrap_or(0)
    }

    /// The vectors at `site`, if the adapter has any.
    #[must_use]
    pub fn vectors_at(&self, site: Site) -> Option<&PackedVectors> {
        let index = self.vectors.binary_search_by_key(&site, |vectors| vectors.site).ok()?;
        self.vectors.get(index)
    }

    /// The bottleneck at `site`, if the adapter has one.
    #[must_use]
    pub fn bottleneck_at(&self, site: Site) -> Option<&PackedBottleneck> {
        let index = self.bottlenecks.binary_search_by_key(&site, |b| b.site).ok()?;
        self.bottlenecks.get(index)
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

/// What two equal matrices have in common, and most others have not: type, rows, columns, first bytes.
type Likeness = (Dtype, usize, usize, Box<[u8]>);

/// First bytes of a [`Likeness`].
const NUM_FIRST_BYTES: usize = 64;

#[derive(Debug)]
struct Pages {
    allocator: Arc<dyn PageAllocator>,
    chunk_bytes: usize,
    pages: Vec<Page>,
    /// The last matrix of each likeness: a method may have one for many sites (VeRA).
    packed: HashMap<Likeness, PackedMatrix>,
}

impl Pages {
    /// `[1, len]` in f32.
    fn push_vector(&mut self, values: &[f32]) -> Result<PackedMatrix, RowTooLarge> {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let cols = values.len();
        self.push(&AdapterTensor { dtype: Dtype::F32, rows: 1, cols, data, row_scales: None })
    }

    fn push(&mut self, tensor: &AdapterTensor) -> Result<PackedMatrix, RowTooLarge> {
        let row_bytes = tensor.cols * tensor.dtype.size();
        if row_bytes > self.chunk_bytes {
            return Err(RowTooLarge { row_bytes, chunk_bytes: self.chunk_bytes });
        }
        let first = tensor.data.len().min(NUM_FIRST_BYTES);
        let likeness = (tensor.dtype, tensor.rows, tensor.cols, tensor.data[..first].into());
        if let Some(packed) = self.packed.get(&likeness)
            && self.holds(packed, &tensor.data)
        {
            return Ok(packed.clone());
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
        let packed = PackedMatrix { dtype, rows, cols, runs: runs.into() };
        self.packed.insert(likeness, packed.clone());
        Ok(packed)
    }

    /// Whether a packed matrix has these bytes.
    fn holds(&self, packed: &PackedMatrix, mut data: &[u8]) -> bool {
        packed.runs.iter().enumerate().all(|(index, run)| {
            let next =
                packed.runs.get(index + 1).map_or(packed.rows, |next| next.first_row as usize);
            let len = (next - run.first_row as usize) * packed.row_bytes();
            let (here, rest) = data.split_at(len);
            data = rest;
            self.pages[run.page as usize][run.offset as usize..][..len] == *here
        })
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
mod tests;
