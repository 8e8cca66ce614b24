//! Embeddings, keys and values that adapters give.

use crate::lora::{Adapter, NUM_LAYERS, tensor, values};
use crate::paged::{Cache, KV_TYPES, from_kv, to_kv};
use crate::support::{Rng, from_half, gpu};
use weft_cuda::adapter_table::prefix_index;
use weft_cuda::ops::given_rows::{GivenRow, PrefixRow, given_rows, prefix_store};
use weft_cuda::ops::kv_cache::NO_BLOCK;
use weft_cuda::{DevicePtr, HalfType};
use weft_types::{Dtype, KvPrefix, LoweredAdapter};

#[test]
fn given_embeddings_replace_their_rows_only() {
    const WIDTH: usize = 300;
    let (gpu, mut rng) = (gpu(), Rng::new(30));
    let before = rng.floats(6 * WIDTH);
    let out = gpu.upload(&before).unwrap();
    let floats = rng.floats(WIDTH);
    let halves: Vec<u16> = (0..WIDTH).map(|i| 0x3c00 + i as u16).collect();
    let (of_f32, of_f16) = (gpu.upload(&floats).unwrap(), gpu.upload(&halves).unwrap());
    let rows = [
        GivenRow { numbers: of_f32.ptr(), row: 4, dtype: 0 },
        GivenRow { numbers: of_f16.ptr(), row: 1, dtype: 1 },
        GivenRow { numbers: of_f16.ptr(), row: 2, dtype: 2 },
        GivenRow { numbers: DevicePtr::NULL, row: 5, dtype: 0 },
    ];
    let device_rows = gpu.upload(&rows).unwrap();
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { given_rows(&gpu, (device_rows.ptr(), rows.len()), (out.ptr(), WIDTH)) }.unwrap();
    let got = out.read(0..before.len()).unwrap();
    let row = |t: usize| &got[t * WIDTH..(t + 1) * WIDTH];
    let widened =
        |half| -> Vec<f32> { halves.iter().map(|&bits| from_half(half, bits) as f32).collect() };
    assert_eq!(row(4), floats);
    assert_eq!(row(1), widened(HalfType::F16));
    assert_eq!(row(2), widened(HalfType::Bf16));
    assert_eq!(row(5), [0.0; WIDTH]);
    for t in [0, 3] {
        assert_eq!(row(t), &before[t * WIDTH..(t + 1) * WIDTH]);
    }
}

#[test]
fn given_keys_and_values_go_to_the_places_of_their_rows() {
    const TOKENS: usize = 3;
    let (num_kv_heads, head_dim) = (2, 16);
    let width = num_kv_heads * head_dim;
    for (kv_type, dtype) in KV_TYPES.into_iter().zip([Dtype::F32, Dtype::F16, Dtype::Bf16]) {
        let (gpu, mut rng) = (gpu(), Rng::new(31));
        let cache = Cache::new(&gpu, &mut rng, kv_type, [num_kv_heads, head_dim], &[40]);
        let rows = tensor(&mut rng, dtype, [NUM_LAYERS * 2 * TOKENS, width]);
        let numbers = values(&rows);
        let kv_prefix = Some(KvPrefix { num_tokens: TOKENS, rows });
        // Pages of five rows: keys and values of a layer lie in several.
        let chunk_bytes = (5 * width * dtype.size()).next_multiple_of(64);
        let lowered = LoweredAdapter { kv_prefix, ..LoweredAdapter::default() };
        let adapter = Adapter::load(&gpu, chunk_bytes, lowered);
        let (blocks, offsets) = ([1u32, 0, NO_BLOCK, 2], [3u32, 15, 0, 7]);
        let (dblocks, doffsets) = (gpu.upload(&blocks).unwrap(), gpu.upload(&offsets).unwrap());
        let row = |row, token| PrefixRow { table: adapter.table.ptr(), row, token };
        let given = gpu.upload(&[row(3, 0), row(1, 2), row(2, 1)]).unwrap();
        let untouched = cache.stored(1, 0, [0, 3]);
        let (list, places) = ((given.ptr(), 3), [dblocks.ptr(), doffsets.ptr()]);
        let site = prefix_index(NUM_LAYERS);
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { prefix_store(&gpu, &cache.kv, list, places, site) }.unwrap();
        assert_eq!(cache.stored(1, 0, [0, 3]), untouched, "row 0 has no given keys");
        for (row, token) in [(3, 0), (1, 2)] {
            for (is_value, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (block, offset) = (blocks[row] as usize, offsets[row] as usize);
                let got = cache.stored(block, head, [is_value, offset]);
                let of_matrix = (2 * cache.kv.layer + is_value) * TOKENS + token;
                let want = &numbers[of_matrix * width + head * head_dim..][..head_dim];
                let want: Vec<u16> = want.iter().map(|&v| to_kv(kv_type, v as f32)).collect();
                let numbers = |bits: &[u16]| -> Vec<f64> {
                    bits.iter().map(|&bits| from_kv(kv_type, bits)).collect()
                };
                assert_eq!(numbers(&got), numbers(&want), "{kv_type:?} {dtype:?} row {row}");
            }
        }
    }
}
