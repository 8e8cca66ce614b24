//! Batched-gather LoRA (BGMV/SGMV, Punica and S-LoRA 2023) on the CPU.
//!
//! `y[t,:] += Σ_j s[j] · (x[t,:] · A[j,:]) · B[j,:]`   x:[T,K] s:[r] A:[r,K] B:[r,N] y:[T,N]
//!
//! Rows of one adapter form a *segment*, so that its matrices are read once for all of them.
//! Ranks are exact, each segment and target has its own. *Shrink* computes `t = x A^T · diag(s)` for all
//! segments and targets that share `x`, *expand* adds the product with B.
//!
//! Beside it what else adapters do: gains and shifts, bottlenecks, and rows that they give.

mod bottleneck;
mod expand;
mod given_rows;
mod placed;
mod shrink;
mod vectors;

use crate::Isa;
use crate::lanes::{Bf16, F16};
use crate::pool::{DisjointMut, ThreadPool};
use crate::vector::Stored;
pub use bottleneck::{PlacedBottleneck, apply_bottlenecks};
use expand::expand;
pub use placed::{PlacedAdapter, PlacedEmbedding, PlacedUpdate};
use shrink::shrink;
use std::ops::Range;
pub use vectors::{PlacedVector, PlacedVectors, add_rows, gain_and_shift, scale_rows_into};
use weft_types::Dtype;

/// Rows of a work item.
const ROWS_PER_ITEM: usize = 16;
/// Ranks of a shrink item.
const RANKS_PER_ITEM: usize = 8;
/// Outputs of an expand item.
const OUTPUTS_PER_ITEM: usize = 256;

/// Reused buffers.
#[derive(Debug, Default)]
pub struct LoraScratch {
    /// `x A^T · diag(s)` of each part, `[rows, rank]` each.
    shrunk: Vec<f32>,
    parts: Vec<Part>,
    items: Vec<Item>,
    /// The parts of each segment.
    groups: Vec<Range<usize>>,
}

/// One segment's update of one target. Raw indices, so that the buffers outlive a call.
#[derive(Clone, Debug)]
struct Part {
    segment: usize,
    target: usize,
    rank: usize,
    /// Start of its `[rows, rank]` in `shrunk`.
    start: usize,
}

#[derive(Clone, Debug)]
struct Item {
    part: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// An output that low-rank updates are added to.
#[derive(Debug)]
pub struct LoraTarget<'a> {
    /// `[T, N]`
    pub out: &'a mut [f32],
    /// N
    pub num_outputs: usize,
}

/// Adds to each target the updates of all segments. `update(segment, target)` names them.
///
/// `segments` are disjoint ranges of rows.
///
/// # Panics
/// When an update's shape does not fit.
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
pub fn apply<'a>(
    pool: &ThreadPool,
    isa: Isa,
    x: &[f32],
    num_inputs: usize,
    segments: &[Range<usize>],
    targets: &mut [LoraTarget<'_>],
    update: impl Fn(usize, usize) -> Option<PlacedUpdate<'a>> + Sync,
    scratch: &mut LoraScratch,
) {
    scratch.parts.clear();
    let mut num_shrunk = 0;
    for (segment, rows) in segments.iter().enumerate() {
        for (target, out) in targets.iter().enumerate() {
            let Some(update) = update(segment, target) else { continue };
            let (update, rank) = (update.packed(), update.packed().rank());
            assert_eq!((update.a.cols, update.scales.len()), (num_inputs, rank), "shape of A");
            assert_eq!((update.b.rows, update.b.cols), (rank, out.num_outputs), "shape of B");
            scratch.parts.push(Part { segment, target, rank, start: num_shrunk });
            num_shrunk += rows.len() * rank;
        }
    }
    if scratch.parts.is_empty() {
        return;
    }
    scratch.shrunk.resize(num_shrunk, 0.0);
    let find = |part: &Part| update(part.segment, part.target).expect("found a moment ago");

    let widths: [usize; 3] = std::array::from_fn(|i| targets.get(i).map_or(0, |t| t.num_outputs));
    let mut outs: [Option<DisjointMut<'_, f32>>; 3] = [None; 3];
    for (out, target) in outs.iter_mut().zip(targets.iter_mut()) {
        *out = Some(DisjointMut::new(target.out));
    }
    let LoraScratch { shrunk, parts, items, groups } = scratch;
    let work =
        Batch { isa, x, num_inputs, segments, parts, outs, shrunk: DisjointMut::new(shrunk) };
    if is_even(parts, segments, pool.num_threads(), groups) {
        // Many small segments, as in decode: each is a thread's own from shrink to expand.
        pool.run(groups.len(), 1, |range| {
            let mut indices = groups[range].iter().flat_map(Clone::clone).peekable();
            while let Some(index) = indices.next() {
                let part = &parts[index];
                let rows = 0..segments[part.segment].len();
                let whole = |columns| Item { part: index, rows: rows.clone(), columns: 0..columns };
                let update = find(part);
                expand::prefetch_front(&update.b());
                work.shrink(&update, &whole(part.rank));
                if let Some(&next) = indices.peek() {
                    shrink::prefetch_front(&find(&parts[next]).a());
                }
                work.expand(&update, &whole(widths[part.target]));
            }
        });
        return;
    }
    split(parts, segments, RANKS_PER_ITEM, |part| part.rank, items);
    pool.run(items.len(), items.len().div_ceil(8 * pool.num_threads()), |range| {
        for item in &items[range] {
            work.shrink(&find(&parts[item.part]), item);
        }
    });
    split(parts, segments, OUTPUTS_PER_ITEM, |part| widths[part.target], items);
    pool.run(items.len(), items.len().div_ceil(8 * pool.num_threads()), |range| {
        for item in &items[range] {
            work.expand(&find(&parts[item.part]), item);
        }
    });
}

/// What all items of a call share.
struct Batch<'a> {
    isa: Isa,
    x: &'a [f32],
    num_inputs: usize,
    segments: &'a [Range<usize>],
    parts: &'a [Part],
    outs: [Option<DisjointMut<'a, f32>>; 3],
    shrunk: DisjointMut<'a, f32>,
}

impl Batch<'_> {
    fn shrink(&self, update: &PlacedUpdate<'_>, item: &Item) {
        let part = &self.parts[item.part];
        let x = &self.x[self.segments[part.segment].start * self.num_inputs..];
        let scales = &update.packed().scales;
        shrink(self.isa, &update.a(), scales, x, item, part, self.shrunk);
    }

    /// After all of the part's rows were shrunk.
    fn expand(&self, update: &PlacedUpdate<'_>, item: &Item) {
        let part = &self.parts[item.part];
        let rows = &self.segments[part.segment];
        // SAFETY: the part's shrunk rows are written; nobody writes them any more.
        let t = unsafe { self.shrunk.read(part.start..part.start + rows.len() * part.rank) };
        let out = self.outs[part.target].expect("a part's target exists");
        expand(self.isa, &update.b(), t, rows.start, item, out);
    }
}

/// Gathers the parts of each segment, and tells whether whole segments share out evenly: none has
/// more than a small share of the work of a thread.
fn is_even(
    parts: &[Part],
    segments: &[Range<usize>],
    num_threads: usize,
    groups: &mut Vec<Range<usize>>,
) -> bool {
    groups.clear();
    let (mut largest, mut total) = (0, 0);
    for of_segment in parts.chunk_by(|one, other| one.segment == other.segment) {
        let first = groups.last().map_or(0, |range| range.end);
        groups.push(first..first + of_segment.len());
        let ranks: usize = of_segment.iter().map(|part| part.rank).sum();
        let work = segments[of_segment[0].segment].len() * ranks;
        largest = largest.max(work);
        total += work;
    }
    2 * num_threads * largest <= total
}

/// Adds `scale · A[token] B` to the rows of the embedding. A:[vocab, r] B:[r, hidden]. Tokens beyond A
/// are virtual, and have no update.
///
/// # Panics
/// When shapes do not fit.
pub fn add_embedding(
    isa: Isa,
    update: &PlacedEmbedding<'_>,
    tokens: &[u32],
    out: &mut [f32],
    scratch: &mut LoraScratch,
) {
    let (a, b) = (update.a(), update.b());
    let (rank, hidden) = (b.rows, b.cols);
    assert_eq!((a.cols, out.len()), (rank, tokens.len() * hidden));
    let t = &mut scratch.shrunk;
    t.clear();
    for &token in tokens {
        if token as usize >= a.rows {
            t.extend(std::iter::repeat_n(0.0, rank));
            continue;
        }
        let row = a.row(token as usize);
        t.extend((0..rank).map(|j| update.scale() * element(a.dtype, row, j)));
    }
    let item = Item { part: 0, rows: 0..tokens.len(), columns: 0..hidden };
    expand(isa, &b, t, 0, &item, DisjointMut::new(out));
}

/// Cuts each part into items of at most [`ROWS_PER_ITEM`] rows and `step` columns.
fn split(
    parts: &[Part],
    segments: &[Range<usize>],
    step: usize,
    num_columns: impl Fn(&Part) -> usize,
    items: &mut Vec<Item>,
) {
    items.clear();
    for (index, part) in parts.iter().enumerate() {
        let (num_rows, num_columns) = (segments[part.segment].len(), num_columns(part));
        for row in (0..num_rows).step_by(ROWS_PER_ITEM) {
            for column in (0..num_columns).step_by(step) {
                items.push(Item {
                    part: index,
                    rows: row..(row + ROWS_PER_ITEM).min(num_rows),
                    columns: column..(column + step).min(num_columns),
                });
            }
        }
    }
}

/// The `index`-th element of a row.
fn element(dtype: Dtype, row: &[u8], index: usize) -> f32 {
    let bytes = &row[index * dtype.size()..];
    match dtype {
        Dtype::F32 => f32::at(bytes),
        Dtype::F16 => F16::at(bytes),
        Dtype::Bf16 => Bf16::at(bytes),
        Dtype::I8 => i8::at(bytes),
    }
}

#[cfg(test)]
mod tests;
