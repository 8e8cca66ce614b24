//! The memory pool on the device: one allocation in equal chunks, each a KV block or a page of an
//! adapter. Who gets which chunk is the scheduler's business.

use crate::driver::{DevicePtr, DriverError, Event, Stream};
use crate::gpu::{Buffer, Gpu};
use std::sync::Arc;
use weft_types::{BlockId, Page};

/// The pool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CudaArena {
    gpu: Gpu,
    memory: Arc<Buffer<u8>>,
    chunk_bytes: usize,
    num_layers: usize,
}

impl CudaArena {
    /// One allocation for all chunks, for a model of so many layers.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn new(
        gpu: &Gpu,
        num_chunks: usize,
        chunk_bytes: usize,
        num_layers: usize,
    ) -> Result<Self, DriverError> {
        let memory = Arc::new(gpu.alloc(num_chunks * chunk_bytes)?);
        Ok(Self { gpu: gpu.clone(), memory, chunk_bytes, num_layers })
    }

    /// Where chunk 0 begins.
    #[must_use]
    pub fn ptr(&self) -> DevicePtr {
        self.memory.ptr()
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Chunks for an adapter, free for its pages once the steps so far have ended.
    #[must_use]
    pub fn lend(&self, chunks: &[BlockId]) -> CudaChunks {
        let last_use = self.gpu.driver().record(Stream::Compute);
        CudaChunks { arena: self.clone(), chunks: chunks.into(), last_use }
    }
}

/// Chunks that an adapter has.
#[derive(Debug)]
pub struct CudaChunks {
    arena: CudaArena,
    chunks: Box<[BlockId]>,
    last_use: Result<Event, DriverError>,
}

impl CudaChunks {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Of the model.
    pub(crate) fn num_layers(&self) -> usize {
        self.arena.num_layers
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.arena.gpu
    }

    /// Where the `index`-th begins.
    ///
    /// # Panics
    /// When there is no such chunk.
    #[must_use]
    pub fn ptr(&self, index: usize) -> DevicePtr {
        let chunk = self.chunks[index].0 as usize;
        self.arena.memory.at(chunk * self.arena.chunk_bytes)
    }

    /// Copies pages, one to each chunk, on the copy stream, and waits for them: no step does.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there are not as many chunks as pages or a page is larger than a chunk.
    pub fn write_pages(&mut self, pages: &[Page]) -> Result<(), DriverError> {
        assert_eq!(pages.len(), self.chunks.len(), "one chunk for each page");
        let fits = |page: &Page| page.len() <= self.arena.chunk_bytes;
        assert!(pages.iter().all(fits), "a page fits a chunk");
        let driver = self.arena.gpu.driver();
        driver.wait(Stream::Copy, self.last_use.clone()?)?;
        let copied = pages.iter().enumerate().try_for_each(|(index, page)| {
            // SAFETY: in bounds; the chunk is this holder's, earlier steps were waited for, and so
            // are these copies, before anybody gets the page or the chunk back.
            unsafe { driver.enqueue_upload(Stream::Copy, self.ptr(index), page) }
        });
        copied.and(driver.synchronize(Stream::Copy))
    }
}
