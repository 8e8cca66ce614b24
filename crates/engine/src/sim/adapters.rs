//! The simulated device's adapters: which are there, in which chunks, and since when.

use rustc_hash::FxHashMap;
use std::time::{Duration, Instant};
use weft_types::{AdapterId, AdapterLoad, AdapterRef, BlockId, ContentHash};

#[derive(Default)]
pub(super) struct SimAdapters {
    pub(super) latency: Duration,
    by_id: FxHashMap<AdapterId, Loaded>,
}

struct Loaded {
    content_hash: ContentHash,
    chunks: Box<[BlockId]>,
    ready_at: Instant,
    is_reported: bool,
}

impl SimAdapters {
    pub(super) fn load(&mut self, load: &AdapterLoad, content_hash: ContentHash) {
        self.check_chunks(&load.chunks);
        let ready_at = Instant::now() + self.latency;
        let chunks = load.chunks.clone();
        let loaded = Loaded { content_hash, chunks, ready_at, is_reported: false };
        let before = self.by_id.insert(load.adapter, loaded);
        assert!(before.is_none(), "{:?} is there already", load.adapter);
    }

    pub(super) fn finish(&mut self, finished: &mut Vec<AdapterId>) {
        let now = Instant::now();
        for (&id, loaded) in &mut self.by_id {
            if !loaded.is_reported && loaded.ready_at <= now {
                loaded.is_reported = true;
                finished.push(id);
            }
        }
    }

    pub(super) fn unload(&mut self, id: AdapterId) {
        let gone = self.by_id.remove(&id);
        assert!(gone.is_some_and(|gone| gone.is_reported), "{id:?} leaves before it came");
    }

    /// The adapter of a planned sequence is there, whole and the right one.
    pub(super) fn check(&self, adapter: AdapterRef) {
        let loaded = self.by_id.get(&adapter.id);
        let is_there =
            loaded.is_some_and(|one| one.is_reported && one.content_hash == adapter.content_hash);
        assert!(is_there, "{adapter:?} is planned and not there");
    }

    /// None of these is a page of an adapter.
    pub(super) fn check_chunks(&self, chunks: &[BlockId]) {
        for loaded in self.by_id.values() {
            let shared = loaded.chunks.iter().find(|chunk| chunks.contains(chunk));
            assert!(shared.is_none(), "{shared:?} is a page of an adapter");
        }
    }
}
