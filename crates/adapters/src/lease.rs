//! A leased generation of an adapter. Whoever holds a lease computes with exactly these weights,
//! whatever is loaded, replaced, evicted or unloaded meanwhile.

use crate::host_cache::Resident;
use crate::loads::Shared;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_types::{ContentHash, PackedAdapter};

/// One load of one name.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) name: Arc<str>,
    num_leases: AtomicUsize,
}

impl Generation {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self { name, num_leases: AtomicUsize::new(0) }
    }

    pub(crate) fn num_leases(&self) -> usize {
        self.num_leases.load(Ordering::Relaxed)
    }
}

/// Keeps weights in memory and in the budget.
pub(crate) struct Hold {
    pub(crate) resident: Arc<Resident>,
    shared: Arc<Shared>,
}

impl Hold {
    /// Only under the lock of the state: it may be the first.
    pub(crate) fn new_locked(resident: Arc<Resident>, shared: Arc<Shared>) -> Self {
        resident.num_holds.fetch_add(1, Ordering::Relaxed);
        Self { resident, shared }
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.resident.num_holds.fetch_add(1, Ordering::Relaxed);
        Self { resident: Arc::clone(&self.resident), shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Hold {
    /// Never under the lock of the state.
    fn drop(&mut self) {
        let holds = &self.resident.num_holds;
        // Not the last one: no lock.
        let decrement = |held: usize| (held > 1).then(|| held - 1);
        if holds.fetch_update(Ordering::AcqRel, Ordering::Acquire, decrement).is_err() {
            self.shared.drop_last_hold(&self.resident);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.resident.weights.content_hash).finish()
    }
}

/// Keeps the generation that a name resolved to. Cheap to clone.
#[derive(Debug)]
pub struct AdapterLease {
    generation: Arc<Generation>,
    hold: Hold,
}

impl Clone for AdapterLease {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.generation), self.hold.clone())
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        self.generation.num_leases.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AdapterLease {
    pub(crate) fn new(generation: Arc<Generation>, hold: Hold) -> Self {
        generation.num_leases.fetch_add(1, Ordering::Relaxed);
        Self { generation, hold }
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

    /// What is copied to a device. Memory is accounted by leases: keep the lease as long as a clone.
    #[must_use]
    pub fn weights(&self) -> &Arc<PackedAdapter> {
        &self.hold.resident.weights
    }

    /// Keys caches: equal for adapters of equal files, different after a replacement.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        self.weights().content_hash
    }
}
