//! The adapters of live sequences in host memory, from which they are copied to the device: now or,
//! after a preemption, later. Dropped with the last sequence, so that the registry may forget them.

use rustc_hash::FxHashMap;
use std::sync::Arc;
use weft_types::{AdapterId, PackedAdapter};

#[derive(Default)]
pub(crate) struct AdapterSources {
    by_id: FxHashMap<AdapterId, Source>,
}

struct Source {
    adapter: Arc<PackedAdapter>,
    num_sequences: usize,
}

impl AdapterSources {
    /// One more sequence needs it.
    pub(crate) fn add(&mut self, id: AdapterId, adapter: &Arc<PackedAdapter>) {
        let new = || Source { adapter: Arc::clone(adapter), num_sequences: 0 };
        self.by_id.entry(id).or_insert_with(new).num_sequences += 1;
    }

    /// One sequence less.
    pub(crate) fn remove(&mut self, id: AdapterId) {
        if let Some(source) = self.by_id.get_mut(&id) {
            source.num_sequences -= 1;
            if source.num_sequences == 0 {
                self.by_id.remove(&id);
            }
        }
    }

    pub(crate) fn get(&self, id: AdapterId) -> Option<Arc<PackedAdapter>> {
        self.by_id.get(&id).map(|source| Arc::clone(&source.adapter))
    }
}
