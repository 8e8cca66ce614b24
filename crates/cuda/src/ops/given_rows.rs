//! Rows that adapters give instead of computed ones: embeddings of tokens, keys and values of prefixes.
//!
//! `out[rows[i].row,:] = rows[i]`, `out:[T,K]` f32; and `k = given[2 l n + i,:], v = given[(2 l + 1) n +
//! i,:]` into the paged cache, for virtual token i of n in layer l. Kernels:
//! `kernels/embedding/given_rows.cu`, `kernels/attention/prefix_store.cu`.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::Gpu;
use crate::ops::kv_cache::{KvType, PagedKv, PagedKvParams};
use bytemuck::{Pod, Zeroable};

/// A row of f32, f16 or bf16 in an adapter's pages, or none: zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct GivenRow {
    /// Its first number, or null.
    pub numbers: DevicePtr,
    /// Which row of the step it is for.
    pub row: u32,
    /// As in the kernels.
    pub dtype: u32,
}

/// Keys and values of a virtual token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PrefixRow {
    /// The adapter's.
    pub table: DevicePtr,
    /// Which row of the step it is.
    pub row: u32,
    /// Which virtual token.
    pub token: u32,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct GivenRowsParams {
    rows: DevicePtr,
    out: DevicePtr,
    width: u32,
    pad: u32,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct PrefixStoreParams {
    kv: PagedKvParams,
    rows: DevicePtr,
    blocks: DevicePtr,
    offsets: DevicePtr,
    site: u32,
    head_dim: u32,
}

/// Overwrites rows of `out:[T,K]` f32; `rows:[num_rows]` of [`GivenRow`].
///
/// # Safety
/// The memory is there, and so are the adapters.
///
/// # Errors
/// When the driver fails.
pub unsafe fn given_rows(
    gpu: &Gpu,
    (rows, num_rows): (DevicePtr, usize),
    (out, width): (DevicePtr, usize),
) -> Result<(), DriverError> {
    if num_rows == 0 {
        return Ok(());
    }
    let params = GivenRowsParams { rows, out, width: width as u32, pad: 0 };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch("given_rows", Shape::of(num_rows, 256), &params) }
}

/// Stores the keys and values of `rows:[num_rows]` of [`PrefixRow`] in the places of these rows of the
/// step; `site` is [`crate::adapter_table::prefix_index`].
///
/// # Safety
/// The memory is there, and so are the adapters.
///
/// # Errors
/// When the driver fails.
pub unsafe fn prefix_store(
    gpu: &Gpu,
    kv: &PagedKv,
    (rows, num_rows): (DevicePtr, usize),
    [blocks, offsets]: [DevicePtr; 2],
    site: u32,
) -> Result<(), DriverError> {
    if num_rows == 0 {
        return Ok(());
    }
    let kernel = match kv.kv_type {
        KvType::F16 => "prefix_store_f16",
        KvType::Bf16 => "prefix_store_bf16",
        KvType::E4m3 => "prefix_store_e4m3",
    };
    let (kv, head_dim) = (kv.params(), kv.head_dim as u32);
    let params = PrefixStoreParams { kv, rows, blocks, offsets, site, head_dim };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape::of(num_rows, 256), &params) }
}
