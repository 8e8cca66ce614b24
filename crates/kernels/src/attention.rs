//! Paged attention with grouped-query heads, causal, optionally within a sliding window.
//!
//! `out[t,h,:] = Σ_j softmax_j(scale · q[t,h,:]·k[j,g,:]) v[j,g,:]`, j ≤ position(t), g = h's KV
//! head. The softmax is taken online (Milakov & Gimelshein 2018) over blocks of sixteen positions
//! in order, so a row's result depends on its own context only, however prefill is chunked.
//!
//! A work item is a few rows of one sequence; all query heads of a KV head share its pages.

use crate::Isa;
use crate::isa::multiversion;
use crate::kv::{BLOCK_SIZE, KvCache};
use crate::lanes::{LANES, Lanes, axpy_lanes, exp, fma, max_lanes, sum_lanes};
use crate::pool::{DisjointMut, ThreadPool};
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
                attend(isa, &work, scratch, out);
            });
        }
    });
}

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
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[num_rows, group, head_dim]`
    acc: Vec<f32>,
    /// (running maximum, running sum) of each row and head.
    softmax: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

multiversion! {
    fn attend<'a>(work: &Work<'a>, scratch: &mut Scratch, out: DisjointMut<'a, f32>) = attend_body
}

#[inline(always)]
fn attend_body<const FMA: bool>(work: &Work<'_>, scratch: &mut Scratch, out: DisjointMut<'_, f32>) {
    let (shape, item) = (work.shape, work.item);
    let (dim, group) = (shape.head_dim, shape.num_heads / shape.num_kv_heads);
    let first_seen =
        |position: usize| shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    scratch.keys.resize(BLOCK_SIZE * dim, 0.0);
    scratch.values.resize(BLOCK_SIZE * dim, 0.0);
    scratch.acc.clear();
    scratch.acc.resize(item.num_rows * group * dim, 0.0);
    scratch.softmax.clear();
    scratch.softmax.resize(item.num_rows * group, (f32::NEG_INFINITY, 0.0));

    let last_position = item.position + item.num_rows - 1;
    for page in first_seen(item.position) / BLOCK_SIZE..=last_position / BLOCK_SIZE {
        let block = work.block_tables[item.first_block + page];
        work.cache.read_page_into(
            block,
            work.layer,
            work.kv_head,
            &mut scratch.keys,
            &mut scratch.values,
        );
        for row in 0..item.num_rows {
            let position = item.position + row;
            let start = first_seen(position).max(page * BLOCK_SIZE);
            let end = (position + 1).min((page + 1) * BLOCK_SIZE);
            if start >= end {
                continue;
            }
            let seen = start - page * BLOCK_SIZE..end - page * BLOCK_SIZE;
            for head in 0..group {
                let index = row * group + head;
                let q_start =
                    ((item.first_row + row) * shape.num_heads + work.kv_head * group + head) * dim;
                let q = &work.q[q_start..q_start + dim];
                let mut p = scores::<FMA>(q, &scratch.keys, shape.scale);
                for (lane, p) in p.iter_mut().enumerate() {
                    // A select, not arithmetic: what lies beyond may be another's leftovers.
                    *p = if seen.contains(&lane) { *p } else { f32::NEG_INFINITY };
                }
                let (max, sum) = &mut scratch.softmax[index];
                let largest = max_lanes(p);
                let new_max = if largest > *max { largest } else { *max };
                let correction = exp::<FMA>(*max - new_max);
                for p in &mut p {
                    *p = exp::<FMA>(*p - new_max);
                }
                *sum = fma::<FMA>(*sum, correction, sum_lanes(p));
                *max = new_max;
                let acc = &mut scratch.acc[index * dim..(index + 1) * dim];
                add_values::<FMA>(&p, seen.clone(), &scratch.values, correction, acc);
            }
        }
    }
    for row in 0..item.num_rows {
        let start = ((item.first_row + row) * shape.num_heads + work.kv_head * group) * dim;
        // SAFETY: each row and KV head belongs to one work item.
        let out = unsafe { out.slice(start..start + group * dim) };
        for head in 0..group {
            let index = row * group + head;
            let inverse = 1.0 / scratch.softmax[index].1;
            let acc = &scratch.acc[index * dim..(index + 1) * dim];
            for (out, &acc) in out[head * dim..(head + 1) * dim].iter_mut().zip(acc) {
                *out = acc * inverse;
            }
        }
    }
}

/// `scale · q · K`, K:[head_dim, 16].
#[inline(always)]
fn scores<const FMA: bool>(q: &[f32], keys: &[f32], scale: f32) -> Lanes {
    // Four chains hide the latency of the multiply-add.
    let mut acc = [[0.0; LANES]; 4];
    let keys = keys.as_chunks::<LANES>().0;
    let (q_chunks, q_rest) = q.as_chunks::<4>();
    for (q, k) in q_chunks.iter().zip(keys.as_chunks::<4>().0) {
        for chain in 0..4 {
            axpy_lanes::<FMA>(q[chain], &k[chain], &mut acc[chain]);
        }
    }
    let first_rest = 4 * q_chunks.len();
    for (i, &q) in q_rest.iter().enumerate() {
        axpy_lanes::<FMA>(q, &keys[first_rest + i], &mut acc[i]);
    }
    let mut total = [0.0; LANES];
    for lane in 0..LANES {
        total[lane] = ((acc[0][lane] + acc[1][lane]) + (acc[2][lane] + acc[3][lane])) * scale;
    }
    total
}

/// `acc = correction · acc + Σ_{t in seen} p[t] V[t,:]`, V:[16, head_dim].
#[inline(always)]
fn add_values<const FMA: bool>(
    p: &Lanes,
    seen: std::ops::Range<usize>,
    values: &[f32],
    correction: f32,
    acc: &mut [f32],
) {
    const WIDE: usize = 4 * LANES;
    let dim = acc.len();
    let (wide, rest) = acc.as_chunks_mut::<WIDE>();
    let first_rest = wide.len() * WIDE;
    for (index, acc) in wide.iter_mut().enumerate() {
        let mut local = *acc;
        for value in &mut local {
            *value *= correction;
        }
        for t in seen.clone() {
            let start = t * dim + index * WIDE;
            let v: &[f32; WIDE] = values[start..start + WIDE].try_into().expect("WIDE long");
            for lane in 0..WIDE {
                local[lane] = fma::<FMA>(p[t], v[lane], local[lane]);
            }
        }
        *acc = local;
    }
    for (i, acc) in rest.iter_mut().enumerate() {
        *acc *= correction;
        for t in seen.clone() {
            *acc = fma::<FMA>(p[t], values[t * dim + first_rest + i], *acc);
        }
    }
}

#[cfg(test)]
mod tests;
