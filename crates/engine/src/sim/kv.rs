//! The simulated KV cache: for each position of each block, which prefix was computed there.

use weft_types::{BlockId, ContentHash, StepPlan, TokenId};

/// Stands for an adapter and a run of tokens from position 0. Not for adversaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrefixHash(u64);

impl PrefixHash {
    /// Nothing, of the base.
    pub(super) const ROOT: Self = Self(0x5eed);

    /// The same, followed by what an adapter computes.
    pub(super) fn activate(self, adapter: ContentHash) -> Self {
        Self(adapter.0.iter().fold(self.0, |hash, &byte| mix(hash ^ u64::from(byte))))
    }

    pub(super) fn then(self, token: TokenId) -> Self {
        Self(mix(self.0.rotate_left(7) ^ u64::from(token)))
    }

    /// A token below `vocab_size`.
    pub(super) fn pick(self, seed: u64, vocab_size: usize) -> TokenId {
        (mix(self.0 ^ mix(seed)) % vocab_size as u64) as TokenId
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

pub(super) struct SimKv {
    block_size: usize,
    slots: Vec<Option<PrefixHash>>,
    /// How many sequences of the present plan name each block.
    num_readers: Vec<u32>,
}

impl SimKv {
    pub(super) fn new(num_blocks: usize, block_size: usize) -> Self {
        let slots = vec![None; num_blocks * block_size];
        Self { block_size, slots, num_readers: vec![0; num_blocks] }
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        blocks[position / self.block_size].0 as usize * self.block_size + position % self.block_size
    }

    /// Every position that was computed before holds just what this sequence has there.
    pub(super) fn check(&self, blocks: &[BlockId], prefixes: &[PrefixHash]) {
        for (position, prefix) in prefixes.iter().enumerate() {
            let stored = self.slots[self.slot(blocks, position)];
            assert_eq!(stored, Some(*prefix), "another prefix stands at position {position}");
        }
    }

    pub(super) fn store(&mut self, blocks: &[BlockId], start: usize, prefixes: &[PrefixHash]) {
        for (offset, prefix) in prefixes.iter().enumerate() {
            let slot = self.slot(blocks, start + offset);
            self.slots[slot] = Some(*prefix);
        }
    }

    /// A page of an adapter is written there.
    pub(super) fn overwrite(&mut self, block: BlockId) {
        let first = block.0 as usize * self.block_size;
        self.slots[first..first + self.block_size].fill(None);
    }

    /// No block that is written in this step belongs to more than one of its sequences.
    pub(super) fn check_private_writes(&mut self, plan: &StepPlan) {
        self.num_readers.fill(0);
        for block in &plan.block_tables {
            self.num_readers[block.0 as usize] += 1;
        }
        for chunk in &plan.sequences {
            let end = chunk.start + chunk.tokens.len();
            let blocks = &plan.block_tables[chunk.blocks.clone()];
            assert!(end <= blocks.len() * self.block_size, "{:?} lacks a block", chunk.seq);
            for block in &blocks[chunk.start / self.block_size..end.div_ceil(self.block_size)] {
                let num_readers = self.num_readers[block.0 as usize];
                assert_eq!(num_readers, 1, "{block:?} is written while another reads it");
            }
        }
    }
}
