//! RoPE and the store into the paged cache against their reference.

use crate::paged::{Cache, KV_TYPES, from_kv, to_kv};
use crate::support::{HALVES, Rng, assert_close, from_half, gpu, halves, precision, to_halves};
use weft_cuda::HalfType;
use weft_cuda::ops::kv_cache::{self, ActivationRows, KvType, NO_BLOCK, RopeStoreOperands};

const NUM_POSITIONS: usize = 40;

fn rotations(half: usize) -> Vec<[f32; 2]> {
    let angle = |i: usize| (i / half) as f64 * 10000f64.powf(-((i % half) as f64) / half as f64);
    (0..NUM_POSITIONS * half).map(|i| [angle(i).cos() as f32, angle(i).sin() as f32]).collect()
}

fn kv_precision(kv_type: KvType) -> f64 {
    match kv_type {
        KvType::F16 => precision(HalfType::F16),
        KvType::Bf16 => precision(HalfType::Bf16),
        KvType::E4m3 => 2f64.powi(-4),
    }
}

fn check(half: HalfType, kv_type: KvType, [head_dim, rotary_dim]: [usize; 2]) {
    const ROWS: usize = 5;
    let (gpu, mut rng) = (gpu(), Rng::new(head_dim as u64));
    let (num_heads, num_kv_heads) = (6, 2);
    let cache = Cache::new(&gpu, &mut rng, kv_type, [num_kv_heads, head_dim], &[40]);
    let what = format!("{half:?} into {kv_type:?}, {rotary_dim} of {head_dim}");
    // Rows of q, k and v side by side, as a fused projection writes them.
    let stride = (num_heads + 2 * num_kv_heads) * head_dim;
    let (k_at, v_at) = (num_heads * head_dim, (num_heads + num_kv_heads) * head_dim);
    let mut numbers = rng.floats(ROWS * stride);
    for row in 0..ROWS {
        // Rounded, subnormal, saturated.
        for (i, x) in
            numbers[row * stride + v_at..][..num_kv_heads * head_dim].iter_mut().enumerate()
        {
            *x *= [1.0, 2e-2, 1e-3, 600.0][i % 4];
        }
    }
    let qkv = gpu.upload(&to_halves(half, &numbers)).expect("the device works");
    let before = halves(half, &qkv);
    let table = rotations(rotary_dim / 2);
    let (positions, offsets) = ([0u32, 7, 39, 1_000_000, 8], [3u32, 15, 0, 99, 1]);
    let blocks = [2u32, 0, 1, NO_BLOCK, 0];
    let (drot, dpos) = (
        gpu.upload(table.as_flattened()).expect("the device works"),
        gpu.upload(&positions).expect("the device works"),
    );
    let (dblocks, doffsets) = (
        gpu.upload(&blocks).expect("the device works"),
        gpu.upload(&offsets).expect("the device works"),
    );
    let operands = RopeStoreOperands {
        q: ActivationRows { ptr: qkv.ptr(), stride },
        k: ActivationRows { ptr: qkv.at(k_at), stride },
        v: ActivationRows { ptr: qkv.at(v_at), stride },
        rotations: drot.ptr(),
        positions: dpos.ptr(),
        blocks: dblocks.ptr(),
        offsets: doffsets.ptr(),
    };
    let neighbours_before = [0, 1].map(|head| cache.stored(0, head, [0, 2]));
    let sizes = [ROWS, num_heads, rotary_dim];
    // SAFETY: the buffers are as long as the shapes say; a row with a block has a position of the table.
    unsafe { kv_cache::rope_store(&gpu, half, &cache.kv, &operands, sizes) }
        .expect("the device works");

    let after = halves(half, &qkv);
    let bits = qkv.read(0..qkv.len()).expect("the device works");
    for row in 0..ROWS {
        let here = row * stride..(row + 1) * stride;
        let (before, after) = (&before[here.clone()], &after[here.clone()]);
        if blocks[row] == NO_BLOCK {
            assert_eq!(before, after, "{what}: padding changed");
            continue;
        }
        let at = positions[row] as usize * (rotary_dim / 2);
        let rotation = &table[at..at + rotary_dim / 2];
        let rotate = |head: &[f64]| kv_cache::rotate_reference(head, rotation);
        let want: Vec<f64> = before[..v_at].chunks_exact(head_dim).flat_map(rotate).collect();
        assert_close(&after[..v_at], &want, precision(half), &what);
        assert_eq!(before[v_at..], after[v_at..], "{what}: v changed");
        for head in 0..num_kv_heads {
            let (block, offset) = (blocks[row] as usize, offsets[row] as usize);
            let keys = cache.stored(block, head, [0, offset]);
            let keys: Vec<f64> = keys.into_iter().map(|bits| from_kv(kv_type, bits)).collect();
            let want = &want[k_at + head * head_dim..][..head_dim];
            assert_close(&keys, want, precision(half) + kv_precision(kv_type), &what);
            let values = cache.stored(block, head, [1, offset]);
            let given = &bits[here.start + v_at + head * head_dim..][..head_dim];
            let given: Vec<u16> =
                given.iter().map(|&bits| to_kv(kv_type, from_half(half, bits) as f32)).collect();
            assert_eq!(values, given, "{what}: values of row {row}");
        }
    }
    let neighbours = [0, 1].map(|head| cache.stored(0, head, [0, 2]));
    assert_eq!(neighbours, neighbours_before, "{what}: another token's keys changed");
}

#[test]
fn heads_are_rotated_and_stored_in_their_blocks() {
    for half in HALVES {
        for kv_type in KV_TYPES {
            check(half, kv_type, [64, 64]);
        }
    }
}

#[test]
fn a_part_of_a_head_is_rotated() {
    for shape in [[80, 32], [32, 20], [16, 0], [256, 256]] {
        check(HalfType::F16, KvType::F16, shape);
    }
    check(HalfType::Bf16, KvType::E4m3, [80, 20]);
}
