//! Batched-gather LoRA (BGMV/SGMV, Punica and S-LoRA 2023) on the CPU.
//!
//! `y[t,:] += s · (x[t,:] A^T) B`   x:[T,K] A:[r,K] B:[r,N] y:[T,N]
//!
//! Rows of one adapter form a *segment*, so that its matrices are read once for all of them.
//! Ranks are exact, each segment and target has its own. *Shrink* computes `s · x A^T` for all
//! segments and targets that share `x`, *expand* adds the product with B.

use crate::Isa;
use crate::isa::multiversion;
use crate::lanes::{Bf16, Element, F16, LANES, Lanes, fma, fma_lanes, sum_lanes};
use crate::pool::{DisjointMut, ThreadPool};
use std::ops::Range;
use weft_types::{AdapterTensor, Dtype, LowRankUpdate};

/// Rows of a work item.
const ROWS_PER_ITEM: usize = 16;
/// Ranks of a shrink item.
const RANKS_PER_ITEM: usize = 8;
/// Outputs of an expand item.
const OUTPUTS_PER_ITEM: usize = 256;

/// Reused buffers.
#[derive(Debug, Default)]
pub struct LoraScratch {
    /// `s · x A^T` of each part, `[rows, rank]` each.
    shrunk: Vec<f32>,
    parts: Vec<Part>,
    items: Vec<Item>,
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
    update: impl Fn(usize, usize) -> Option<&'a LowRankUpdate> + Sync,
    scratch: &mut LoraScratch,
) {
    scratch.parts.clear();
    let mut num_shrunk = 0;
    for (segment, rows) in segments.iter().enumerate() {
        for (target, out) in targets.iter().enumerate() {
            let Some(update) = update(segment, target) else { continue };
            let rank = update.rank();
            assert_eq!((update.a.cols, update.b.rows), (num_inputs, rank), "shape of A");
            assert_eq!(update.b.cols, out.num_outputs, "shape of B");
            scratch.parts.push(Part { segment, target, rank, start: num_shrunk });
            num_shrunk += rows.len() * rank;
        }
    }
    if scratch.parts.is_empty() {
        return;
    }
    scratch.shrunk.resize(num_shrunk, 0.0);
    let find = |part: &Part| update(part.segment, part.target).expect("found a moment ago");

    split(&scratch.parts, segments, RANKS_PER_ITEM, |part| part.rank, &mut scratch.items);
    let shrunk = DisjointMut::new(&mut scratch.shrunk);
    let (parts, items) = (&scratch.parts, &scratch.items);
    pool.run(items.len(), items.len().div_ceil(8 * pool.num_threads()), |range| {
        for item in &items[range] {
            let part = &parts[item.part];
            let update = find(part);
            shrink(isa, update, x, segments[part.segment].start, item, part, shrunk);
        }
    });

    let widths: [usize; 3] = std::array::from_fn(|i| targets.get(i).map_or(0, |t| t.num_outputs));
    let width = |part: &Part| widths[part.target];
    split(&scratch.parts, segments, OUTPUTS_PER_ITEM, width, &mut scratch.items);
    let mut outs: [Option<DisjointMut<'_, f32>>; 3] = [None; 3];
    for (out, target) in outs.iter_mut().zip(targets) {
        *out = Some(DisjointMut::new(target.out));
    }
    let (parts, items, shrunk) = (&scratch.parts, &scratch.items, &scratch.shrunk);
    pool.run(items.len(), items.len().div_ceil(8 * pool.num_threads()), |range| {
        for item in &items[range] {
            let part = &parts[item.part];
            let num_rows = segments[part.segment].len();
            let t = &shrunk[part.start..part.start + num_rows * part.rank];
            let out = outs[part.target].expect("set above");
            expand(isa, &find(part).b, t, segments[part.segment].start, item, out);
        }
    });
}

/// Adds `scale · A[token] B` to the rows of the embedding. A:[vocab, r] B:[r, hidden]
///
/// # Panics
/// When shapes do not fit.
pub fn add_embedding(
    isa: Isa,
    update: &weft_types::EmbeddingUpdate,
    tokens: &[u32],
    out: &mut [f32],
) {
    let (rank, hidden) = (update.b.rows, update.b.cols);
    assert_eq!((update.a.cols, out.len()), (rank, tokens.len() * hidden));
    let mut t = Vec::with_capacity(tokens.len() * rank);
    for &token in tokens {
        let row = (0..rank).map(|j| update.scale * element(&update.a, token as usize * rank + j));
        t.extend(row);
    }
    let item = Item { part: 0, rows: 0..tokens.len(), columns: 0..hidden };
    expand(isa, &update.b, &t, 0, &item, DisjointMut::new(out));
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

fn element(tensor: &AdapterTensor, index: usize) -> f32 {
    let bytes = &tensor.data[index * tensor.dtype.size()..][..tensor.dtype.size()];
    match tensor.dtype {
        Dtype::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Dtype::F16 => F16(u16::from_le_bytes([bytes[0], bytes[1]])).to_f32(),
        Dtype::Bf16 => Bf16(u16::from_le_bytes([bytes[0], bytes[1]])).to_f32(),
    }
}

/// Little-endian elements read from unaligned bytes.
trait Packed {
    const SIZE: usize;
    fn at(bytes: &[u8], index: usize) -> f32;
}
impl Packed for f32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn at(bytes: &[u8], index: usize) -> f32 {
        let b = &bytes[4 * index..4 * index + 4];
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}
impl Packed for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn at(bytes: &[u8], index: usize) -> f32 {
        F16(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])).to_f32()
    }
}
impl Packed for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn at(bytes: &[u8], index: usize) -> f32 {
        Bf16(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])).to_f32()
    }
}

#[inline(always)]
fn load<T: Packed>(bytes: &[u8]) -> Lanes {
    let bytes = &bytes[..LANES * T::SIZE];
    std::array::from_fn(|lane| T::at(bytes, lane))
}

multiversion! {
    fn shrink<'a>(update: &LowRankUpdate, x: &[f32], first_row: usize, item: &Item, part: &Part, shrunk: DisjointMut<'a, f32>)
        = shrink_body
}

#[inline(always)]
fn shrink_body<const FMA: bool>(
    update: &LowRankUpdate,
    x: &[f32],
    first_row: usize,
    item: &Item,
    part: &Part,
    shrunk: DisjointMut<'_, f32>,
) {
    match update.a.dtype {
        Dtype::F32 => shrink_item::<f32, FMA>(update, x, first_row, item, part, shrunk),
        Dtype::F16 => shrink_item::<F16, FMA>(update, x, first_row, item, part, shrunk),
        Dtype::Bf16 => shrink_item::<Bf16, FMA>(update, x, first_row, item, part, shrunk),
    }
}

#[inline(always)]
fn shrink_item<T: Packed, const FMA: bool>(
    update: &LowRankUpdate,
    x: &[f32],
    first_row: usize,
    item: &Item,
    part: &Part,
    shrunk: DisjointMut<'_, f32>,
) {
    let num_inputs = update.a.cols;
    let row_bytes = num_inputs * T::SIZE;
    for row in item.rows.clone() {
        let x = &x[(first_row + row) * num_inputs..][..num_inputs];
        let start = part.start + row * part.rank;
        // SAFETY: items are disjoint in rows and ranks.
        let out = unsafe { shrunk.slice(start + item.columns.start..start + item.columns.end) };
        let a = &update.a.data[item.columns.start * row_bytes..item.columns.end * row_bytes];
        let mut rank = 0;
        while rank + 4 <= out.len() {
            let dots = dots::<T, FMA, 4>(x, &a[rank * row_bytes..], row_bytes);
            for i in 0..4 {
                out[rank + i] = update.scale * dots[i];
            }
            rank += 4;
        }
        while rank < out.len() {
            out[rank] = update.scale * dots::<T, FMA, 1>(x, &a[rank * row_bytes..], row_bytes)[0];
            rank += 1;
        }
    }
}

/// Products of `x` with `ROWS` rows of A: lanes over inputs, then a fixed tree.
#[inline(always)]
fn dots<T: Packed, const FMA: bool, const ROWS: usize>(
    x: &[f32],
    a: &[u8],
    row_bytes: usize,
) -> [f32; ROWS] {
    let mut acc = [[0.0; LANES]; ROWS];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for (index, x) in chunks.iter().enumerate() {
        for row in 0..ROWS {
            let a = load::<T>(&a[row * row_bytes + index * LANES * T::SIZE..]);
            fma_lanes::<FMA>(x, &a, &mut acc[row]);
        }
    }
    let first_rest = chunks.len() * LANES;
    for (lane, &x) in rest.iter().enumerate() {
        for row in 0..ROWS {
            let a = T::at(&a[row * row_bytes..], first_rest + lane);
            acc[row][lane] = fma::<FMA>(x, a, acc[row][lane]);
        }
    }
    acc.map(sum_lanes)
}

multiversion! {
    fn expand<'a>(b: &AdapterTensor, t: &[f32], first_row: usize, item: &Item, out: DisjointMut<'a, f32>)
        = expand_body
}

#[inline(always)]
fn expand_body<const FMA: bool>(
    b: &AdapterTensor,
    t: &[f32],
    first_row: usize,
    item: &Item,
    out: DisjointMut<'_, f32>,
) {
    match b.dtype {
        Dtype::F32 => expand_item::<f32, FMA>(b, t, first_row, item, out),
        Dtype::F16 => expand_item::<F16, FMA>(b, t, first_row, item, out),
        Dtype::Bf16 => expand_item::<Bf16, FMA>(b, t, first_row, item, out),
    }
}

#[inline(always)]
fn expand_item<T: Packed, const FMA: bool>(
    b: &AdapterTensor,
    t: &[f32],
    first_row: usize,
    item: &Item,
    out: DisjointMut<'_, f32>,
) {
    let (rank, num_outputs) = (b.rows, b.cols);
    for row in item.rows.clone() {
        let t = &t[row * rank..(row + 1) * rank];
        let start = (first_row + row) * num_outputs;
        // SAFETY: items are disjoint in rows and columns, segments in rows.
        let out = unsafe { out.slice(start + item.columns.start..start + item.columns.end) };
        let mut column = 0;
        while column + 4 * LANES <= out.len() {
            expand_columns::<T, FMA, 4>(b, t, item.columns.start + column, &mut out[column..]);
            column += 4 * LANES;
        }
        while column + LANES <= out.len() {
            expand_columns::<T, FMA, 1>(b, t, item.columns.start + column, &mut out[column..]);
            column += LANES;
        }
        for (i, out) in out.iter_mut().enumerate().skip(column) {
            let mut acc = 0.0;
            for (j, &t) in t.iter().enumerate() {
                let b = T::at(&b.data, j * num_outputs + item.columns.start + i);
                acc = fma::<FMA>(t, b, acc);
            }
            *out += acc;
        }
    }
}

/// `out[..16 W] += t B[:, column..]`
#[inline(always)]
fn expand_columns<T: Packed, const FMA: bool, const W: usize>(
    b: &AdapterTensor,
    t: &[f32],
    column: usize,
    out: &mut [f32],
) {
    let mut acc = [[0.0; LANES]; W];
    for (j, &t) in t.iter().enumerate() {
        let b = &b.data[(j * b.cols + column) * T::SIZE..];
        for (w, acc) in acc.iter_mut().enumerate() {
            let b = load::<T>(&b[w * LANES * T::SIZE..]);
            for lane in 0..LANES {
                acc[lane] = fma::<FMA>(t, b[lane], acc[lane]);
            }
        }
    }
    for (out, acc) in out.chunks_exact_mut(LANES).zip(&acc) {
        for lane in 0..LANES {
            out[lane] += acc[lane];
        }
    }
}

#[cfg(test)]
mod tests;
