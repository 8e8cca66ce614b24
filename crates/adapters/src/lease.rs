//! A pinned generation of an adapter. Whoever holds a lease computes with exactly these weights,
//! whatever is loaded, replaced or unloaded meanwhile; the memory is freed with the last one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_types::{ContentHash, LoweredAdapter};

/// One load of one name.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) name: Arc<str>,
    /// As it was given.
    pub(crate) path: PathBuf,
    pub(crate) weights: Arc<LoweredAdapter>,
    num_leases: AtomicUsize,
}

impl Generation {
    pub(crate) fn new(name: Arc<str>, path: PathBuf, weights: Arc<LoweredAdapter>) -> Self {
        Self { name, path, weights, num_leases: AtomicUsize::new(0) }
    }

    pub(crate) fn num_leases(&self) -> usize {
        self.num_leases.load(Ordering::Relaxed)
    }
}

/// Keeps the generation that a name resolved to. Cheap to clone; dropping unpins.
#[derive(Debug)]
pub struct AdapterLease {
    generation: Arc<Generation>,
}

impl Clone for AdapterLease {
    fn clone(&self) -> Self {
        Self::pin(Arc::clone(&self.generation))
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        self.generation.num_leases.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AdapterLease {
    pub(crate) fn pin(generation: Arc<Generation>) -> Self {
        generation.num_leases.fetch_add(1, Ordering::Relaxed);
        Self { generation }
    }

    /// The name that was resolved.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.generation.name
    }

    /// The same name, shared: for labels that outlive the lease.
    #[must_use]
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.generation.name)
    }

    /// What the executor multiplies.
    #[must_use]
    pub fn weights(&self) -> &Arc<LoweredAdapter> {
        &self.generation.weights
    }

    /// Keys caches: equal for adapters of equal files, different after a replacement.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        self.generation.weights.content_hash
    }
}
