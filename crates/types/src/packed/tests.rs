//! Every part of an adapter is found again in its pages.

use super::*;

fn tensor(rows: usize, cols: usize, first: u8) -> AdapterTensor {
    let data = (0..rows * cols * 2).map(|i| first.wrapping_add(i as u8)).collect();
    AdapterTensor { dtype: Dtype::F16, rows, cols, data, row_scales: None }
}

fn adapter(ranks: &[usize]) -> LoweredAdapter {
    let updates = ranks.iter().enumerate().map(|(layer, &rank)| LowRankUpdate {
        site: Site::Layer { layer: layer as u32, module: Module::Down },
        scale: 2.0,
        a: tensor(rank, 24, layer as u8),
        b: tensor(rank, 40, 100 + layer as u8),
    });
    let low_rank = updates.collect();
    LoweredAdapter { content_hash: ContentHash([1; 32]), low_rank, ..LoweredAdapter::default() }
}

fn unpacked(packed: &PackedAdapter, matrix: &PackedMatrix) -> Vec<u8> {
    assert!(matrix.runs.iter().all(|run| (run.offset as usize).is_multiple_of(ALIGNMENT)));
    packed.runs(matrix).collect::<Vec<_>>().concat()
}

#[test]
fn every_byte_is_found_again_and_no_row_crosses_a_page() {
    let lowered = adapter(&[1, 3, 16, 5, 64]);
    for chunk_bytes in [80, 192, 256, 1000, 1 << 20] {
        let packed = PackedAdapter::pack(&lowered, chunk_bytes).unwrap();
        for (update, packed_update) in lowered.low_rank.iter().zip(&packed.low_rank) {
            assert_eq!(unpacked(&packed, &packed_update.a), *update.a.data);
            assert_eq!(unpacked(&packed, &packed_update.b), *update.b.data);
            assert_eq!(packed.at(update.site), Some(packed_update));
            assert!(packed_update.scales.iter().all(|&scale| scale == 2.0));
        }
        let (last, others) = packed.pages.split_last().unwrap();
        assert!(last.len() <= chunk_bytes);
        assert!(others.iter().all(|page| page.len() == chunk_bytes));
    }
}

#[test]
fn all_other_parts_are_found_again_where_the_layout_says() {
    let site = Site::Layer { layer: 3, module: Module::O };
    let vector =
        |len: usize, first: f32| -> Box<[f32]> { (0..len).map(|i| first + i as f32).collect() };
    let lowered = LoweredAdapter {
        vectors: vec![SiteVectors {
            site,
            input: Some(vector(24, 1.0)),
            output: None,
            shift: Some(vector(40, 2.0)),
        }],
        bottlenecks: vec![Bottleneck {
            site,
            reads: BottleneckInput::Residual,
            a: AdapterTensor {
                row_scales: Some(vector(5, 0.5)),
                dtype: Dtype::I8,
                data: vec![7; 5 * 40].into(),
                ..tensor(5, 40, 0)
            },
            a_bias: vector(5, 3.0),
            activation: Activation::Silu,
            b: tensor(5, 40, 9),
            b_bias: vector(40, 4.0),
        }],
        token_rows: Some(TokenRows { tokens: [2, 700].into(), rows: tensor(2, 40, 20) }),
        kv_prefix: Some(KvPrefix { num_tokens: 3, rows: tensor(24, 16, 30) }),
        num_virtual_tokens: 3,
        ..adapter(&[2])
    };
    for chunk_bytes in [192, 256, 1 << 20] {
        let packed = PackedAdapter::pack(&lowered, chunk_bytes).unwrap();
        let numbers = |matrix: &PackedMatrix| -> Vec<f32> {
            assert_eq!((matrix.dtype, matrix.rows), (Dtype::F32, 1));
            let bytes = unpacked(&packed, matrix);
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        };
        let vectors = packed.vectors_at(site).unwrap();
        assert_eq!(numbers(vectors.input.as_ref().unwrap()), *vector(24, 1.0));
        assert_eq!(numbers(vectors.shift.as_ref().unwrap()), *vector(40, 2.0));
        assert!(vectors.output.is_none() && packed.vectors_at(Site::LmHead).is_none());
        let bottleneck = packed.bottleneck_at(site).unwrap();
        assert_eq!(*bottleneck.a_scales, *vector(5, 0.5));
        assert_eq!(*bottleneck.b_scales, [1.0; 5]);
        assert_eq!(unpacked(&packed, &bottleneck.a), [7; 5 * 40]);
        assert_eq!(unpacked(&packed, &bottleneck.b), *lowered.bottlenecks[0].b.data);
        assert_eq!(numbers(&bottleneck.a_bias), *vector(5, 3.0));
        assert_eq!(numbers(&bottleneck.b_bias), *vector(40, 4.0));
        let rows = packed.token_rows.as_ref().unwrap();
        assert_eq!(*rows.tokens, [2, 700]);
        assert_eq!(unpacked(&packed, &rows.rows), *tensor(2, 40, 20).data);
        let prefix = packed.kv_prefix.as_ref().unwrap();
        assert_eq!(unpacked(&packed, &prefix.rows), *tensor(24, 16, 30).data);
        assert_eq!((prefix.num_tokens, packed.num_virtual_tokens), (3, 3));
        assert_eq!((packed.max_rank(), lowered.max_rank()), (5, 5));
        let len: usize = packed.pages.iter().map(|page| page.len()).sum();
        assert!(len == packed.num_bytes && len >= lowered.num_bytes());
    }
}

#[test]
fn equal_matrices_are_packed_once_and_alike_ones_are_not() {
    let mut lowered = adapter(&[16, 16, 16]);
    let first = lowered.low_rank[0].a.clone();
    lowered.low_rank[1].a = first.clone();
    // Differs in its last byte only.
    lowered.low_rank[2].a = first;
    if let Some(last) = lowered.low_rank[2].a.data.last_mut() {
        *last ^= 1;
    }
    for chunk_bytes in [192, 1 << 20] {
        let packed = PackedAdapter::pack(&lowered, chunk_bytes).unwrap();
        assert_eq!(packed.low_rank[0].a, packed.low_rank[1].a);
        assert_ne!(packed.low_rank[0].a, packed.low_rank[2].a);
        for (update, packed_update) in lowered.low_rank.iter().zip(&packed.low_rank) {
            assert_eq!(unpacked(&packed, &packed_update.a), *update.a.data);
        }
    }
}

#[test]
fn a_row_larger_than_a_chunk_is_refused() {
    let error = PackedAdapter::pack(&adapter(&[2]), 79).unwrap_err();
    assert_eq!(error, RowTooLarge { row_bytes: 80, chunk_bytes: 79 });
}
