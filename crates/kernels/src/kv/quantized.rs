//! Keys and values as signed bytes: each row of a head has one scale for its key and one for its value,
//! in single precision, so that it is stored and read from itself alone.
//!
//! A page is keys `[head_dim, 16]`, values `[16, head_dim]`, then 16 scales of the keys and 16 of the values.
//! `x[i] ≈ scale * q[i]`, |q| ≤ 127.

use super::{BLOCK_SIZE, KvDtype, KvShape, KvSlot};
use crate::arena::Arena;
use crate::lanes::{LANES, max_lanes};
use crate::pool::{DisjointMut, ThreadPool};

/// The largest code.
const LIMIT: f32 = 127.0;

/// Bytes of the scales of a page.
pub(super) const SCALE_BYTES: usize = 2 * BLOCK_SIZE * size_of::<f32>();

/// As `KvCache::store`, which has checked the operands.
pub(super) fn store(
    pool: &ThreadPool,
    shape: KvShape,
    layer: usize,
    arena: &mut Arena,
    [keys, values]: [&[f32]; 2],
    slots: &[KvSlot],
) {
    let (dim, half) = (shape.head_dim, shape.half_page());
    let row_width = shape.num_kv_heads * dim;
    let chunk_bytes = arena.chunk_bytes();
    let data = arena.numbers::<u8>();
    pool.run(slots.len(), 8, |rows| {
        for row in rows {
            let (slot, source) = (slots[row], row * row_width);
            let offset = slot.offset as usize;
            for head in 0..shape.num_kv_heads {
                let block = slot.block.0 as usize * chunk_bytes;
                let keys_at = block + shape.page_start(KvDtype::Int8, layer, head);
                let (values_at, scales_at) = (keys_at + half, keys_at + 2 * half);
                let source = source + head * dim..source + (head + 1) * dim;
                let (keys, values) = (&keys[source.clone()], &values[source]);
                let scale = Scale::of(keys);
                for (i, &key) in keys.iter().enumerate() {
                    // SAFETY: in a block that is not lent; no two rows of a step share a slot.
                    unsafe { data.write(keys_at + i * BLOCK_SIZE + offset, scale.code(key)) };
                }
                write_scale(data, scales_at, offset, scale);
                let scale = Scale::of(values);
                // SAFETY: as above.
                let out =
                    unsafe { data.slice(values_at + offset * dim..values_at + (offset + 1) * dim) };
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = scale.code(value);
                }
                write_scale(data, scales_at, BLOCK_SIZE + offset, scale);
            }
        }
    });
}

fn write_scale(data: DisjointMut<'_, u8>, scales_at: usize, index: usize, scale: Scale) {
    let start = scales_at + index * size_of::<f32>();
    // SAFETY: a slot's scales in a block that is not lent; no two rows of a step share a slot.
    let out = unsafe { data.slice(start..start + size_of::<f32>()) };
    out.copy_from_slice(&scale.scale.to_le_bytes());
}

/// What the numbers of a row are divided by.
#[derive(Clone, Copy)]
struct Scale {
    scale: f32,
    inverse: f32,
}

impl Scale {
    /// NaN for rows that are not finite: whoever reads them must notice.
    #[inline]
    fn of(row: &[f32]) -> Self {
        let mut lanes = [0.0f32; LANES];
        let mut is_finite = true;
        for part in row.chunks(LANES) {
            for (lane, value) in lanes.iter_mut().zip(part) {
                is_finite &= value.is_finite();
                *lane = if value.abs() > *lane { value.abs() } else { *lane };
            }
        }
        let largest = max_lanes(lanes);
        if !is_finite {
            return Self { scale: f32::NAN, inverse: 0.0 };
        }
        let scale = largest / LIMIT;
        // Of numbers so small that the scale is zero or its inverse infinite nothing is left.
        if scale < f32::MIN_POSITIVE {
            return Self { scale: 0.0, inverse: 0.0 };
        }
        Self { scale, inverse: LIMIT / largest }
    }

    #[inline]
    fn code(self, value: f32) -> u8 {
        // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
        const ROUND: f32 = 12_582_912.0;
        ((value * self.inverse + ROUND).to_bits() & 0xff) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvCache;
    use weft_types::BlockId;

    const SHAPE: KvShape = KvShape { num_layers: 2, num_kv_heads: 2, head_dim: 20 };

    fn cache() -> KvCache {
        let chunk_bytes = SHAPE.block_bytes(KvDtype::Int8).next_multiple_of(64);
        KvCache::new(SHAPE, KvDtype::Int8, Arena::new(3, chunk_bytes))
    }

    /// Of three tokens, two heads.
    fn numbers(seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 37 + seed * 11) % 101) as f32 - 50.0;
        // Each row of a head in another order of magnitude.
        (0..3 * 40).map(|i| number(i) * 10f32.powi(i as i32 / 20 - 3)).collect()
    }

    #[test]
    fn what_is_stored_reads_back_within_half_a_step_of_its_own_row_and_head() {
        let (keys, values) = (numbers(1), numbers(2));
        let mut cache = cache();
        let slots = [(0, 3), (2, 15), (2, 0)]
            .map(|(block, offset)| KvSlot { block: BlockId(block), offset });
        cache.store(&ThreadPool::new(2), 1, &keys, &values, &slots);
        for (row, slot) in slots.iter().enumerate() {
            for head in 0..2 {
                let page = cache.page(slot.block, 1, head);
                let [key_scales, value_scales] = page.scales.unwrap();
                let scale = |scales: &[u8; 64]| {
                    f32::from_le_bytes(scales.as_chunks().0[slot.offset as usize])
                };
                for i in 0..20 {
                    let index = row * 40 + head * 20 + i;
                    let (at, scale_of_key) = (i * 16 + slot.offset as usize, scale(key_scales));
                    let key = f32::from(page.keys[at] as i8) * scale_of_key;
                    assert!((key - keys[index]).abs() <= scale_of_key * 0.501, "{row} {head} {i}");
                    let (at, scale_of_value) = (slot.offset as usize * 20 + i, scale(value_scales));
                    let value = f32::from(page.values[at] as i8) * scale_of_value;
                    assert!((value - values[index]).abs() <= scale_of_value * 0.501);
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_what_is_not_finite_becomes_nan() {
        let zero = Scale::of(&[0.0; 20]);
        assert_eq!((zero.scale, zero.code(0.0)), (0.0, 0));
        let tiny = Scale::of(&[1e-44; 20]);
        assert_eq!((tiny.scale, tiny.code(1e-44)), (0.0, 0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; 20];
            row[17] = bad;
            assert!(Scale::of(&row).scale.is_nan());
        }
        let ends = Scale::of(&[-3.0, 3.0, 1.0]);
        assert_eq!([ends.code(-3.0) as i8, ends.code(3.0) as i8], [-127, 127]);
    }
}
