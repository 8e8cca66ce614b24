//! Against a double-precision reference over the whole context, and against itself chunked.

use super::*;
use crate::arena::Arena;
use crate::kv::{BLOCK_SIZE, KvDtype, KvShape, KvSlot};

struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    len: usize,
}

fn case(
    len: usize,
    head_dim: usize,
    num_heads: usize,
    num_kv_heads: usize,
    window: Option<usize>,
) -> Case {
    let mut state = 99u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut random = |n: usize| (0..n).map(|_| next() * 2.0).collect::<Vec<f32>>();
    let scale = 1.0 / (head_dim as f32).sqrt();
    Case {
        shape: AttentionShape { num_heads, num_kv_heads, head_dim, scale, window },
        q: random(len * num_heads * head_dim),
        k: random(len * num_kv_heads * head_dim),
        v: random(len * num_kv_heads * head_dim),
        len,
    }
}

impl Case {
    /// A cache whose blocks are in reverse order and full of NaN where nothing was stored.
    fn cache(&self, dtype: KvDtype) -> (KvCache, Vec<BlockId>) {
        let shape = KvShape {
            num_layers: 2,
            num_kv_heads: self.shape.num_kv_heads,
            head_dim: self.shape.head_dim,
        };
        let num_blocks = self.len.div_ceil(BLOCK_SIZE);
        let blocks: Vec<BlockId> = (0..num_blocks as u32).rev().map(BlockId).collect();
        // A chunk may be larger than a block.
        let chunk_bytes = shape.block_bytes(dtype).next_multiple_of(64) + 64;
        let mut cache = KvCache::new(shape, dtype, Arena::new(num_blocks, chunk_bytes));
        let pool = ThreadPool::new(2);
        let slot =
            |t: usize| KvSlot { block: blocks[t / BLOCK_SIZE], offset: (t % BLOCK_SIZE) as u32 };
        let row = shape.num_kv_heads * shape.head_dim;
        let poison = vec![f32::NAN; row];
        for t in 0..num_blocks * BLOCK_SIZE {
            cache.store(&pool, 1, &poison, &poison, &[slot(t)]);
        }
        let slots: Vec<KvSlot> = (0..self.len).map(slot).collect();
        cache.store(&pool, 1, &self.k, &self.v, &slots);
        (cache, blocks)
    }

    fn run(&self, isa: Isa, cache: &KvCache, blocks: &[BlockId], chunk: usize) -> Vec<f32> {
        let items: Vec<AttentionItem> = (0..self.len)
            .step_by(chunk)
            .map(|start| AttentionItem {
                first_row: start,
                num_rows: chunk.min(self.len - start),
                position: start,
                first_block: 0,
            })
            .collect();
        let mut out = vec![0.0; self.q.len()];
        let pool = ThreadPool::new(2);
        attention_into(&pool, isa, &self.shape, cache, 1, &items, blocks, &self.q, &mut out);
        out
    }

    fn reference(&self) -> Vec<f64> {
        let AttentionShape { num_heads, num_kv_heads, head_dim, scale, window } = self.shape;
        let mut out = Vec::new();
        for t in 0..self.len {
            for head in 0..num_heads {
                let kv = head / (num_heads / num_kv_heads);
                let q = &self.q[(t * num_heads + head) * head_dim..][..head_dim];
                let first = window.map_or(0, |window| (t + 1).saturating_sub(window));
                let row = |data: &[f32], j: usize| -> Vec<f64> {
                    data[(j * num_kv_heads + kv) * head_dim..][..head_dim]
                        .iter()
                        .map(|&x| f64::from(x))
                        .collect()
                };
                let weights: Vec<f64> = (first..=t)
                    .map(|j| {
                        let dot: f64 =
                            row(&self.k, j).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
                        (dot * f64::from(scale)).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    out.push(
                        (first..=t).zip(&weights).map(|(j, w)| w * row(&self.v, j)[i]).sum::<f64>()
                            / total,
                    );
                }
            }
        }
        out
    }
}

#[test]
fn matches_the_reference_and_ignores_what_blocks_held_before() {
    for (len, head_dim, num_heads, num_kv_heads, window) in [
        (1, 16, 1, 1, None),
        (17, 64, 3, 1, None),
        (50, 16, 4, 2, Some(8)),
        (33, 80, 2, 2, Some(20)),
        (40, 10, 6, 2, None),
    ] {
        let case = case(len, head_dim, num_heads, num_kv_heads, window);
        let want = case.reference();
        for (dtype, tolerance) in [
            (KvDtype::F32, 1e-5),
            (KvDtype::F16, 3e-3),
            (KvDtype::Bf16, 3e-2),
            (KvDtype::Int8, 5e-2),
        ] {
            let (cache, blocks) = case.cache(dtype);
            for isa in Isa::available() {
                for (got, want) in case.run(isa, &cache, &blocks, 5).iter().zip(&want) {
                    assert!(
                        (f64::from(*got) - want).abs() < tolerance,
                        "{dtype:?} {isa} {got} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    let case = case(70, 64, 3, 1, None);
    for dtype in [KvDtype::F16, KvDtype::Int8] {
        let (cache, blocks) = case.cache(dtype);
        for isa in Isa::available() {
            let whole = case.run(isa, &cache, &blocks, 8);
            for chunk in [1, 3, 7] {
                assert_eq!(case.run(isa, &cache, &blocks, chunk), whole);
            }
        }
    }
}
