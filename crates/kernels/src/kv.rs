//! The paged KV cache in memory.
//!
//! A block holds sixteen consecutive tokens of one sequence, in all layers, contiguously. Within
//! it, each layer and KV head has its keys transposed, `[head_dim, 16]`, so that scores of sixteen
//! tokens are one vector, and its values as `[16, head_dim]`.

use crate::lanes::{Bf16, Element, F16, LANES};
use crate::pool::{DisjointMut, ThreadPool};
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
            Storage::F32(data) => store::<f32, f32>(pool, shape, layer, data, keys, values, slots),
            Storage::F16(data) => store::<F16, u16>(pool, shape, layer, data, keys, values, slots),
            Storage::Bf16(data) => {
                store::<Bf16, u16>(pool, shape, layer, data, keys, values, slots);
            }
        }
    }

    /// Keys `[head_dim, 16]` and values `[16, head_dim]` of a block, in single precision.
    #[inline(always)] // so that it is compiled for the caller's instruction set
    pub(crate) fn read_page_into(
        &self,
        block: BlockId,
        layer: usize,
        head: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let half = self.shape.half_page();
        let start = page_start(self.shape, block, layer, head);
        let (keys, values) = (&mut keys[..half], &mut values[..half]);
        match &self.storage {
            Storage::F32(data) => {
                keys.copy_from_slice(&data[start..start + half]);
                values.copy_from_slice(&data[start + half..start + 2 * half]);
            }
            Storage::F16(data) => {
                read::<F16>(&data[start..start + half], keys, F16);
                read::<F16>(&data[start + half..start + 2 * half], values, F16);
            }
            Storage::Bf16(data) => {
                read::<Bf16>(&data[start..start + half], keys, Bf16);
                read::<Bf16>(&data[start + half..start + 2 * half], values, Bf16);
            }
        }
    }
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

#[inline(always)]
fn read<T: Element>(source: &[u16], out: &mut [f32], wrap: impl Fn(u16) -> T) {
    for (out, &bits) in out.iter_mut().zip(source) {
        *out = wrap(bits).to_f32();
    }
}

/// A number as it lies in memory.
trait Stored<T: Element>: Copy + Send {
    fn encode(value: f32) -> Self;
}
impl Stored<f32> for f32 {
    fn encode(value: f32) -> Self {
        value
    }
}
impl Stored<F16> for u16 {
    fn encode(value: f32) -> Self {
        F16::from_f32(value).0
    }
}
impl Stored<Bf16> for u16 {
    fn encode(value: f32) -> Self {
        Bf16::from_f32(value).0
    }
}

fn store<T: Element, S: Stored<T>>(
    pool: &ThreadPool,
    shape: KvShape,
    layer: usize,
    data: &mut [S],
    keys: &[f32],
    values: &[f32],
    slots: &[KvSlot],
) {
    let (dim, half) = (shape.head_dim, shape.half_page());
    let row_width = shape.num_kv_heads * dim;
    let data = DisjointMut::new(data);
    pool.run(slots.len(), 16, |rows| {
        for row in rows {
            let (slot, source) = (slots[row], row * row_width);
            let offset = slot.offset as usize;
            for head in 0..shape.num_kv_heads {
                let start = page_start(shape, slot.block, layer, head);
                let source = source + head * dim..source + (head + 1) * dim;
                for (i, &key) in keys[source.clone()].iter().enumerate() {
                    // SAFETY: no two rows of a step share a slot.
                    unsafe { data.write(start + i * BLOCK_SIZE + offset, S::encode(key)) };
                }
                let start = start + half + offset * dim;
                // SAFETY: as above.
                let out = unsafe { data.slice(start..start + dim) };
                for (out, &value) in out.iter_mut().zip(&values[source]) {
                    *out = S::encode(value);
                }
            }
        }
    });
}
