//! Identifiers. Each is its own type, so that a block is never taken for a sequence.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A token of the base model's vocabulary.
pub type TokenId = u32;

/// One sequence being generated. Unique within a process, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeqId(pub u64);

/// A chunk of the device's memory pool. It holds `block_size` consecutive tokens of the KV cache in
/// every layer, or a page of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockId(pub u32);

/// An adapter as scheduler and executor know it: a small number that is used again once nobody
/// needs the adapter any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AdapterId(pub u32);

/// A 256-bit digest of an adapter's bytes: its identity. Two names with the same bytes share one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    /// The first 16 hexadecimal digits: enough to tell adapters apart in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}
