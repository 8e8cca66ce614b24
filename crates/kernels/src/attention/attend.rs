//! One work item: a few rows of a sequence, all query heads of one KV head.
//!
//! Up to four query rows share each load of a key or value. A row's operations and their order do
//! not depend on which rows those are.

use super::{Scratch, Work};
use crate::kv::{BLOCK_SIZE, KvDtype, KvPage};
use crate::lanes::{Bf16, F16, LANES};
use crate::pool::DisjointMut;
use crate::vector::{Stored, Vector, multivector, prefetch};
use std::ops::Range;

/// Partial sums of a score: enough to hide the latency of the multiply-add where one row is alone.
const CHAINS: usize = 2;

multivector! {
    pub(super) fn attend<'a>(work: Work<'a>, scratch: &mut Scratch, out: DisjointMut<'a, f32>) = attend_body
}

#[inline(always)]
fn attend_body<V: Vector>(work: Work<'_>, scratch: &mut Scratch, out: DisjointMut<'_, f32>) {
    match work.cache.dtype() {
        KvDtype::F32 => work.attend::<f32, V>(scratch, out),
        KvDtype::F16 => work.attend::<F16, V>(scratch, out),
        KvDtype::Bf16 => work.attend::<Bf16, V>(scratch, out),
        KvDtype::Int8 => work.attend::<i8, V>(scratch, out),
    }
}

/// Keys and values of sixteen positions, and which of them a row sees.
#[derive(Clone)]
struct Page<'a> {
    stored: KvPage<'a>,
    /// Keys and values of the page that comes next: fetched while these are multiplied. Empty, if they are.
    next: (&'a [u8], &'a [u8]),
    seen: Range<usize>,
}

impl Work<'_> {
    /// Query heads of the KV head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    /// Keys and values of a page of the sequence.
    #[inline(always)]
    fn page(&self, page: usize) -> KvPage<'_> {
        let block = self.block_tables[self.item.first_block + page];
        self.cache.page(block, self.layer, self.kv_head)
    }

    /// The first position that a row at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Start of a row's heads of this KV head in q and in the output.
    #[inline(always)]
    fn row_start(&self, row: usize) -> usize {
        let head = (self.item.first_row + row) * self.shape.num_heads + self.kv_head * self.group();
        head * self.shape.head_dim
    }

    #[inline(always)]
    fn attend<T: Stored, V: Vector>(self, scratch: &mut Scratch, out: DisjointMut<'_, f32>) {
        let (item, group, dim) = (self.item, self.group(), self.shape.head_dim);
        scratch.acc.clear();
        scratch.acc.resize(item.num_rows * group * dim, 0.0);
        scratch.softmax.clear();
        scratch.softmax.resize(item.num_rows * group, (f32::NEG_INFINITY, 0.0));

        let last_position = item.position + item.num_rows - 1;
        let last_page = last_position / BLOCK_SIZE;
        for page in self.first_seen(item.position) / BLOCK_SIZE..=last_page {
            let stored = self.page(page);
            // Pages lie anywhere: the processor cannot know which comes next.
            let mut next = (&[][..], &[][..]);
            if page < last_page {
                let page = self.page(page + 1);
                next = (page.keys, page.values);
            }
            let mut row = 0;
            while row < item.num_rows {
                let seen = self.seen(row, page);
                // Rows that see the same of this page, such as all of it, go together.
                let first = row;
                row += 1;
                while row < item.num_rows && self.seen(row, page) == seen {
                    row += 1;
                }
                if !seen.is_empty() {
                    let page = Page { stored, next, seen };
                    self.queries::<T, V>(page, first * group..row * group, scratch);
                    next = (&[], &[]);
                }
            }
        }
        for row in 0..item.num_rows {
            let start = self.row_start(row);
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

    /// The positions of a page that a row sees, counted from the page's first.
    #[inline(always)]
    fn seen(&self, row: usize, page: usize) -> Range<usize> {
        let (position, first) = (self.item.position + row, page * BLOCK_SIZE);
        let start = self.first_seen(position).saturating_sub(first);
        let end = (position + 1).saturating_sub(first).min(BLOCK_SIZE);
        if start < end { start..end } else { 0..0 }
    }

    /// Brings the queries `indices`, row by row and head by head, up to date with a page.
    #[inline(always)]
    fn queries<T: Stored, V: Vector>(
        &self,
        mut page: Page<'_>,
        indices: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let mut index = indices.start;
        while index < indices.end {
            let num_left = indices.end - index;
            if V::BLOCK == 4 && num_left >= 4 {
                self.update::<T, V, 4>(&page, index, scratch);
                index += 4;
            } else if V::BLOCK == 4 && num_left == 3 {
                self.update::<T, V, 3>(&page, index, scratch);
                index += 3;
            } else if num_left >= 2 {
                self.update::<T, V, 2>(&page, index, scratch);
                index += 2;
            } else {
                self.update::<T, V, 1>(&page, index, scratch);
                index += 1;
            }
            page.next = (&[], &[]);
        }
    }

    #[inline(always)]
    fn update<T: Stored, V: Vector, const N: usize>(
        &self,
        page: &Page<'_>,
        first: usize,
        scratch: &mut Scratch,
    ) {
        let dim = self.shape.head_dim;
        let mut q: [&[f32]; N] = [&[]; N];
        for i in 0..N {
            let (row, head) = ((first + i) / self.group(), (first + i) % self.group());
            q[i] = &self.q[self.row_start(row) + head * dim..][..dim];
        }
        let mut p = scores::<T, V, N>(&q, page.stored.keys, page.next.0);
        if let Some([scales, _]) = page.stored.scales {
            scale::<V, N>(&mut p, scales);
        }
        let mut corrections = [0.0; N];
        for i in 0..N {
            for (lane, p) in p[i].iter_mut().enumerate() {
                // A select, not arithmetic: what lies beyond may be another's leftovers.
                let score = *p * self.shape.scale;
                *p = if page.seen.contains(&lane) { score } else { f32::NEG_INFINITY };
            }
            let (max, sum) = &mut scratch.softmax[first + i];
            let largest = V::load(&p[i]).max();
            let new_max = if largest > *max { largest } else { *max };
            corrections[i] = V::exp(*max - new_max);
            for p in &mut p[i] {
                *p = V::exp(*p - new_max);
            }
            *sum = V::scalar_mul_add(*sum, corrections[i], V::load(&p[i]).sum());
            *max = new_max;
        }
        if let Some([_, scales]) = page.stored.scales {
            // Of positions that are not seen this is anything, and not read.
            scale::<V, N>(&mut p, scales);
        }
        let acc = &mut scratch.acc[first * dim..(first + N) * dim];
        let mut column = 0;
        while column + V::BLOCK * LANES <= dim {
            match V::BLOCK {
                4 => add_values::<T, V, N, 4>(&p, page, &corrections, acc, column),
                _ => add_values::<T, V, N, 2>(&p, page, &corrections, acc, column),
            }
            column += V::BLOCK * LANES;
        }
        while column + LANES <= dim {
            add_values::<T, V, N, 1>(&p, page, &corrections, acc, column);
            column += LANES;
        }
        for i in 0..N {
            for column in column..dim {
                let acc = &mut acc[i * dim + column];
                *acc *= corrections[i];
                for t in page.seen.clone() {
                    let value = T::at(&page.stored.values[(t * dim + column) * T::SIZE..]);
                    *acc = V::scalar_mul_add(p[i][t], value, *acc);
                }
            }
        }
    }
}

/// Multiplies what belongs to each position with the position's scale.
#[inline(always)]
fn scale<V: Vector, const N: usize>(p: &mut [[f32; LANES]; N], scales: &[u8; 4 * LANES]) {
    let scales = V::load_f32(scales);
    for p in p {
        *p = V::load(p).mul(scales).to_lanes();
    }
}

/// `q[i] · K`, K:[head_dim, 16].
#[inline(always)]
fn scores<T: Stored, V: Vector, const N: usize>(
    q: &[&[f32]; N],
    keys: &[u8],
    next: &[u8],
) -> [[f32; LANES]; N] {
    let row_bytes = LANES * T::SIZE;
    let mut sums = [[V::splat(0.0); CHAINS]; N];
    let dim = q[0].len();
    let mut k = 0;
    while k + CHAINS <= dim {
        if !next.is_empty() {
            prefetch(next, k * row_bytes);
        }
        for chain in 0..CHAINS {
            let keys = T::load::<V>(&keys[(k + chain) * row_bytes..]);
            for i in 0..N {
                sums[i][chain] = V::splat(q[i][k + chain]).mul_add(keys, sums[i][chain]);
            }
        }
        k += CHAINS;
    }
    if k < dim {
        let keys = T::load::<V>(&keys[k * row_bytes..]);
        for i in 0..N {
            sums[i][0] = V::splat(q[i][k]).mul_add(keys, sums[i][0]);
        }
    }
    let mut scores = [[0.0; LANES]; N];
    for i in 0..N {
        let (even, odd) = (sums[i][0].to_lanes(), sums[i][1].to_lanes());
        for lane in 0..LANES {
            scores[i][lane] = even[lane] + odd[lane];
        }
    }
    scores
}

/// `acc[i] = corrections[i] · acc[i] + Σ_{t seen} p[i][t] V[t,:]` in `16 WIDTH` columns,
/// V:[16, head_dim].
#[inline(always)]
fn add_values<T: Stored, V: Vector, const N: usize, const WIDTH: usize>(
    p: &[[f32; LANES]; N],
    page: &Page<'_>,
    corrections: &[f32; N],
    acc: &mut [f32],
    column: usize,
) {
    let dim = acc.len() / N;
    let mut sums = [[V::splat(0.0); WIDTH]; N];
    for i in 0..N {
        let correction = V::splat(corrections[i]);
        for w in 0..WIDTH {
            let old = acc[i * dim + column + w * LANES..].first_chunk().expect("whole lanes");
            sums[i][w] = V::load(old).mul_add(correction, V::splat(0.0));
        }
    }
    for t in page.seen.clone() {
        let row = &page.stored.values[(t * dim + column) * T::SIZE..];
        if !page.next.1.is_empty() {
            for line in (0..WIDTH * LANES * T::SIZE).step_by(64) {
                prefetch(page.next.1, (t * dim + column) * T::SIZE + line);
            }
        }
        let mut values = [V::splat(0.0); WIDTH];
        for w in 0..WIDTH {
            values[w] = T::load::<V>(&row[w * LANES * T::SIZE..]);
        }
        for i in 0..N {
            let p = V::splat(p[i][t]);
            for w in 0..WIDTH {
                sums[i][w] = p.mul_add(values[w], sums[i][w]);
            }
        }
    }
    for i in 0..N {
        for w in 0..WIDTH {
            let out = &mut acc[i * dim + column + w * LANES..][..LANES];
            out.copy_from_slice(&sums[i][w].to_lanes());
        }
    }
}
