//! The identity of a full KV block: a chained hash of everything that its content depends on.
//!
//! In: tokens, the adapter's content hash and the position from which on it is active, the client's
//! salt. Out: 128 bits. Two blocks with equal hashes hold the same keys and values. The hash is keyed
//! per process, so a client cannot look for two prompts that collide, and 128 bits make chance
//! collisions no concern: the chance is under 10⁻²⁰ among 10⁹ blocks.

use std::hash::{BuildHasher, RandomState};
use weft_types::{ContentHash, TokenId};

/// Names the content of a full block, all tokens before it, the adapter and the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash([u64; 2]);

/// Two SipHash keys. They decide no order anywhere: only equality of hashes is ever used.
pub(crate) struct PrefixHasher {
    keys: [RandomState; 2],
}

impl PrefixHasher {
    pub(crate) fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()] }
    }

    /// What stands before a sequence's first block.
    pub(crate) fn root(&self, adapter: Option<ContentHash>, salt: Option<&str>) -> BlockHash {
        BlockHash(self.keys.each_ref().map(|key| key.hash_one(("root", adapter, salt))))
    }

    /// What stands before the block in which an adapter becomes active.
    fn activated(&self, parent: BlockHash, activation: Activation) -> BlockHash {
        let Activation { adapter, position } = activation;
        let content = ("activated", parent, adapter, position);
        BlockHash(self.keys.each_ref().map(|key| key.hash_one(content)))
    }

    /// The block with `tokens` after `parent`.
    pub(crate) fn next(&self, parent: BlockHash, tokens: &[TokenId]) -> BlockHash {
        BlockHash(self.keys.each_ref().map(|key| key.hash_one((parent, tokens))))
    }
}

/// An adapter that is active from a position on, after which keys and values are its own: blocks that
/// end before it are those of the base, and shared with the base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activation {
    pub(crate) adapter: ContentHash,
    pub(crate) position: usize,
}

/// The hashes of one sequence's full blocks, as far as they were needed. They outlive a preemption.
pub(crate) struct PrefixChain {
    root: BlockHash,
    activation: Option<Activation>,
    hashes: Vec<BlockHash>,
}

impl PrefixChain {
    pub(crate) fn new(root: BlockHash) -> Self {
        Self { root, activation: None, hashes: Vec::new() }
    }

    /// The same with an adapter that the root does not name.
    pub(crate) fn activated(self, activation: Activation) -> Self {
        Self { activation: Some(activation), ..self }
    }

    /// Makes room for the hashes of so many blocks.
    pub(crate) fn reserve(&mut self, num_blocks: usize) {
        self.hashes.reserve_exact(num_blocks.saturating_sub(self.hashes.len()));
    }

    /// The hash of full block `index` of a sequence with these `tokens`.
    pub(crate) fn hash_of(
        &mut self,
        index: usize,
        hasher: &PrefixHasher,
        tokens: &[TokenId],
        block_size: usize,
    ) -> BlockHash {
        while self.hashes.len() <= index {
            let start = self.hashes.len() * block_size;
            let mut parent = *self.hashes.last().unwrap_or(&self.root);
            let block = start..start + block_size;
            if let Some(activation) = self.activation
                && block.contains(&activation.position)
            {
                parent = hasher.activated(parent, activation);
            }
            self.hashes.push(hasher.next(parent, &tokens[block]));
        }
        self.hashes[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_tokens_prefix_adapter_and_salt() {
        let hasher = PrefixHasher::new();
        let adapter = Some(ContentHash([7; 32]));
        let roots = [
            hasher.root(None, None),
            hasher.root(adapter, None),
            hasher.root(None, Some("a")),
            hasher.root(None, Some("")),
            hasher.root(adapter, Some("a")),
        ];
        let mut seen = std::collections::HashSet::new();
        for root in roots {
            let first = hasher.next(root, &[1, 2]);
            for hash in [root, first, hasher.next(root, &[2, 1]), hasher.next(first, &[1, 2])] {
                assert!(seen.insert(hash), "{hash:?} names two contents");
            }
        }
    }

    #[test]
    fn a_chain_is_the_same_however_it_is_asked() {
        let hasher = PrefixHasher::new();
        let tokens: Vec<TokenId> = (0..12).collect();
        let root = hasher.root(None, None);
        let (mut one, mut other) = (PrefixChain::new(root), PrefixChain::new(root));
        let last = one.hash_of(2, &hasher, &tokens, 4);
        for index in 0..2 {
            other.hash_of(index, &hasher, &tokens[..8], 4);
        }
        assert_eq!(other.hash_of(2, &hasher, &tokens, 4), last);
    }

    #[test]
    fn blocks_before_an_activation_are_those_of_the_base_and_later_ones_name_adapter_and_position()
    {
        let hasher = PrefixHasher::new();
        let tokens: Vec<TokenId> = (0..16).collect();
        let hashes = |activation: Option<(u8, usize)>| {
            let mut chain = PrefixChain::new(hasher.root(None, None));
            if let Some((byte, position)) = activation {
                chain = chain.activated(Activation { adapter: ContentHash([byte; 32]), position });
            }
            chain.hash_of(3, &hasher, &tokens, 4);
            chain.hashes
        };
        let base = hashes(None);
        for (position, num_shared) in [(4, 1), (5, 1), (7, 1), (8, 2), (15, 3), (16, 4)] {
            let activated = hashes(Some((7, position)));
            assert_eq!(activated[..num_shared], base[..num_shared], "{position}");
            let others =
                [base.clone(), hashes(Some((8, position))), hashes(Some((7, position ^ 1)))];
            for other in others {
                for index in num_shared..4 {
                    assert_ne!(activated[index], other[index], "{position}, block {index}");
                }
            }
        }
    }
}
