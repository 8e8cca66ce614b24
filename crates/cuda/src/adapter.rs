//! An adapter on the device: its pages in chunks of the pool, and the table by which kernels find them.

use crate::adapter_table::{SiteParts, build, code, site_parts, table_bytes};
use crate::arena::CudaChunks;
use crate::driver::{DevicePtr, DriverError, Stream};
use crate::gpu::Buffer;
use std::sync::Arc;
use weft_types::{AdapterLayout, PackedAdapter, Site};

/// Dropping it gives the chunks back.
#[derive(Debug)]
pub struct CudaAdapter {
    layout: Arc<AdapterLayout>,
    table: Buffer<u8>,
    max_rank: usize,
    has_head: bool,
    parts: Box<[SiteParts]>,
    chunks: CudaChunks,
}

impl CudaAdapter {
    /// Copies pages and table, and waits until they are there.
    ///
    /// # Errors
    /// When the driver fails or has no memory for the table.
    pub fn place(packed: &PackedAdapter, mut chunks: CudaChunks) -> Result<Self, DriverError> {
        chunks.write_pages(&packed.pages)?;
        let (layout, num_layers) = (&packed.layout, chunks.num_layers());
        let gpu = chunks.gpu().clone();
        let table = gpu.alloc::<u8>(table_bytes(layout, num_layers))?;
        let bytes = build(layout, num_layers, |page| chunks.ptr(page), table.ptr());
        // SAFETY: as long as it was allocated, and nobody has it yet.
        unsafe { gpu.driver().upload(Stream::Copy, table.ptr(), &bytes)? };
        gpu.driver().synchronize(Stream::Copy)?;
        let has_head =
            layout.at(Site::LmHead).is_some() || layout.vectors_at(Site::LmHead).is_some();
        Ok(Self {
            layout: Arc::clone(layout),
            table,
            max_rank: layout.max_rank(),
            has_head,
            parts: site_parts(layout, num_layers),
            chunks,
        })
    }

    /// What it consists of.
    #[must_use]
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// Its table.
    pub(crate) fn table(&self) -> DevicePtr {
        self.table.ptr()
    }

    /// The largest rank of an update.
    pub(crate) fn max_rank(&self) -> usize {
        self.max_rank
    }

    /// Whether it does anything at the output head.
    pub(crate) fn has_head(&self) -> bool {
        self.has_head
    }

    /// Whether the embedding has an update.
    pub(crate) fn has_embedding(&self) -> bool {
        self.layout.embedding.is_some()
    }

    /// What it does at each site beside low-rank updates; empty if nothing.
    pub(crate) fn parts(&self) -> &[SiteParts] {
        &self.parts
    }

    /// The address and type of the embedding that it gives for a token.
    pub(crate) fn token_row(&self, token: u32) -> Option<(DevicePtr, u32)> {
        let given = self.layout.token_rows.as_ref()?;
        let row = given.tokens.binary_search(&token).ok()?;
        let runs = &given.rows.runs;
        let run = &runs[runs.partition_point(|run| run.first_row as usize <= row) - 1];
        let offset = run.offset as usize + (row - run.first_row as usize) * given.rows.row_bytes();
        Some((self.chunks.ptr(run.page as usize).add(offset), code(given.rows.dtype)))
    }
}
