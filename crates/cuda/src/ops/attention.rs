//! Attention over the paged KV cache: for rows that decode, and for chunks of prompts.
//!
//! `out[t,h,:] = Σ_j softmax_j(scale * q[t,h,:]·k[j,g,:]) v[j,g,:]`, j <= position(t), g = h's KV head,
//! optionally only the last `window` positions. Kernels: `kernels/attention/decode.cu`,
//! `kernels/attention/prefill.cu`.

use super::kv_cache::{ActivationRows, BLOCK_TOKENS, KvType, PagedKv, PagedKvParams};
use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};

/// Rows of a prompt that one [`PrefillItem`] has at most.
pub const MAX_ITEM_ROWS: usize = 64;

/// Widths of heads that there are kernels for.
pub const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Query heads of a KV head that one block of threads of [`decode`] takes.
const DECODE_HEADS: usize = 8;

/// Splits of a sequence beyond which combining them costs more than they bring.
const MAX_SPLITS: usize = 64;

/// Positions of a tile of [`prefill`].
const PREFILL_TILE: usize = 64;

/// How queries look at keys.
#[derive(Clone, Copy, Debug)]
pub struct QueryHeads {
    /// Query heads, a multiple of the KV heads.
    pub num_heads: usize,
    /// Of scores, positive.
    pub scale: f32,
    /// A row sees so many last positions, with its own.
    pub window: Option<usize>,
}

impl QueryHeads {
    fn window(&self) -> u32 {
        self.window.map_or(0, |window| u32::try_from(window).unwrap_or(0))
    }

    fn group(&self, kv: &PagedKv) -> usize {
        assert!(
            self.num_heads.is_multiple_of(kv.num_kv_heads) && self.scale > 0.0,
            "{} heads with scale {} do not share {} KV heads",
            self.num_heads,
            self.scale,
            kv.num_kv_heads
        );
        self.num_heads / kv.num_kv_heads
    }
}

/// What [`decode`] works on. `[sequences]` are tables of u32.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOperands {
    /// `[T, num_heads, head_dim]`
    pub q: ActivationRows,
    /// `[T, num_heads, head_dim]`
    pub out: ActivationRows,
    /// `[sequences]`: the row.
    pub rows: DevicePtr,
    /// `[sequences]`: positions that are in the cache, with the row's own. 0: padding.
    pub contexts: DevicePtr,
    /// `[sequences]`: where in `block_tables` its blocks begin.
    pub first_blocks: DevicePtr,
    /// u32: blocks of a sequence one after the other.
    pub block_tables: DevicePtr,
    /// As many f32 as [`decode_scratch_len`] says.
    pub scratch: DevicePtr,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct DecodeParams {
    kv: PagedKvParams,
    q: DevicePtr,
    out: DevicePtr,
    rows: DevicePtr,
    contexts: DevicePtr,
    first_blocks: DevicePtr,
    block_tables: DevicePtr,
    sums: DevicePtr,
    scales: DevicePtr,
    num_heads: u32,
    num_splits: u32,
    window: u32,
    is_bf16: u32,
    q_stride: u32,
    out_stride: u32,
    head_dim: u32,
    scale: f32,
}

/// f32 values of scratch that [`decode`] needs.
#[must_use]
pub fn decode_scratch_len(
    [num_seqs, num_splits]: [usize; 2],
    num_heads: usize,
    head_dim: usize,
) -> usize {
    if num_splits == 1 { 0 } else { num_seqs * num_heads * num_splits * (head_dim + 2) }
}

/// Splits with which so few sequences fill the device, if they are long enough: three blocks of threads
/// for each multiprocessor.
#[must_use]
pub fn decode_splits(gpu: &Gpu, kv: &PagedKv, heads: &QueryHeads, num_seqs: usize) -> usize {
    let tiles = heads.group(kv).div_ceil(DECODE_HEADS);
    let num_blocks = num_seqs.max(1) * kv.num_kv_heads * tiles;
    let wanted = 3 * gpu.driver().facts().num_multiprocessors as usize;
    wanted.div_ceil(num_blocks).clamp(1, MAX_SPLITS)
}

/// Sequences with one row each. A result depends on its own sequence, and on `num_splits`.
///
/// # Safety
/// The memory is there, and all blocks that contexts reach are in the tables.
///
/// # Errors
/// When there is no kernel for such heads, or the driver fails.
///
/// # Panics
/// When the heads cannot share the KV heads, or there are no splits.
pub unsafe fn decode(
    gpu: &Gpu,
    half: HalfType,
    kv: &PagedKv,
    heads: &QueryHeads,
    operands: &DecodeOperands,
    [num_seqs, num_splits]: [usize; 2],
) -> Result<(), DriverError> {
    let tiles = heads.group(kv).div_ceil(DECODE_HEADS);
    assert!(num_splits > 0, "a sequence has at least one split");
    let kernel = decode_kernel(kv.kv_type, kv.head_dim).ok_or_else(|| no_kernel(kv.head_dim))?;
    if num_seqs == 0 {
        return Ok(());
    }
    let num_sums = num_seqs * heads.num_heads * num_splits * kv.head_dim;
    let params = DecodeParams {
        kv: kv.params(),
        q: operands.q.ptr,
        out: operands.out.ptr,
        rows: operands.rows,
        contexts: operands.contexts,
        first_blocks: operands.first_blocks,
        block_tables: operands.block_tables,
        sums: operands.scratch,
        scales: operands.scratch.add(num_sums * size_of::<f32>()),
        num_heads: heads.num_heads as u32,
        num_splits: num_splits as u32,
        window: heads.window(),
        is_bf16: u32::from(half == HalfType::Bf16),
        q_stride: operands.q.stride as u32,
        out_stride: operands.out.stride as u32,
        head_dim: kv.head_dim as u32,
        scale: heads.scale,
    };
    let (num_warps, shared_bytes) = decode_shape(kv);
    let shape = Shape {
        grid: [num_splits as u32, (kv.num_kv_heads * tiles) as u32, num_seqs as u32],
        threads: num_warps as u32 * 32,
        shared_bytes: shared_bytes as u32,
    };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, shape, &params) }?;
    if num_splits == 1 {
        return Ok(());
    }
    let shape = Shape {
        grid: [heads.num_heads as u32, num_seqs as u32, 1],
        threads: (kv.head_dim as u32).next_multiple_of(32),
        shared_bytes: 0,
    };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch("decode_combine", shape, &params) }
}

/// Up to [`MAX_ITEM_ROWS`] consecutive rows of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PrefillItem {
    /// The first row of the batch.
    pub first_row: u32,
    /// Rows. 0: padding.
    pub num_rows: u32,
    /// Position of the first row.
    pub position: u32,
    /// Where in the block tables the sequence's blocks begin.
    pub first_block: u32,
}

/// What [`prefill`] works on.
#[derive(Clone, Copy, Debug)]
pub struct PrefillOperands {
    /// `[T, num_heads, head_dim]`
    pub q: ActivationRows,
    /// `[T, num_heads, head_dim]`
    pub out: ActivationRows,
    /// [`PrefillItem`]s
    pub items: DevicePtr,
    /// u32: blocks of a sequence one after the other.
    pub block_tables: DevicePtr,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct PrefillParams {
    kv: PagedKvParams,
    q: DevicePtr,
    out: DevicePtr,
    items: DevicePtr,
    block_tables: DevicePtr,
    num_heads: u32,
    window: u32,
    is_bf16: u32,
    q_stride: u32,
    out_stride: u32,
    scale: f32,
}

/// Chunks of prompts, whose own keys and values are in the cache already. A row's result is the same,
/// to the bit, in any chunking and any batch.
///
/// # Safety
/// The memory is there, and all blocks that the items' rows reach are in the tables.
///
/// # Errors
/// When there is no kernel for such heads, or the driver fails.
///
/// # Panics
/// When the heads cannot share the KV heads.
pub unsafe fn prefill(
    gpu: &Gpu,
    half: HalfType,
    kv: &PagedKv,
    heads: &QueryHeads,
    operands: &PrefillOperands,
    num_items: usize,
) -> Result<(), DriverError> {
    let group = heads.group(kv);
    let kernel = prefill_kernel(kv.kv_type, kv.head_dim).ok_or_else(|| no_kernel(kv.head_dim))?;
    if num_items == 0 {
        return Ok(());
    }
    let params = PrefillParams {
        kv: kv.params(),
        q: operands.q.ptr,
        out: operands.out.ptr,
        items: operands.items,
        block_tables: operands.block_tables,
        num_heads: heads.num_heads as u32,
        window: heads.window(),
        is_bf16: u32::from(half == HalfType::Bf16),
        q_stride: operands.q.stride as u32,
        out_stride: operands.out.stride as u32,
        scale: heads.scale,
    };
    // Two heads read keys and values once, where that leaves no multiprocessor without work.
    let wide = kv.head_dim > 128;
    let num_multiprocessors = gpu.driver().facts().num_multiprocessors as usize;
    let in_pairs =
        group.is_multiple_of(2) && !wide && num_items * heads.num_heads >= 2 * num_multiprocessors;
    let heads_here = 1 + usize::from(in_pairs);
    let queries = if wide { MAX_ITEM_ROWS * kv.head_dim * 2 } else { 0 };
    let shape = Shape {
        grid: [num_items as u32, (heads.num_heads / heads_here) as u32, 1],
        threads: (heads_here * 128) as u32,
        shared_bytes: (2 * PREFILL_TILE * row_stride(kv) + queries) as u32,
    };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, shape, &params) }
}

/// Bytes from row to row of keys in shared memory: `Rows::kStride` of the kernels.
fn row_stride(kv: &PagedKv) -> usize {
    let bytes = kv.head_dim * kv.kv_type.num_bytes();
    if (bytes / 16).is_multiple_of(2) { bytes + 16 } else { bytes }
}

/// Warps and shared memory of a block: `DecodeShape` of the kernel.
fn decode_shape(kv: &PagedKv) -> (usize, usize) {
    let num_warps = if kv.head_dim > 128 { 2 } else { 4 };
    let stage_bytes = 2 * BLOCK_TOKENS * row_stride(kv);
    let num_stages = (72 * 1024 / (num_warps * stage_bytes)).clamp(2, 4);
    let sums = num_warps * DECODE_HEADS * (kv.head_dim + 4 + 2) * size_of::<f32>();
    (num_warps, (num_warps * num_stages * stage_bytes).max(sums))
}

fn no_kernel(head_dim: usize) -> DriverError {
    DriverError(format!(
        "there are no attention kernels for heads of {head_dim} values, only for {HEAD_DIMS:?}"
    ))
}

/// The names of a family's kernels, by type and width of heads.
macro_rules! kernels {
    ($name:ident, $prefix:literal, $($head_dim:literal)*) => {
        fn $name(kv_type: KvType, head_dim: usize) -> Option<&'static str> {
            match (kv_type, head_dim) {
                $(
                    (KvType::F16, $head_dim) => Some(concat!($prefix, "_f16_", $head_dim)),
                    (KvType::Bf16, $head_dim) => Some(concat!($prefix, "_bf16_", $head_dim)),
                    (KvType::E4m3, $head_dim) => Some(concat!($prefix, "_e4m3_", $head_dim)),
                )*
                _ => None,
            }
        }
    };
}
kernels!(decode_kernel, "decode", 16 32 64 80 96 128 256);
kernels!(prefill_kernel, "prefill", 16 32 64 80 96 128 256);

/// One row of one head in f64: `q:[D]`, `keys` and `values` `[positions, D]` up to the row's own.
#[must_use]
pub fn reference(q: &[f64], keys: &[f64], values: &[f64], heads: &QueryHeads) -> Vec<f64> {
    let head_dim = q.len();
    let first = heads.window.map_or(0, |window| (keys.len() / head_dim).saturating_sub(window));
    let rows =
        |x: &[f64]| x[first * head_dim..].chunks_exact(head_dim).map(<[f64]>::to_vec).collect();
    let (keys, values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (rows(keys), rows(values));
    let score = |key: &Vec<f64>| {
        f64::from(heads.scale) * q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; head_dim];
    for (value, weight) in values.iter().zip(weights) {
        out.iter_mut().zip(value).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}
