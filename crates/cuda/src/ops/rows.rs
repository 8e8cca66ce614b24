//! What works on rows or numbers one by one: the gated activation, copies, and the choice of rows.
//!
//! Kernels: `kernels/activation/silu_mul.cu`, `kernels/rows/copy.cu`, `kernels/rows/gather.cu`.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct SiluMulParams {
    gate: DevicePtr,
    up: DevicePtr,
    num: u64,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct GatherParams {
    x: DevicePtr,
    rows: DevicePtr,
    out: DevicePtr,
    width: u32,
    pad: u32,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct CopyParams {
    x: DevicePtr,
    out: DevicePtr,
    num: u64,
    is_aligned: u32,
    pad: u32,
}

/// `gate = silu(gate) * up`, in place: `num` numbers of `half` each.
///
/// # Safety
/// The memory is there.
///
/// # Errors
/// When the driver fails.
pub unsafe fn silu_mul(
    gpu: &Gpu,
    half: HalfType,
    (gate, up): (DevicePtr, DevicePtr),
    num: usize,
) -> Result<(), DriverError> {
    if num == 0 {
        return Ok(());
    }
    let kernel = match half {
        HalfType::F16 => "silu_mul_f16",
        HalfType::Bf16 => "silu_mul_bf16",
    };
    let params = SiluMulParams { gate, up, num: num as u64 };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape::of(num.div_ceil(8 * 256), 256), &params) }
}

/// `out = x`: `num` numbers of 16 bits each.
///
/// # Safety
/// The memory is there.
///
/// # Errors
/// When the driver fails.
pub unsafe fn copy_halves(
    gpu: &Gpu,
    (x, out): (DevicePtr, DevicePtr),
    num: usize,
) -> Result<(), DriverError> {
    if num == 0 {
        return Ok(());
    }
    let is_aligned = u32::from(x.0.is_multiple_of(16) && out.0.is_multiple_of(16));
    let params = CopyParams { x, out, num: num as u64, is_aligned, pad: 0 };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch("copy_halves", Shape::of(num.div_ceil(8 * 256), 256), &params) }
}

/// `out[i,:] = x[rows[i],:]`, `x:[T,N]` f32, `rows:[R]` u32 in device memory, `out:[R,N]` f32.
///
/// # Safety
/// The memory is there, and rows are.
///
/// # Errors
/// When the driver fails.
pub unsafe fn gather(
    gpu: &Gpu,
    (x, rows, out): (DevicePtr, DevicePtr, DevicePtr),
    [num_rows, width]: [usize; 2],
) -> Result<(), DriverError> {
    if num_rows == 0 {
        return Ok(());
    }
    let params = GatherParams { x, rows, out, width: width as u32, pad: 0 };
    let threads = (width.div_ceil(4) as u32).next_multiple_of(32).min(256);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch("gather_f32", Shape::of(num_rows, threads), &params) }
}

/// The activation in f64.
#[must_use]
pub fn silu_mul_reference(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}
