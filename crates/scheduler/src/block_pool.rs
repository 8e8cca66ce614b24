//! The chunks of the device's memory: who holds which, and what the unheld ones still contain.
//!
//! In: allocate, acquire by content, register content, release, evict. Out: chunk ids. A chunk is
//! in exactly one of three states: *free* (nothing worth keeping), *held* (by sequences as a KV
//! block, or by one adapter as a page) or *idle* (a KV block that no sequence holds, whose content
//! is known and findable until its room is needed). Every operation is O(1). Knows no sequences, no
//! tokens and no adapters.

use crate::lru::LruList;
use crate::prefix_cache::BlockHash;
use rustc_hash::FxHashMap;
use weft_types::BlockId;

#[derive(Clone, Copy, Default)]
struct Block {
    num_refs: u32,
    /// While it is idle: what keeping it is worth.
    value: f64,
    /// Set while [`BlockPool::cached`] leads here.
    hash: Option<BlockHash>,
}

/// See the module.
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    idle: LruList,
    cached: FxHashMap<BlockHash, BlockId>,
}

/// A findable block, and whether it is idle: taking it then leaves less to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachedBlock {
    pub(crate) id: BlockId,
    pub(crate) is_idle: bool,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as u32).rev().map(BlockId).collect(),
            idle: LruList::new(num_blocks),
            cached: FxHashMap::with_capacity_and_hasher(num_blocks, Default::default()),
        }
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// A free chunk for the caller alone.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop()?;
        self.block(id).num_refs = 1;
        Some(id)
    }

    /// The block with this content, if there is one.
    pub(crate) fn find(&self, hash: BlockHash) -> Option<CachedBlock> {
        let id = *self.cached.get(&hash)?;
        Some(CachedBlock { id, is_idle: self.blocks[id.0 as usize].num_refs == 0 })
    }

    /// One more holder for a block that [`Self::find`] gave.
    pub(crate) fn acquire(&mut self, found: CachedBlock) {
        let block = self.block(found.id);
        block.num_refs += 1;
        if block.num_refs == 1 {
            self.idle.remove(found.id);
        }
    }

    /// Makes a held, full block findable. The first block with a content wins: a twin stays the
    /// private copy of its sequence.
    pub(crate) fn register(&mut self, id: BlockId, hash: BlockHash) {
        if self.block(id).hash.is_none() && !self.cached.contains_key(&hash) {
            self.block(id).hash = Some(hash);
            self.cached.insert(hash, id);
        }
    }

    /// One holder less. `value` is that of a block that becomes idle.
    pub(crate) fn release(&mut self, id: BlockId, value: impl FnOnce() -> f64) {
        let block = self.block(id);
        block.num_refs -= 1;
        match (block.num_refs, block.hash) {
            (0, None) => self.free.push(id),
            (0, Some(_)) => {
                block.value = value();
                self.idle.push_back(id);
            }
            _ => {}
        }
    }

    /// The value of the oldest idle block.
    pub(crate) fn least_valuable(&self) -> Option<f64> {
        self.idle.front().map(|id| self.blocks[id.0 as usize].value)
    }

    /// Frees the oldest idle block and tells its value.
    pub(crate) fn evict(&mut self) -> Option<f64> {
        let id = self.idle.pop_front()?;
        if let Some(hash) = self.block(id).hash.take() {
            self.cached.remove(&hash);
        }
        self.free.push(id);
        Some(self.blocks[id.0 as usize].value)
    }

    fn block(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    /// Compares the pool with how often each chunk is held, `num_holders[chunk]`.
    pub(crate) fn check_integrity(&self, num_holders: &[u32]) -> Result<(), String> {
        let mut num_places: Vec<usize> =
            num_holders.iter().map(|&holders| usize::from(holders > 0)).collect();
        for id in self.free.iter().copied().chain(self.idle.iter()) {
            num_places[id.0 as usize] += 1;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if num_places[index] != 1 {
                return Err(format!("block {index} is in {} places", num_places[index]));
            }
            if block.num_refs != num_holders[index] {
                let (refs, holders) = (block.num_refs, num_holders[index]);
                return Err(format!("block {index} counts {refs} holders and has {holders}"));
            }
            let found = block.hash.map(|hash| self.cached.get(&hash));
            if found.is_some_and(|found| found != Some(&BlockId(index as u32))) {
                return Err(format!("block {index} is not found under its own hash"));
            }
        }
        if self.idle.iter().any(|id| self.blocks[id.0 as usize].hash.is_none())
            || self.free.iter().any(|id| self.blocks[id.0 as usize].hash.is_some())
            || self.idle.iter().count() != self.idle.len()
        {
            return Err("a block is idle without content, or free with content".to_owned());
        }
        let num_hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        if num_hashed != self.cached.len() {
            return Err(format!("{num_hashed} blocks for {} hashes", self.cached.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::PrefixHasher;

    fn hashes<const N: usize>() -> [BlockHash; N] {
        let hasher = PrefixHasher::new();
        let root = hasher.root(None, None);
        std::array::from_fn(|index| hasher.next(root, &[index as u32]))
    }

    #[test]
    fn the_oldest_idle_block_is_evicted_first() {
        let mut pool = BlockPool::new(3);
        let [first, second] = hashes();
        let held: Vec<BlockId> = (0..2).map(|_| pool.allocate().unwrap()).collect();
        pool.register(held[0], first);
        pool.register(held[1], second);
        pool.release(held[0], || 0.5);
        pool.release(held[1], || 0.25);
        assert_eq!((pool.num_free(), pool.num_idle()), (1, 2));

        assert_eq!(pool.allocate(), Some(BlockId(2)));
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.least_valuable(), Some(0.5));
        assert_eq!(pool.evict(), Some(0.5), "the one that was idle longest");
        assert_eq!(pool.allocate(), Some(held[0]));
        assert_eq!(pool.find(first), None);
        assert_eq!(pool.find(second), Some(CachedBlock { id: held[1], is_idle: true }));
        pool.check_integrity(&[1, 0, 1]).unwrap();
    }

    #[test]
    fn a_shared_block_outlives_its_first_holder() {
        let mut pool = BlockPool::new(1);
        let [hash] = hashes();
        let id = pool.allocate().unwrap();
        pool.register(id, hash);
        pool.acquire(pool.find(hash).unwrap());
        pool.release(id, || 0.0);
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.find(hash), Some(CachedBlock { id, is_idle: false }));
        pool.release(id, || 0.0);
        assert_eq!(pool.find(hash), Some(CachedBlock { id, is_idle: true }));
        pool.evict().unwrap();
        assert_eq!(pool.allocate(), Some(id));
    }

    #[test]
    fn the_twin_of_a_cached_block_is_freed_and_not_kept() {
        let mut pool = BlockPool::new(2);
        let [hash] = hashes();
        let (kept, twin) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(kept, hash);
        pool.register(twin, hash);
        pool.release(twin, || 0.0);
        pool.release(kept, || 0.0);
        pool.check_integrity(&[0, 0]).unwrap();
        assert_eq!(pool.allocate(), Some(twin));
    }

    #[test]
    fn integrity_check_notices_a_lost_block() {
        let mut pool = BlockPool::new(2);
        pool.allocate().unwrap();
        assert!(pool.check_integrity(&[0, 0]).is_err());
        assert!(pool.check_integrity(&[2, 0]).is_err());
        assert!(pool.check_integrity(&[1, 1]).is_err());
        pool.check_integrity(&[1, 0]).unwrap();
    }
}
