//! Paged attention with grouped-query heads, causal, optionally within a sliding window.
//!
//! `out[t,h,:] = Σ_j softmax_j(scale · q[t,h,:]·k[j,g,:]) v[j,g,:]`, j ≤ position(t), g = h's KV
//! head. The softmax is taken online (Milakov & Gimelshein 2018) over blocks of sixteen positions
//! in order, so a row's result depends on its own context only, however prefill is chunked.
//!
//! A work item is a few rows of one sequence; all query heads of a KV head share its pages.

mod attend;

use crate::Isa;
use crate::kv::KvCache;
use crate::pool::{DisjointMut, ThreadPool};
use attend::attend;
use std::cell::RefCell;
use weft_types::BlockId;

/// The layer-independent part of an attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies scores: usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// A row sees at most this many positions, its own included.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Rows of one work item: enough to share pages, few enough to stay in the first-level cache.
    #[must_use]
    pub fn rows_per_item(&self) -> usize {
        (4096 / (self.num_heads / self.num_kv_heads * self.head_dim)).clamp(1, 8)
    }
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionItem {
    /// First row in the batch.
    pub first_row: usize,
    /// At most [`AttentionShape::rows_per_item`].
    pub num_rows: usize,
    /// Position of the first row.
    pub position: usize,
    /// Start of the sequence's block table.
    pub first_block: usize,
}

/// Computes `out:[T, num_heads, head_dim]` from `q` of the same shape and one layer of the cache.
///
/// # Panics
/// When lengths do not agree or an item reads past its tables.
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
pub fn attention_into(
    pool: &ThreadPool,
    isa: Isa,
    shape: &AttentionShape,
    cache: &KvCache,
    layer: usize,
    items: &[AttentionItem],
    block_tables: &[BlockId],
    q: &[f32],
    out: &mut [f32],
) {
    assert_eq!(q.len(), out.len());
    let out = DisjointMut::new(out);
    let num_work = items.len() * shape.num_kv_heads;
    pool.run(num_work, 1, |range| {
        for index in range {
            let (item, kv_head) = (&items[index / shape.num_kv_heads], index % shape.num_kv_heads);
            SCRATCH.with_borrow_mut(|scratch| {
                let work = Work { shape, cache, layer, kv_head, item, block_tables, q };
                attend(isa, work, scratch, out);
            });
        }
    });
}

#[derive(Clone, Copy)]
struct Work<'a> {
    shape: &'a AttentionShape,
    cache: &'a KvCache,
    layer: usize,
    kv_head: usize,
    item: &'a AttentionItem,
    block_tables: &'a [BlockId],
    q: &'a [f32],
}

#[derive(Default)]
struct Scratch {
    /// `[num_rows, group, head_dim]`
    acc: Vec<f32>,
    /// (running maximum, running sum) of each row and head.
    softmax: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[cfg(test)]
mod tests;
