//! Sums of adapters against their parts: exact where they add up, refused where they do not.

use super::*;
use weft_types::{Activation, BottleneckInput, ContentHash, LoweredAdapter};

const HASH: ContentHash = ContentHash([9; 32]);
const Q0: Site = Site::Layer { layer: 0, module: Module::Q };
const O1: Site = Site::Layer { layer: 1, module: Module::O };

/// Values that every float type holds, and eight-bit integers too.
fn values(num: usize, seed: usize) -> Vec<f32> {
    (0..num).map(|i| ((i * 7 + seed * 13) % 31) as f32 - 15.0).collect()
}

fn tensor_of(dtype: Dtype, rows: usize, cols: usize, seed: usize) -> AdapterTensor {
    let data = values(rows * cols, seed).iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut tensor = AdapterTensor { dtype: Dtype::F32, rows, cols, data, row_scales: None };
    if dtype == Dtype::I8 {
        let codes = values(rows * cols, seed).into_iter().map(|v| (v as i8).cast_unsigned());
        tensor.data = codes.collect();
        tensor.dtype = Dtype::I8;
        tensor.row_scales = Some((0..rows).map(|row| 0.5 + row as f32).collect());
    } else {
        widen(&mut tensor, dtype);
    }
    tensor
}

fn update(site: Site, rank: usize, scale: f32, dtype: Dtype, seed: usize) -> LowRankUpdate {
    let (a, b) = (tensor_of(dtype, rank, 6, seed), tensor_of(dtype, rank, 10, seed + 1));
    LowRankUpdate { site, scale, a, b }
}

fn of_updates(low_rank: Vec<LowRankUpdate>) -> LoweredAdapter {
    LoweredAdapter { low_rank, ..LoweredAdapter::default() }
}

fn pack(lowered: &LoweredAdapter) -> PackedAdapter {
    PackedAdapter::pack(lowered, 128).unwrap()
}

fn composed(parts: &[(&LoweredAdapter, f32)]) -> Result<PackedAdapter, String> {
    let packed: Vec<_> = parts.iter().map(|(lowered, scale)| (pack(lowered), *scale)).collect();
    let names = ["a", "b", "c"];
    let parts = packed.iter().zip(names);
    let parts: Vec<_> =
        parts.map(|((weights, scale), name)| Part { name, scale: *scale, weights }).collect();
    compose(&parts, HASH, 128, 16).map_err(|refusal| refusal.to_string())
}

fn rows_of(packed: &PackedAdapter, matrix: &PackedMatrix) -> Vec<f32> {
    vector(packed, matrix).into()
}

/// `Σ_j scale_j · (A_j · x) · B_j`, in double precision.
fn apply(packed: &PackedAdapter, site: Site) -> Vec<f64> {
    let mut y = vec![0.0; 10];
    let Some(update) = packed.at(site) else { return y };
    let (a, b) = (rows_of(packed, &update.a), rows_of(packed, &update.b));
    for (j, &scale) in update.scales.iter().enumerate() {
        let a = a[j * 6..][..6].iter().enumerate();
        let h: f64 = a.map(|(k, &a)| f64::from(a) * (k as f64 - 2.5)).sum();
        let b = &b[j * 10..][..10];
        y.iter_mut().zip(b).for_each(|(y, &b)| *y += f64::from(scale) * h * f64::from(b));
    }
    y
}

#[test]
fn ranks_add_up_and_the_update_is_the_scaled_sum_in_every_mix_of_types() {
    let types = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];
    for first in types {
        for second in types {
            let a = of_updates(vec![update(Q0, 3, 2.0, first, 1), update(O1, 1, 0.5, first, 2)]);
            let b = of_updates(vec![update(Q0, 5, 0.25, second, 3)]);
            let both = composed(&[(&a, 1.0), (&b, -0.5)]).unwrap();
            assert_eq!(both.content_hash, HASH);
            assert_eq!(both.at(Q0).unwrap().rank(), 8);
            assert_eq!(both.at(O1).unwrap().rank(), 1);
            for site in [Q0, O1] {
                let (one, other) = (apply(&pack(&a), site), apply(&pack(&b), site));
                let want: Vec<f64> = one.iter().zip(&other).map(|(a, b)| a - 0.5 * b).collect();
                assert_eq!(apply(&both, site), want, "{first:?} and {second:?}");
            }
            let dtype = both.at(Q0).unwrap().a.dtype;
            let want = match (first, second) {
                (a, b) if a == b => a,
                (a, Dtype::I8) => a,
                (Dtype::I8, b) => b,
                _ => Dtype::F32,
            };
            assert_eq!(dtype, want, "{first:?} and {second:?}");
        }
    }
}

#[test]
fn one_part_with_scale_one_is_the_same_adapter_byte_for_byte() {
    let lowered =
        of_updates(vec![update(Q0, 3, 2.0, Dtype::I8, 1), update(O1, 7, 1.0, Dtype::F16, 2)]);
    let packed = pack(&lowered);
    let same = composed(&[(&lowered, 1.0)]).unwrap();
    assert_eq!(same.pages, packed.pages);
    assert_eq!(same.low_rank, packed.low_rank);
}

#[test]
fn a_sum_of_ranks_above_the_limit_names_the_flag() {
    let a = of_updates(vec![update(O1, 10, 1.0, Dtype::F16, 1)]);
    let words = composed(&[(&a, 1.0), (&a, 1.0)]).unwrap_err();
    assert_eq!(
        words,
        "has rank 20 at o_proj of layer 1, the sum of its parts, but this server was started with \
         --max-lora-rank 16"
    );
}

#[test]
fn embeddings_add_up_and_differing_scales_move_into_b() {
    let embedding = |scale, seed| LoweredAdapter {
        embedding: Some(EmbeddingUpdate {
            scale,
            a: tensor_of(Dtype::F16, 4, 2, seed),
            b: tensor_of(Dtype::F16, 2, 10, seed + 1),
        }),
        ..LoweredAdapter::default()
    };
    let apply = |packed: &PackedAdapter, token: usize| -> Vec<f64> {
        let update = packed.embedding.as_ref().unwrap();
        let (a, b) = (rows_of(packed, &update.a), rows_of(packed, &update.b));
        let rank = update.b.rows;
        let column = |n: usize| -> f64 {
            let terms =
                (0..rank).map(|j| f64::from(a[token * rank + j]) * f64::from(b[j * 10 + n]));
            f64::from(update.scale) * terms.sum::<f64>()
        };
        (0..10).map(column).collect()
    };
    for scale in [1.0, 3.0] {
        let (a, b) = (embedding(2.0, 1), embedding(1.0, 5));
        let both = composed(&[(&a, 0.5), (&b, scale)]).unwrap();
        let of_b = if scale == 1.0 { Dtype::F16 } else { Dtype::F32 };
        assert_eq!(both.embedding.as_ref().unwrap().b.dtype, of_b);
        for token in 0..4 {
            let sum = apply(&pack(&a), token).into_iter().zip(apply(&pack(&b), token));
            let want: Vec<f64> = sum.map(|(a, b)| 0.5 * a + f64::from(scale) * b).collect();
            assert_eq!(apply(&both, token), want);
        }
    }
}

fn gained(site: Site) -> LoweredAdapter {
    let output = Some([2.0; 10].into());
    let vectors = SiteVectors { site, input: None, output, shift: None };
    LoweredAdapter { vectors: vec![vectors], ..LoweredAdapter::default() }
}

fn shifted(by: f32) -> LoweredAdapter {
    let shift = Some([by; 10].into());
    let vectors = SiteVectors { site: Q0, input: None, output: None, shift };
    LoweredAdapter { vectors: vec![vectors], ..LoweredAdapter::default() }
}

#[test]
fn shifts_add_up_and_gains_stay_where_they_are() {
    let both = composed(&[(&shifted(1.0), 2.0), (&gained(O1), 1.0), (&shifted(4.0), 0.5)]).unwrap();
    let at = |site| both.vectors_at(site).unwrap();
    assert_eq!(rows_of(&both, at(Q0).shift.as_ref().unwrap()), [4.0; 10]);
    assert_eq!(rows_of(&both, at(O1).output.as_ref().unwrap()), [2.0; 10]);
    assert!(at(Q0).output.is_none() && at(O1).shift.is_none());
}

fn bottleneck() -> LoweredAdapter {
    let bottleneck = Bottleneck {
        site: O1,
        reads: BottleneckInput::Residual,
        a: tensor_of(Dtype::I8, 2, 10, 3),
        a_bias: [1.0, 2.0].into(),
        activation: Activation::Silu,
        b: tensor_of(Dtype::I8, 2, 10, 4),
        b_bias: [0.5; 10].into(),
    };
    LoweredAdapter { bottlenecks: vec![bottleneck], ..LoweredAdapter::default() }
}

fn with_virtual_tokens() -> LoweredAdapter {
    let rows = TokenRows { tokens: [100, 101].into(), rows: tensor_of(Dtype::F32, 2, 10, 1) };
    LoweredAdapter { token_rows: Some(rows), num_virtual_tokens: 2, ..LoweredAdapter::default() }
}

#[test]
fn a_bottleneck_and_virtual_tokens_of_one_part_each_are_kept_as_they_are() {
    let linears = of_updates(vec![update(Q0, 3, 2.0, Dtype::F16, 1)]);
    let (b, c) = (bottleneck(), with_virtual_tokens());
    let all = composed(&[(&linears, 0.5), (&b, 1.0), (&c, 1.0)]).unwrap();
    let (got, want) = (&all.bottlenecks[0], &pack(&b).bottlenecks[0]);
    assert_eq!((&got.a_scales, &got.b_scales), (&want.a_scales, &want.b_scales));
    assert_eq!(rows_of(&all, &got.a), rows_of(&pack(&b), &want.a));
    assert_eq!(rows_of(&all, &got.a_bias), [1.0, 2.0]);
    assert_eq!((got.activation, got.reads), (Activation::Silu, BottleneckInput::Residual));
    let rows = all.token_rows.as_ref().unwrap();
    assert_eq!((&*rows.tokens, all.num_virtual_tokens), ([100, 101].as_slice(), 2));
    assert_eq!(rows_of(&all, &rows.rows), values(20, 1));
}

#[test]
fn what_does_not_add_up_is_refused_with_a_sentence() {
    let linears = of_updates(vec![update(Q0, 3, 2.0, Dtype::F16, 1)]);
    let activated =
        LoweredAdapter { invocation_tokens: Some([5].into()), ..of_updates(Vec::new()) };
    let embedding = LoweredAdapter {
        embedding: Some(EmbeddingUpdate {
            scale: 1.0,
            a: tensor_of(Dtype::F16, 4, 2, 1),
            b: tensor_of(Dtype::F16, 2, 10, 1),
        }),
        ..LoweredAdapter::default()
    };
    let cases = [
        ((gained(Q0), 1.0), (gained(Q0), 1.0), "\"a\" multiplies q_proj of layer 0"),
        ((gained(Q0), 1.0), (linears.clone(), 1.0), "and \"b\" changes it too"),
        ((linears.clone(), 1.0), (gained(Q0), 1.0), "\"b\" multiplies q_proj of layer 0"),
        ((gained(Q0), 1.0), (shifted(1.0), 1.0), "and \"b\" changes it too"),
        ((gained(Q0), 0.5), (linears.clone(), 1.0), "scales \"a\" by 0.5"),
        ((linears.clone(), 1.0), (bottleneck(), 2.0), "scales \"b\" by 2"),
        ((bottleneck(), 1.0), (bottleneck(), 1.0), "both \"a\" and \"b\" have bottlenecks"),
        ((with_virtual_tokens(), 1.0), (with_virtual_tokens(), 1.0), "tokens or a prefix"),
        ((embedding, 1.0), (with_virtual_tokens(), 1.0), "\"a\" updates the embedding"),
        ((activated.clone(), 1.0), (linears, 1.0), "at different tokens"),
    ];
    for ((a, of_a), (b, of_b), words) in cases {
        let message = composed(&[(&a, of_a), (&b, of_b)]).unwrap_err();
        assert!(message.contains(words), "{message}");
    }
    let both = composed(&[(&activated, 1.0), (&activated, 0.5)]).unwrap();
    assert_eq!(both.invocation_tokens, Some([5].into()));
}
