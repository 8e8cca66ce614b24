//! Against a double-precision reference over popularity × rank × dtype, and against itself alone.

use super::*;
use weft_types::{EmbeddingUpdate, Site};

fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn tensor(dtype: Dtype, rows: usize, cols: usize, next: &mut impl FnMut() -> f32) -> AdapterTensor {
    let mut data = Vec::new();
    for _ in 0..rows * cols {
        match dtype {
            Dtype::F32 => data.extend(next().to_le_bytes()),
            Dtype::F16 => data.extend(F16::from_f32(next()).0.to_le_bytes()),
            Dtype::Bf16 => data.extend(Bf16::from_f32(next()).0.to_le_bytes()),
        }
    }
    AdapterTensor { dtype, rows, cols, data: data.into() }
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

fn reference(x: &[f32], update: &LowRankUpdate) -> Vec<f64> {
    let (rank, k, n) = (update.rank(), update.a.cols, update.b.cols);
    let t: Vec<f64> = (0..rank)
        .map(|j| (0..k).map(|i| f64::from(x[i]) * f64::from(element(&update.a, j * k + i))).sum())
        .collect();
    (0..n)
        .map(|c| {
            let sum: f64 = (0..rank).map(|j| t[j] * f64::from(element(&update.b, j * n + c))).sum();
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
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
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
                for isa in Isa::available() {
                    let mut y = widths.map(|n| vec![1.0; 12 * n]);
                    let [y0, y1] = &mut y;
                    let mut targets = [
                        LoraTarget { out: y0, num_outputs: widths[0] },
                        LoraTarget { out: y1, num_outputs: widths[1] },
                    ];
                    let find =
                        |segment: usize, target: usize| updates[owners[segment]][target].as_ref();
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

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_long_segment() {
    let (k, n, num_rows) = (96, 200, 37);
    let mut next = noise(2);
    let x: Vec<f32> = (0..num_rows * k).map(|_| next()).collect();
    let update = update(Dtype::Bf16, 11, k, n, 4);
    for isa in Isa::available() {
        let run = |x: &[f32], num_threads| {
            let num_rows = x.len() / k;
            let mut y = vec![0.25; num_rows * n];
            let mut targets = [LoraTarget { out: &mut y, num_outputs: n }];
            let pool = ThreadPool::new(num_threads);
            let all = 0..num_rows;
            apply(
                &pool,
                isa,
                x,
                k,
                &[all],
                &mut targets,
                |_, _| Some(&update),
                &mut LoraScratch::default(),
            );
            y
        };
        let together = run(&x, 2);
        for (x, want) in x.chunks_exact(k).zip(together.chunks_exact(n)) {
            assert_eq!(run(x, 1), want);
        }
    }
}

#[test]
fn embedding_rows_are_gathered_by_token() {
    let mut next = noise(3);
    let update = EmbeddingUpdate {
        scale: 2.0,
        a: tensor(Dtype::F32, 10, 3, &mut next),
        b: tensor(Dtype::F32, 3, 40, &mut next),
    };
    let mut out = vec![0.0; 2 * 40];
    add_embedding(Isa::detect(), &update, &[7, 1], &mut out);
    for (row, token) in [7, 1].into_iter().enumerate() {
        for c in 0..40 {
            let want: f32 = (0..3)
                .map(|j| 2.0 * element(&update.a, token * 3 + j) * element(&update.b, j * 40 + c))
                .sum();
            assert!((out[row * 40 + c] - want).abs() < 1e-5);
        }
    }
}
