//! Where keys and values lie, and how they get there.
//!
//! An arena of equal chunks; block b is the front of chunk b and holds 16 tokens over all layers. For
//! each layer, each KV head: keys `[16, head_dim]`, then values `[16, head_dim]`. Kernels:
//! `kernels/attention/kv.cuh`, `kernels/attention/rope_store.cu`.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// A row's block where it has none: padding.
pub const NO_BLOCK: u32 = u32::MAX;

/// Numbers of the cache. They may be others than those of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE half precision.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
    /// Eight bits, up to ±448 and saturated there.
    E4m3,
}

impl KvType {
    /// Bytes of a number.
    #[must_use]
    pub const fn num_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 => 1,
        }
    }
}

/// The pages of one layer.
#[derive(Clone, Copy, Debug)]
pub struct PagedKv {
    /// Where chunk 0 begins; a multiple of 16, as is `chunk_bytes`.
    pub arena: DevicePtr,
    /// Bytes from chunk to chunk, at least [`Self::block_bytes`].
    pub chunk_bytes: usize,
    /// Which layer.
    pub layer: usize,
    /// KV heads of each layer.
    pub num_kv_heads: usize,
    /// Values of a head, a multiple of 8.
    pub head_dim: usize,
    /// Numbers of keys and values.
    pub kv_type: KvType,
}

impl PagedKv {
    /// Values from the front of a block to the keys of a head; its values follow.
    #[must_use]
    pub const fn page_start(&self, head: usize) -> usize {
        (self.layer * self.num_kv_heads + head) * 2 * BLOCK_TOKENS * self.head_dim
    }

    /// Bytes of a block over so many layers.
    #[must_use]
    pub const fn block_bytes(&self, num_layers: usize) -> usize {
        num_layers * self.num_kv_heads * 2 * BLOCK_TOKENS * self.head_dim * self.kv_type.num_bytes()
    }

    /// As kernels take it.
    ///
    /// # Panics
    /// When chunks are not aligned to 16 bytes.
    pub(super) fn params(&self) -> PagedKvParams {
        assert!(
            self.arena.0.is_multiple_of(16) && self.chunk_bytes.is_multiple_of(16),
            "chunks of {} bytes at {:#x} are not aligned to 16 bytes",
            self.chunk_bytes,
            self.arena.0
        );
        PagedKvParams {
            arena: self.arena,
            chunk_bytes: self.chunk_bytes as u64,
            layer: self.layer as u32,
            num_kv_heads: self.num_kv_heads as u32,
        }
    }
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
pub(super) struct PagedKvParams {
    arena: DevicePtr,
    chunk_bytes: u64,
    layer: u32,
    num_kv_heads: u32,
}

/// Rows of activations, so many values from row to row: a multiple of 8.
#[derive(Clone, Copy, Debug)]
pub struct ActivationRows {
    /// The first row.
    pub ptr: DevicePtr,
    /// Values from row to row.
    pub stride: usize,
}

/// What [`rope_store`] works on.
#[derive(Clone, Copy, Debug)]
pub struct RopeStoreOperands {
    /// `[T, num_heads, head_dim]`
    pub q: ActivationRows,
    /// `[T, num_kv_heads, head_dim]`
    pub k: ActivationRows,
    /// `[T, num_kv_heads, head_dim]`
    pub v: ActivationRows,
    /// `[positions, rotary_dim / 2]` of (cos, sin), f32: a row for each position that occurs.
    pub rotations: DevicePtr,
    /// `[T]` u32
    pub positions: DevicePtr,
    /// `[T]` u32, or [`NO_BLOCK`]: this row is left as it is.
    pub blocks: DevicePtr,
    /// `[T]` u32: which of the block's tokens.
    pub offsets: DevicePtr,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct RopeStoreParams {
    kv: PagedKvParams,
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    rotations: DevicePtr,
    positions: DevicePtr,
    blocks: DevicePtr,
    offsets: DevicePtr,
    num_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
}

/// `(x[i], x[i + R/2]) *= e^{i p θ_i}` for `i < R/2`, of each head of q and k, in place, p the row's
/// position; then k and v go to their token's place in the paged KV cache.
///
/// # Safety
/// The memory is there, and no two rows have one place.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When `rotary_dim` is odd or larger than a head.
pub unsafe fn rope_store(
    gpu: &Gpu,
    half: HalfType,
    kv: &PagedKv,
    operands: &RopeStoreOperands,
    [num_rows, num_heads, rotary_dim]: [usize; 3],
) -> Result<(), DriverError> {
    assert!(
        rotary_dim.is_multiple_of(2) && rotary_dim <= kv.head_dim,
        "{rotary_dim} values of a head of {} cannot be rotated in pairs",
        kv.head_dim
    );
    if num_rows == 0 {
        return Ok(());
    }
    let kernel = match (half, kv.kv_type) {
        (HalfType::F16, KvType::F16) => "rope_store_f16_f16",
        (HalfType::F16, KvType::Bf16) => "rope_store_f16_bf16",
        (HalfType::F16, KvType::E4m3) => "rope_store_f16_e4m3",
        (HalfType::Bf16, KvType::F16) => "rope_store_bf16_f16",
        (HalfType::Bf16, KvType::Bf16) => "rope_store_bf16_bf16",
        (HalfType::Bf16, KvType::E4m3) => "rope_store_bf16_e4m3",
    };
    let params = RopeStoreParams {
        kv: kv.params(),
        q: operands.q.ptr,
        k: operands.k.ptr,
        v: operands.v.ptr,
        rotations: operands.rotations,
        positions: operands.positions,
        blocks: operands.blocks,
        offsets: operands.offsets,
        num_heads: num_heads as u32,
        head_dim: kv.head_dim as u32,
        rotary_dim: rotary_dim as u32,
        q_stride: operands.q.stride as u32,
        k_stride: operands.k.stride as u32,
        v_stride: operands.v.stride as u32,
    };
    // Half a vector of q, half of k and one of v for each eight values of a head.
    let num_vectors = (num_heads + 3 * kv.num_kv_heads) * kv.head_dim / 16;
    let threads = (num_vectors as u32).next_multiple_of(32).clamp(32, 512);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape::of(num_rows, threads), &params) }
}

/// The rotation of one head in f64, by its position's row of `(cos, sin)`.
#[must_use]
pub fn rotate_reference(head: &[f64], rotations: &[[f32; 2]]) -> Vec<f64> {
    let (mut rotated, half) = (head.to_vec(), rotations.len());
    for (i, &[cos, sin]) in rotations.iter().enumerate() {
        let (cos, sin) = (f64::from(cos), f64::from(sin));
        rotated[i] = head[i] * cos - head[i + half] * sin;
        rotated[i + half] = head[i + half] * cos + head[i] * sin;
    }
    rotated
}
