//! The paged KV cache in memory.
//!
//! A block holds sixteen consecutive tokens of one sequence, in all layers, contiguously. Within
//! it, each layer and KV head has its keys transposed, `[head_dim, 16]`, so that scores of sixteen
//! tokens are one vector, and its values as `[16, head_dim]`; of 8 bits then their scales.

mod quantized;

use crate::arena::{Arena, LentChunks, Plain};
use crate::lanes::LANES;
use crate::pool::ThreadPool;
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
    /// Signed 8-bit integers, with a scale for each token's key and value of a head.
    Int8,
}

impl KvDtype {
    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of the scales in a block, layer and head.
    fn scale_bytes(self) -> usize {
        if self == Self::Int8 { quantized::SCALE_BYTES } else { 0 }
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
    #[must_use]
    pub fn block_len(self) -> usize {
        self.num_layers * self.num_kv_heads * 2 * self.half_page()
    }

    /// Bytes of the keys and values of a block, layer and head, with their scales.
    fn page_bytes(self, dtype: KvDtype) -> usize {
        2 * self.half_page() * dtype.size() + dtype.scale_bytes()
    }

    /// Where the keys and values of a layer and head begin, in bytes from the block's first.
    fn page_start(self, dtype: KvDtype, layer: usize, head: usize) -> usize {
        (layer * self.num_kv_heads + head) * self.page_bytes(dtype)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self, dtype: KvDtype) -> usize {
        self.num_layers * self.num_kv_heads * self.page_bytes(dtype)
    }
}

/// The cache: block `b` is the front of chunk `b` of an arena. Chunks that are lent are not blocks.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    dtype: KvDtype,
    arena: Arena,
}

impl KvCache {
    /// A cache with a block in each chunk.
    ///
    /// # Panics
    /// When a block is larger than a chunk.
    #[must_use]
    pub fn new(shape: KvShape, dtype: KvDtype, arena: Arena) -> Self {
        assert!(shape.block_bytes(dtype) <= arena.chunk_bytes(), "a block fits a chunk");
        Self { shape, dtype, arena }
    }

    /// What one token needs.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// As [`Arena::lend`]: chunks that are no blocks until the result is dropped.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn lend(&mut self, chunks: &[BlockId]) -> LentChunks {
        self.arena.lend(chunks)
    }

    /// Writes one layer's keys and values, `[T, num_kv_heads, head_dim]`; row `t` goes to
    /// `slots[t]`.
    ///
    /// # Panics
    /// When lengths do not agree, or a slot or the layer is out of range, or a block is lent.
    pub fn store(
        &mut self,
        pool: &ThreadPool,
        layer: usize,
        keys: &[f32],
        values: &[f32],
        slots: &[KvSlot],
    ) {
        let shape = self.shape;
        let is_valid =
            |slot: &KvSlot| (slot.offset as usize) < BLOCK_SIZE && self.arena.owns(slot.block);
        assert!(layer < shape.num_layers && slots.iter().all(is_valid), "no such place");
        assert_eq!(keys.len(), slots.len() * shape.num_kv_heads * shape.head_dim);
        assert_eq!(values.len(), keys.len());
        let arena = &mut self.arena;
        match self.dtype {
            KvDtype::F32 => {
                let encode: Encode<f32> = |values, out| out.copy_from_slice(values);
                store(pool, shape, layer, arena, encode, keys, values, slots);
            }
            KvDtype::F16 => store(pool, shape, layer, arena, encode_f16, keys, values, slots),
            KvDtype::Bf16 => store(pool, shape, layer, arena, encode_bf16, keys, values, slots),
            KvDtype::Int8 => quantized::store(pool, shape, layer, arena, [keys, values], slots),
        }
    }

    /// What lies in a block for a layer and head.
    #[inline]
    pub(crate) fn page(&self, block: BlockId, layer: usize, head: usize) -> KvPage<'_> {
        let half = self.shape.half_page() * self.dtype.size();
        let start = self.shape.page_start(self.dtype, layer, head);
        let bytes = self.arena.bytes(block, start..start + self.shape.page_bytes(self.dtype));
        let (keys, rest) = bytes.split_at(half);
        let (values, scales) = rest.split_at(half);
        KvPage { keys, values, scales: scales.as_chunks().0.first_chunk() }
    }
}

/// Sixteen tokens of a layer and head, as bytes.
#[derive(Clone, Copy)]
pub(crate) struct KvPage<'a> {
    /// `[head_dim, 16]`
    pub(crate) keys: &'a [u8],
    /// `[16, head_dim]`
    pub(crate) values: &'a [u8],
    /// What the sixteen keys, and what the sixteen values are to be multiplied with, in single precision.
    pub(crate) scales: Option<&'a [[u8; 4 * BLOCK_SIZE]; 2]>,
}

#[cfg(target_endian = "big")]
compile_error!("kernels read the cache as little-endian bytes");

/// Where one token's keys and values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// The block.
    pub block: BlockId,
    /// The token's place in it, below [`BLOCK_SIZE`].
    pub offset: u32,
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

#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
fn store<S: Plain + Copy + Default + Send>(
    pool: &ThreadPool,
    shape: KvShape,
    layer: usize,
    arena: &mut Arena,
    encode: Encode<S>,
    keys: &[f32],
    values: &[f32],
    slots: &[KvSlot],
) {
    let (dim, half) = (shape.head_dim, shape.half_page());
    let row_width = shape.num_kv_heads * dim;
    let chunk_len = arena.chunk_bytes() / size_of::<S>();
    let data = arena.numbers::<S>();
    pool.run(slots.len(), 8, |rows| {
        for row in rows {
            let (slot, source) = (slots[row], row * row_width);
            let offset = slot.offset as usize;
            for head in 0..shape.num_kv_heads {
                let page = (layer * shape.num_kv_heads + head) * 2 * half;
                let start = slot.block.0 as usize * chunk_len + page;
                let source = source + head * dim..source + (head + 1) * dim;
                for (part, keys) in keys[source.clone()].chunks(LANES).enumerate() {
                    let encoded = &mut [S::default(); LANES][..keys.len()];
                    encode(keys, encoded);
                    for (i, &key) in encoded.iter().enumerate() {
                        let i = part * LANES + i;
                        // SAFETY: in a block that is not lent; no two rows of a step share a slot.
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
