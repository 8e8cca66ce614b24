//! The device's memory: one pool of equal chunks for KV blocks, cached prefixes and adapters.
//!
//! In: who needs a chunk. Out: a free one, after whatever idle thing is worth least was evicted. A
//! chunk is free, a held or idle KV block, or a page of an adapter. Taking and giving back a chunk
//! is O(1), an eviction of an adapter O(log n) of the adapters.

use crate::block_pool::{BlockPool, CachedBlock};
use crate::cost::CostModel;
use crate::eviction::{EvictionPolicy, PrefixFacts};
use crate::prefix_cache::BlockHash;
use crate::residency::{AdapterSpec, Place, Residency};
use weft_types::{AdapterId, AdapterLoad, BlockId, ContentHash};

/// How the chunks are used now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Chunks in all.
    pub num_chunks: usize,
    /// Nothing is in them.
    pub free: usize,
    /// KV blocks of running sequences.
    pub kv: usize,
    /// KV blocks of no sequence, kept for their prefixes.
    pub prefix: usize,
    /// Adapters of running sequences, pinned ones, and those on their way.
    pub adapters: usize,
    /// Adapters that nobody uses now.
    pub idle_adapters: usize,
}

/// See the module.
pub struct Memory {
    pub(crate) pool: BlockPool,
    pub(crate) residency: Residency,
    pub(crate) costs: CostModel,
    policy: Box<dyn EvictionPolicy>,
    /// Adapters evicted since the last plan.
    pub(crate) evictions: Vec<AdapterId>,
    block_size: usize,
    /// Grows with each thing that becomes idle.
    now: u64,
    prefix_queries: u64,
    prefix_hits: u64,
}

impl Memory {
    /// `num_chunks` free chunks; a KV block holds `block_size` tokens.
    #[must_use]
    pub fn new(
        num_chunks: usize,
        block_size: usize,
        policy: Box<dyn EvictionPolicy>,
        costs: CostModel,
    ) -> Self {
        Self {
            pool: BlockPool::new(num_chunks),
            residency: Residency::new(),
            costs,
            policy,
            evictions: Vec::new(),
            block_size,
            now: 0,
            prefix_queries: 0,
            prefix_hits: 0,
        }
    }

    /// Chunks that are free or could be.
    pub(crate) fn num_available(&self) -> usize {
        self.pool.num_free() + self.pool.num_idle() + self.residency.num_idle_chunks()
    }

    /// Of those, the chunks that could be taken for something that nobody needs yet.
    pub(crate) fn num_spare(&self) -> usize {
        self.pool.num_free() + self.pool.num_idle() + self.residency.num_unwanted_chunks()
    }

    pub(crate) fn num_chunks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// How the chunks are used now.
    pub(crate) fn usage(&self) -> PoolUse {
        let (free, prefix) = (self.pool.num_free(), self.pool.num_idle());
        let idle_adapters = self.residency.num_idle_chunks();
        let adapters = self.residency.num_resident_chunks() + self.residency.num_loading_chunks()
            - idle_adapters;
        let num_chunks = self.num_chunks();
        let kv = num_chunks - free - prefix - adapters - idle_adapters;
        PoolUse { num_chunks, free, kv, prefix, adapters, idle_adapters }
    }

    /// A KV block for the caller alone.
    pub fn allocate(&mut self) -> Option<BlockId> {
        if !self.make_room(1, true) {
            return None;
        }
        self.pool.allocate()
    }

    pub(crate) fn find(&self, hash: BlockHash) -> Option<CachedBlock> {
        self.pool.find(hash)
    }

    pub(crate) fn acquire(&mut self, found: CachedBlock) {
        self.pool.acquire(found);
    }

    pub(crate) fn register(&mut self, id: BlockId, hash: BlockHash) {
        self.pool.register(id, hash);
    }

    /// One holder less of a KV block.
    pub fn release(&mut self, id: BlockId) {
        let now = self.tick();
        let facts = PrefixFacts {
            compute_s: self.costs.token_s * self.block_size as f64,
            // As if the first ten thousand tokens had been found every tenth time.
            hit_rate: (self.prefix_hits as f64 + 1e3) / (self.prefix_queries as f64 + 1e4),
        };
        let policy = &mut self.policy;
        self.pool.release(id, || policy.prefix_value(&facts, now).max(0.0));
    }

    /// Prompt tokens were looked for in the prefix cache.
    pub(crate) fn note_prefix(&mut self, num_queries: usize, num_hits: usize) {
        self.prefix_queries += num_queries as u64;
        self.prefix_hits += num_hits as u64;
    }

    /// Begins to load an absent adapter if there is room; `even_wanted` evicts for it what other
    /// waiting sequences need.
    pub fn load(&mut self, id: AdapterId, even_wanted: bool) -> Option<AdapterLoad> {
        let num_chunks = self.residency.entry(id).spec.num_chunks;
        if !self.make_room(num_chunks, even_wanted) {
            return None;
        }
        let chunks: Box<[BlockId]> = (0..num_chunks).map_while(|_| self.pool.allocate()).collect();
        self.residency.begin_load(id, chunks.clone());
        Some(AdapterLoad { adapter: id, chunks })
    }

    /// The chunks of an adapter are written.
    pub fn end_load(&mut self, id: AdapterId) {
        let now = self.tick();
        self.residency.end_load(id, &mut *self.policy, &self.costs, now);
    }

    /// The chunks of an adapter will not be written.
    pub(crate) fn undo_load(&mut self, id: AdapterId) {
        for chunk in self.residency.undo_load(id) {
            self.pool.release(chunk, || 0.0);
        }
    }

    /// One more waiting sequence that names the adapter.
    pub fn add_waiting(&mut self, spec: AdapterSpec) -> AdapterId {
        self.residency.add_waiting(spec)
    }

    /// A waiting sequence begins to run; its adapter is on the device.
    pub fn begin_use(&mut self, id: AdapterId) {
        self.residency.begin_use(id);
    }

    /// A running sequence ended, or waits again.
    pub fn end_use(&mut self, id: AdapterId, waits_again: bool) {
        let now = self.tick();
        self.residency.end_use(id, waits_again, &mut *self.policy, &self.costs, now);
    }

    pub(crate) fn set_pinned(&mut self, hash: ContentHash, is_pinned: bool) {
        let now = self.tick();
        self.residency.set_pinned(hash, is_pinned, &mut *self.policy, &self.costs, now);
    }

    /// Takes an adapter off the device if no sequence names it.
    pub(crate) fn discard(&mut self, hash: ContentHash) {
        if let Some(id) = self.residency.unnamed(hash) {
            self.evict_adapter(id);
        }
    }

    /// Takes a pinned adapter, other than `but`, off the device that no running sequence uses. False
    /// if there is none.
    pub(crate) fn evict_pinned(&mut self, but: Option<AdapterId>) -> bool {
        let Some(id) = self.residency.unused_pinned(but) else { return false };
        self.evict_adapter(id);
        true
    }

    /// Evicts until `num_chunks` are free. False, and nothing was evicted, if that cannot be.
    fn make_room(&mut self, num_chunks: usize, even_wanted: bool) -> bool {
        if self.pool.num_free() >= num_chunks {
            return true;
        }
        let reachable = if even_wanted { self.num_available() } else { self.num_spare() };
        if reachable < num_chunks {
            return false;
        }
        while self.pool.num_free() < num_chunks {
            let prefix = self.pool.least_valuable();
            // What somebody waits for goes after all prefixes.
            let adapter = self.residency.least_valuable(even_wanted && prefix.is_none());
            match (prefix, adapter) {
                (Some(prefix), Some((_, adapter))) if prefix <= adapter => self.evict_prefix(),
                (Some(_), None) => self.evict_prefix(),
                (_, Some((id, value))) => {
                    self.policy.evicted(value);
                    self.evict_adapter(id);
                }
                (None, None) => return false,
            }
        }
        true
    }

    fn evict_prefix(&mut self) {
        if let Some(value) = self.pool.evict() {
            self.policy.evicted(value);
        }
    }

    fn evict_adapter(&mut self, id: AdapterId) {
        for chunk in self.residency.evict(id) {
            self.pool.release(chunk, || 0.0);
        }
        self.evictions.push(id);
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Checks that every chunk has exactly the holders that it counts: `num_holders` are those of
    /// sequences.
    pub(crate) fn check_integrity(&self, mut num_holders: Vec<u32>) -> Result<(), String> {
        self.residency.check_integrity()?;
        for (_, entry) in self.residency.iter() {
            let (Place::Loading(chunks) | Place::Resident(chunks)) = &entry.place else { continue };
            for chunk in chunks {
                num_holders[chunk.0 as usize] += 1;
                if num_holders[chunk.0 as usize] > 1 {
                    return Err(format!("{chunk:?} is a page of {} and more", entry.spec.hash));
                }
            }
        }
        self.pool.check_integrity(&num_holders)
    }
}
