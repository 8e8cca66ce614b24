//! The paged KV cache in memory.
//!
//! A block holds sixteen consecutive tokens of one sequence, in all layers, contiguously. Within
//! it, each layer and KV head has its keys transposed, `[head_dim, 16]`, so that scores of sixteen
//! tokens are one vector, and its values as `[16, head_dim]`.

use crate::lanes::LANES;
use crate::pool::{DisjointMut, ThreadPool};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use weft_types::BlockId;

/// Tokens of a block.
pub const BLOCK_SIZE: usize = LANES;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// Single precision.
    F32,
    /// Half precision; values beyond ±65504 saturate.
    F16,
    /// bfloat16.
    Bf16,
}

impl KvDtype {
    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// What one token needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub num_layers: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Numbers in the keys (or the values) of one block, layer and head.
    fn half_page(self) -> usize {
        BLOCK_SIZE * self.head_dim
    }

    /// Numbers in a block.
    fn block_len(self) -> usize {
        self.num_layers * self.num_kv_heads * 2 * self.half_page()
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self, dtype: KvDtype) -> usize {
        self.block_len() * dtype.size()
    }
}

/// The cache. Memory is zeroed lazily by the system: blocks never used cost nothing.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    num_blocks: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl KvCache {
    /// A cache of `num_blocks` blocks.
    #[must_use]
    pub fn new(shape: KvShape, dtype: KvDtype, num_blocks: usize) -> Self {
        let len = shape.block_len() * num_blocks;
        let storage = match dtype {
            KvDtype::F32 => Storage::F32(vec![0.0; len]),
            KvDtype::F16 => Storage::F16(vec![0; len]),
            KvDtype::Bf16 => Storage::Bf16(vec![0; len]),
        };
        Self { shape, num_blocks, storage }
    }

    /// Blocks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// What one token needs.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Writes one layer's keys and values, `[T, num_kv_heads, head_dim]`; row `t` goes to
    /// `slots[t]`.
    ///
    /// # Panics
    /// When lengths do not agree or a block is out of range.
    pub fn store(
        &mut self,
        pool: &ThreadPool,
        layer: usize,
        keys: &[f32],
        values: &[f32],
        slots: &[KvSlot],
    ) {
        let shape = self.shape;
        assert!(slots.iter().all(|slot| (slot.block.0 as usize) < self.num_blocks));
        assert_eq!(keys.len(), slots.len() * shape.num_kv_heads * shape.head_dim);
        assert_eq!(values.len(), keys.len());
        match &mut self.storage {
            Storage::F32(data) => {
                let encode: Encode<f32> = |values, out| out.copy_from_slice(values);
                store(pool, shape, layer, data, encode, keys, values, slots);
            }
            Storage::F16(data) => store(pool, shape, layer, data, encode_f16, keys, values, slots),
            Storage::Bf16(data) => {
                store(pool, shape, layer, data, encode_bf16, keys, values, slots)
            }
        }
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        match self.storage {
            Storage::F32(_) => KvDtype::F32,
            Storage::F16(_) => KvDtype::F16,
            Storage::Bf16(_) => KvDtype::Bf16,
        }
    }

    /// Keys `[head_dim, 16]` and values `[16, head_dim]` of a block, layer and head, as bytes.
    #[inline]
    pub(crate) fn page(&self, block: BlockId, layer: usize, head: usize) -> (&[u8], &[u8]) {
        let half = self.shape.half_page();
        let start = page_start(self.shape, block, layer, head);
        let range = start..start + 2 * half;
        let bytes = match &self.storage {
            Storage::F32(data) => bytes_of(&data[range]),
            Storage::F16(data) | Storage::Bf16(data) => bytes_of(&data[range]),
        };
        bytes.split_at(bytes.len() / 2)
    }
}

#[cfg(target_endian = "big")]
compile_error!("kernels read the cache as little-endian bytes");

/// A marker for [`bytes_of`]: numbers without padding.
trait Plain {}
impl Plain for f32 {}
impl Plain for u16 {}

fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: plain numbers are all bytes, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Where one token's keys and values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// The block.
    pub block: BlockId,
    /// The token's place in it, below [`BLOCK_SIZE`].
    pub offset: u32,
}

fn page_start(shape: KvShape, block: BlockId, layer: usize, head: usize) -> usize {
    let page = (block.0 as usize * shape.num_layers + layer) * shape.num_kv_heads + head;
    page * 2 * shape.half_page()
}

/// Turns numbers into what lies in memory.
type Encode<S> = fn(&[f32], &mut [S]);

fn encode_f16(values: &[f32], out: &mut [u16]) {
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
    for out in out {
        // Saturate: an infinity in the cache would poison every later read.
        *out = if *out & 0x7fff == 0x7c00 { *out - 1 } else { *out };
    }
}

fn encode_bf16(values: &[f32], out: &mut [u16]) {
    out.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values);
}

fn store<S: Copy + Default + Send>(
    pool: &ThreadPool,
    shape: KvShape,
    layer: usize,
    data: &mut [S],
    encode: Encode<S>,
    keys: &[f32],
    values: &[f32],
    slots: &[KvSlot],
) {
    let (dim, half) = (shape.head_dim, shape.half_page());
    let row_width = shape.num_kv_heads * dim;
    let data = DisjointMut::new(data);
    pool.run(slots.len(), 8, |rows| {
        for row in rows {
            let (slot, source) = (slots[row], row * row_width);
            let offset = slot.offset as usize;
            for head in 0..shape.num_kv_heads {
                let start = page_start(shape, slot.block, layer, head);
                let source = source + head * dim..source + (head + 1) * dim;
                for (part, keys) in keys[source.clone()].chunks(LANES).enumerate() {
                    let encoded = &mut [S::default(); LANES][..keys.len()];
                    encode(keys, encoded);
                    for (i, &key) in encoded.iter().enumerate() {
                        let i = part * LANES + i;
                        // SAFETY: no two rows of a step share a slot.
                        unsafe { data.write(start + i * BLOCK_SIZE + offset, key) };
                    }
                }
                let start = start + half + offset * dim;
                // SAFETY: as above.
                encode(&values[source], unsafe { data.slice(start..start + dim) });
            }
        }
    });
}
