//! What a registry is told at start.

use crate::base_weights::BaseWeights;
use crate::dtype::AdapterDtype;
use crate::read::DEFAULT_MAX_LORA_RANK;
use crate::remote::{LocalOnly, RemoteSources};
use crate::storage::{LocalFiles, Storage};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use weft_types::{BaseModelSpec, HeapPages, PageAllocator};

/// What a registry serves, and with how much.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The model that adapters must fit.
    pub base: BaseModelSpec,
    /// Its weights, for the methods that need them. Without them those are refused.
    pub base_weights: Option<Arc<dyn BaseWeights>>,
    /// Its names: no adapter may have one of them.
    pub base_names: Vec<String>,
    /// The largest rank that is accepted.
    pub max_lora_rank: usize,
    /// Every sub-directory with an `adapter_config.json` is an adapter, found when first asked for.
    pub adapter_dir: Option<PathBuf>,
    /// Bytes of a chunk of the device's memory pool: pages of packed adapters are as large.
    pub chunk_bytes: usize,
    /// Bytes of host memory for packed adapters and for the files of loads in flight; `None` is
    /// unbounded. What a load works with while it converts comes on top, for at most
    /// `max_concurrent_lowerings` adapters.
    pub host_memory_bytes: Option<usize>,
    /// What weights are converted to.
    pub dtype: AdapterDtype,
    /// How long a load waits until leases, pins and other loads let go of host memory.
    pub room_timeout: Duration,
    /// Reads in flight; more wait. Each may keep a thread for as long as its storage hangs.
    pub max_concurrent_reads: usize,
    /// Loads that compute at once; more wait.
    pub max_concurrent_lowerings: usize,
    /// Adapters that are being brought here at once; more wait.
    pub max_concurrent_fetches: usize,
    /// Where the files lie.
    pub storage: Arc<dyn Storage>,
    /// In whose memory packed adapters are kept: the heap, or memory that a device reads by itself.
    pub pages: Arc<dyn PageAllocator>,
    /// What brings adapters here that lie elsewhere, and says what a request may name.
    pub remote: Arc<dyn RemoteSources>,
}

impl RegistryConfig {
    /// No weights, no directory, no reserved names, ranks up to 512, chunks of 2 MiB, unbounded memory,
    /// weights as in the files, 30 s of patience, at once 32 reads, two conversions and eight fetches,
    /// from nowhere but this machine, pages on the heap.
    #[must_use]
    pub fn new(base: BaseModelSpec) -> Self {
        Self {
            base,
            base_weights: None,
            base_names: Vec::new(),
            max_lora_rank: DEFAULT_MAX_LORA_RANK,
            adapter_dir: None,
            chunk_bytes: 2 << 20,
            host_memory_bytes: None,
            dtype: AdapterDtype::Auto,
            room_timeout: Duration::from_secs(30),
            max_concurrent_reads: 32,
            max_concurrent_lowerings: 2,
            max_concurrent_fetches: 8,
            storage: Arc::new(LocalFiles),
            pages: Arc::new(HeapPages),
            remote: Arc::new(LocalOnly),
        }
    }
}
