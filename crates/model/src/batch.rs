//! One step's input as flat arrays: what `runner` prepares and the decoder reads.

use std::ops::Range;
use std::sync::Arc;
use weft_kernels::PlacedAdapter;
use weft_kernels::attention::AttentionItem;
use weft_kernels::kv::KvSlot;
use weft_types::{BlockId, TokenId};

/// Consecutive rows that share an adapter. `A` is an adapter on the device.
#[derive(Debug)]
pub struct AdapterSegment<A = PlacedAdapter> {
    /// Which rows.
    pub rows: Range<usize>,
    /// `None` is the bare base.
    pub adapter: Option<Arc<A>>,
}

impl<A> Clone for AdapterSegment<A> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), adapter: self.adapter.clone() }
    }
}

/// T rows: tokens of several sequences, those of one sequence consecutive and in order, sequences
/// of one adapter side by side.
#[derive(Debug)]
pub struct ForwardBatch<A = PlacedAdapter> {
    /// `[T]`
    pub tokens: Vec<TokenId>,
    /// `[T]`
    pub positions: Vec<u32>,
    /// `[T]`: where each row's keys and values go.
    pub slots: Vec<KvSlot>,
    /// Work of the attention: built once, used by all layers.
    pub attention: Vec<AttentionItem>,
    /// All sequences' block tables.
    pub block_tables: Vec<BlockId>,
    /// Runs of rows; they cover all.
    pub segments: Vec<AdapterSegment<A>>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<usize>,
    /// Runs of *entries of `logit_rows`*; they cover all.
    pub logit_segments: Vec<AdapterSegment<A>>,
}

impl<A> Default for ForwardBatch<A> {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            attention: Vec::new(),
            block_tables: Vec::new(),
            segments: Vec::new(),
            logit_rows: Vec::new(),
            logit_segments: Vec::new(),
        }
    }
}

impl<A> ForwardBatch<A> {
    /// T
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.attention.clear();
        self.block_tables.clear();
        self.segments.clear();
        self.logit_rows.clear();
        self.logit_segments.clear();
    }
}
