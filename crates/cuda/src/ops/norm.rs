//! RMSNorm over the residual stream, and over heads.
//!
//! `out[t,:] = x[t,:] / sqrt(mean(x[t,:]²) + eps) * weight`. Kernels: `kernels/norm/rms_norm.cu`.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct RmsNormParams {
    x: DevicePtr,
    weight: DevicePtr,
    out: DevicePtr,
    num_rows: u32,
    width: u32,
    eps: f32,
    pad: u32,
}

/// `x:[T,N]` f32 → `out:[T,N]` of `half`, `weight:[N]` f32.
///
/// # Safety
/// The memory is there.
///
/// # Errors
/// When the driver fails.
pub unsafe fn rms_norm(
    gpu: &Gpu,
    half: HalfType,
    (x, weight, out): (DevicePtr, DevicePtr, DevicePtr),
    [num_rows, width]: [usize; 2],
    eps: f32,
) -> Result<(), DriverError> {
    let kernel = match half {
        HalfType::F16 => "rms_norm_f16",
        HalfType::Bf16 => "rms_norm_bf16",
    };
    // SAFETY: the caller's promise.
    unsafe { launch(gpu, kernel, (x, weight, out), [num_rows, width], eps) }
}

/// In place: `x:[T,N]` of `half`, `weight:[N]` f32.
///
/// # Safety
/// The memory is there.
///
/// # Errors
/// When the driver fails.
pub unsafe fn head_norm(
    gpu: &Gpu,
    half: HalfType,
    (x, weight): (DevicePtr, DevicePtr),
    [num_rows, width]: [usize; 2],
    eps: f32,
) -> Result<(), DriverError> {
    let kernel = match half {
        HalfType::F16 => "head_norm_f16",
        HalfType::Bf16 => "head_norm_bf16",
    };
    // SAFETY: the caller's promise.
    unsafe { launch(gpu, kernel, (x, weight, x), [num_rows, width], eps) }
}

unsafe fn launch(
    gpu: &Gpu,
    kernel: &'static str,
    (x, weight, out): (DevicePtr, DevicePtr, DevicePtr),
    [num_rows, width]: [usize; 2],
    eps: f32,
) -> Result<(), DriverError> {
    if num_rows == 0 {
        return Ok(());
    }
    let params = RmsNormParams {
        x,
        weight,
        out,
        num_rows: num_rows as u32,
        width: width as u32,
        eps,
        pad: 0,
    };
    let threads = (width as u32).next_multiple_of(32).min(512);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape::of(num_rows, threads), &params) }
}

/// The same in f64.
#[must_use]
pub fn reference(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let norm_row = |row: &[f64]| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        row.iter().zip(weight).map(|(v, &w)| v * scale * f64::from(w)).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(norm_row).collect()
}
