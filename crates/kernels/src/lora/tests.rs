//! Against a double-precision reference over popularity × rank × dtype, and against itself alone.

use super::*;
use crate::arena::Arena;
use half::{bf16, f16};
use weft_types::{
    AdapterTensor, BlockId, ContentHash, EmbeddingUpdate, LowRankUpdate, LoweredAdapter,
    PackedAdapter, Site,
};

pub(super) const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];
/// Larger than any matrix here.
const ONE_CHUNK: usize = 1 << 22;

pub(super) fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub(super) fn tensor(
    dtype: Dtype,
    rows: usize,
    cols: usize,
    next: &mut impl FnMut() -> f32,
) -> AdapterTensor {
    let mut data = Vec::new();
    for _ in 0..rows * cols {
        match dtype {
            Dtype::F32 => data.extend(next().to_le_bytes()),
            Dtype::F16 => data.extend(f16::from_f32(next()).to_le_bytes()),
            Dtype::Bf16 => data.extend(bf16::from_f32(next()).to_le_bytes()),
            Dtype::I8 => data.push((next() * 127.0) as i8 as u8),
        }
    }
    let row_scales = (dtype == Dtype::I8).then(|| (0..rows).map(|_| next() / 127.0).collect());
    AdapterTensor { dtype, rows, cols, data: data.into(), row_scales }
}

/// The value of an element, row scale included.
pub(super) fn value(tensor: &AdapterTensor, row: usize, col: usize) -> f64 {
    let row_bytes = tensor.cols * tensor.dtype.size();
    let scale = tensor.row_scales.as_ref().map_or(1.0, |scales| scales[row]);
    let stored = element(tensor.dtype, &tensor.data[row * row_bytes..][..row_bytes], col);
    f64::from(scale) * f64::from(stored)
}

fn update(
    dtype: Dtype,
    rank: usize,
    num_inputs: usize,
    num_outputs: usize,
    seed: u32,
) -> LowRankUpdate {
    let mut next = noise(seed);
    let a = tensor(dtype, rank, num_inputs, &mut next);
    let b = tensor(dtype, rank, num_outputs, &mut next);
    LowRankUpdate { site: Site::LmHead, scale: 0.5 + seed as f32 * 0.1, a, b }
}

/// An adapter in chunks of `chunk_bytes`, the first page in the last chunk and so on.
fn place(
    update: Option<&LowRankUpdate>,
    embedding: Option<&EmbeddingUpdate>,
    chunk_bytes: usize,
) -> PlacedAdapter {
    let lowered = LoweredAdapter {
        content_hash: ContentHash([0; 32]),
        low_rank: update.into_iter().cloned().collect(),
        embedding: embedding.cloned(),
        ..LoweredAdapter::default()
    };
    place_lowered(&lowered, chunk_bytes)
}

pub(super) fn place_lowered(lowered: &LoweredAdapter, chunk_bytes: usize) -> PlacedAdapter {
    let packed = PackedAdapter::pack(lowered, chunk_bytes).unwrap();
    let chunks: Vec<BlockId> = (0..packed.num_chunks as u32).rev().map(BlockId).collect();
    let lent = Arena::new(chunks.len(), chunk_bytes).lend(&chunks);
    PlacedAdapter::copy(&packed, lent)
}

fn reference(x: &[f32], update: &LowRankUpdate) -> Vec<f64> {
    let (rank, k, n) = (update.rank(), update.a.cols, update.b.cols);
    let t: Vec<f64> =
        (0..rank).map(|j| (0..k).map(|i| f64::from(x[i]) * value(&update.a, j, i)).sum()).collect();
    (0..n)
        .map(|c| {
            let sum: f64 = (0..rank).map(|j| t[j] * value(&update.b, j, c)).sum();
            f64::from(update.scale) * sum
        })
        .collect()
}

/// Which adapter each of twelve rows uses, sorted as the runner sorts them.
fn popularity(name: &str) -> Vec<usize> {
    match name {
        "identical" => vec![0; 12],
        "distinct" => (0..12).collect(),
        "uniform" => (0..12).map(|row| row / 3).collect(),
        "zipf" => vec![0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3],
        _ => vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }
}

fn segments_of(adapters: &[usize]) -> (Vec<Range<usize>>, Vec<usize>) {
    let mut segments: Vec<Range<usize>> = Vec::new();
    let mut owners = Vec::new();
    for (row, &adapter) in adapters.iter().enumerate() {
        if owners.last() == Some(&adapter) {
            segments.last_mut().unwrap().end = row + 1;
        } else {
            segments.push(row..row + 1);
            owners.push(adapter);
        }
    }
    (segments, owners)
}

#[test]
fn matches_the_reference_over_popularity_rank_and_dtype() {
    let pool = ThreadPool::new(2);
    let (k, widths) = (70, [300, 33]);
    let mut next = noise(1);
    let x: Vec<f32> = (0..12 * k).map(|_| next()).collect();
    for name in ["identical", "distinct", "uniform", "zipf", "skewed"] {
        let (segments, owners) = segments_of(&popularity(name));
        for rank in [1, 3, 8, 16, 64, 256] {
            for dtype in DTYPES {
                // Adapter 2 leaves the second target alone; ranks differ between adapters.
                let updates: Vec<[Option<LowRankUpdate>; 2]> = (0..12)
                    .map(|a| {
                        let r = (rank + a).min(512);
                        [
                            Some(update(dtype, r, k, widths[0], a as u32)),
                            (a != 2).then(|| update(dtype, rank, k, widths[1], 50 + a as u32)),
                        ]
                    })
                    .collect();
                let placed: Vec<[Option<PlacedAdapter>; 2]> = updates
                    .iter()
                    .map(|updates| {
                        updates.each_ref().map(|update| {
                            update.as_ref().map(|update| place(Some(update), None, ONE_CHUNK))
                        })
                    })
                    .collect();
                for isa in Isa::available() {
                    let mut y = widths.map(|n| vec![1.0; 12 * n]);
                    let [y0, y1] = &mut y;
                    let mut targets = [
                        LoraTarget { out: y0, num_outputs: widths[0] },
                        LoraTarget { out: y1, num_outputs: widths[1] },
                    ];
                    let find = |segment: usize, target: usize| {
                        placed[owners[segment]][target].as_ref()?.at(Site::LmHead)
                    };
                    apply(
                        &pool,
                        isa,
                        &x,
                        k,
                        &segments,
                        &mut targets,
                        find,
                        &mut LoraScratch::default(),
                    );
                    for (segment, rows) in segments.iter().enumerate() {
                        for row in rows.clone() {
                            for (target, n) in widths.iter().enumerate() {
                                let got = &y[target][row * n..(row + 1) * n];
                                let want = updates[owners[segment]][target]
                                    .as_ref()
                                    .map_or(vec![0.0; *n], |u| {
                                        reference(&x[row * k..(row + 1) * k], u)
                                    });
                                for (got, want) in got.iter().zip(want) {
                                    let error = (f64::from(*got) - 1.0 - want).abs();
                                    assert!(
                                        error < 2e-4 * (rank as f64).sqrt() * 4.0,
                                        "{name} {rank} {isa} {got} {want}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All rows in one segment.
fn run(isa: Isa, adapter: &PlacedAdapter, x: &[f32], k: usize, num_threads: usize) -> Vec<f32> {
    let num_outputs = adapter.at(Site::LmHead).unwrap().packed().b.cols;
    let num_rows = x.len() / k;
    let mut y = vec![0.25; num_rows * num_outputs];
    let mut targets = [LoraTarget { out: &mut y, num_outputs }];
    let pool = ThreadPool::new(num_threads);
    let (all, find) = (0..num_rows, |_, _| adapter.at(Site::LmHead));
    apply(&pool, isa, x, k, &[all], &mut targets, find, &mut LoraScratch::default());
    y
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_long_segment() {
    let (k, n, num_rows) = (96, 200, 37);
    let mut next = noise(2);
    let x: Vec<f32> = (0..num_rows * k).map(|_| next()).collect();
    let adapter = place(Some(&update(Dtype::Bf16, 11, k, n, 4)), None, ONE_CHUNK);
    for isa in Isa::available() {
        let together = run(isa, &adapter, &x, k, 2);
        for (x, want) in x.chunks_exact(k).zip(together.chunks_exact(n)) {
            assert_eq!(run(isa, &adapter, x, k, 1), want);
        }
    }
}

#[test]
fn where_a_matrix_is_split_does_not_change_a_bit() {
    let (k, n, num_rows) = (70, 200, 7);
    let mut next = noise(5);
    let x: Vec<f32> = (0..num_rows * k).map(|_| next()).collect();
    for dtype in DTYPES {
        let update = update(dtype, 13, k, n, 4);
        let row_bytes = (n * dtype.size()).next_multiple_of(64);
        let whole = place(Some(&update), None, ONE_CHUNK);
        for isa in Isa::available() {
            let want = run(isa, &whole, &x, k, 2);
            for rows_per_chunk in [1, 2, 3, 5, 8] {
                let split = place(Some(&update), None, rows_per_chunk * row_bytes);
                assert!(split.layout().num_chunks >= 2);
                assert_eq!(run(isa, &split, &x, k, 2), want, "{dtype:?} {isa} {rows_per_chunk}");
            }
        }
    }
}

#[test]
fn embedding_rows_are_gathered_by_token() {
    let mut next = noise(3);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let a = tensor(dtype, 50, 3, &mut next);
        let update = EmbeddingUpdate { scale: 2.0, a, b: tensor(dtype, 3, 40, &mut next) };
        for chunk_bytes in [192, ONE_CHUNK] {
            let adapter = place(None, Some(&update), chunk_bytes);
            let mut out = vec![0.0; 2 * 40];
            let (placed, scratch) = (adapter.embedding().unwrap(), &mut LoraScratch::default());
            add_embedding(Isa::detect(), &placed, &[47, 1], &mut out, scratch);
            for (row, token) in [47, 1].into_iter().enumerate() {
                for c in 0..40 {
                    let term = |j| 2.0 * value(&update.a, token, j) * value(&update.b, j, c);
                    let want: f64 = (0..3).map(term).sum();
                    assert!((f64::from(out[row * 40 + c]) - want).abs() < 1e-5);
                }
            }
        }
    }
}
