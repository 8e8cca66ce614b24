//! The KV blocks: who holds which, and what the unheld ones still contain.
//!
//! In: allocate, acquire by content, register content, release. Out: block ids. A block is in
//! exactly one of three states: *free* (nothing worth keeping), *held* (by at least one sequence)
//! or *idle* (held by none, but its content is known and findable until its room is needed).
//! Every operation is O(1). Knows no sequences and no tokens.

use crate::lru::LruList;
use crate::prefix_cache::BlockHash;
use rustc_hash::FxHashMap;
use weft_types::BlockId;

#[derive(Clone, Copy, Default)]
struct Block {
    num_refs: u32,
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

/// A findable block, and whether taking it lowers [`BlockPool::num_available`].
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
            cached: FxHashMap::default(),
        }
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Self::allocate`] can give: free and idle ones.
    pub(crate) fn num_available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A block for the caller alone. The oldest idle one loses its content when none is free.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop().or_else(|| self.evict())?;
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

    /// One holder less.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = self.block(id);
        block.num_refs -= 1;
        match (block.num_refs, block.hash) {
            (0, None) => self.free.push(id),
            (0, Some(_)) => self.idle.push_back(id),
            _ => {}
        }
    }

    fn evict(&mut self) -> Option<BlockId> {
        let id = self.idle.pop_front()?;
        if let Some(hash) = self.block(id).hash.take() {
            self.cached.remove(&hash);
        }
        Some(id)
    }

    fn block(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    /// Compares the pool with how often each block is held by sequences, `num_holders[block]`.
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
    fn the_oldest_idle_block_is_reused_only_when_none_is_free() {
        let mut pool = BlockPool::new(3);
        let [first, second] = hashes();
        let held: Vec<BlockId> = (0..2).map(|_| pool.allocate().unwrap()).collect();
        pool.register(held[0], first);
        pool.register(held[1], second);
        pool.release(held[0]);
        pool.release(held[1]);
        assert_eq!(pool.num_available(), 3);

        assert_eq!(pool.allocate(), Some(BlockId(2)), "the free one goes first");
        assert_eq!(pool.allocate(), Some(held[0]), "then the one that was idle longest");
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
        pool.release(id);
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.find(hash), Some(CachedBlock { id, is_idle: false }));
        pool.release(id);
        assert_eq!(pool.allocate(), Some(id));
    }

    #[test]
    fn the_twin_of_a_cached_block_is_freed_and_not_kept() {
        let mut pool = BlockPool::new(2);
        let [hash] = hashes();
        let (kept, twin) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.register(kept, hash);
        pool.register(twin, hash);
        pool.release(twin);
        pool.release(kept);
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
