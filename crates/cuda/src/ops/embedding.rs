//! Rows of a weight matrix, by token.
//!
//! `out[t,:] = W[tokens[t],:]   tokens:[T] u32  W:[N,K] packed  out:[T,K] f32`.
//! Kernels: `kernels/embedding/embed.cu`.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};
use crate::ops::matmul::{kernel_format, offset_and_flags};
use crate::weights::CudaLinear;

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct EmbedParams {
    tokens: DevicePtr,
    codes: DevicePtr,
    scales: DevicePtr,
    codebook: DevicePtr,
    out: DevicePtr,
    num_rows: u32,
    num_inputs: u32,
    num_outputs: u32,
    num_steps: u32,
    flags: u32,
    offset: u32,
}

/// By format, as [`kernel_format`] counts them, and type.
const KERNELS: [[&str; 2]; 4] = [
    ["embed_dense_f16", "embed_dense_bf16"],
    ["embed_w4_f16", "embed_w4_bf16"],
    ["embed_w8_f16", "embed_w8_bf16"],
    ["embed_codebook_f16", "embed_codebook_bf16"],
];

/// `tokens:[T]` u32 → `out:[T,K]` f32. A token that the weights do not have gives a row of NaNs.
///
/// # Safety
/// The memory is there.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the weights' inputs are stored in another order.
pub unsafe fn embed(
    gpu: &Gpu,
    weight: &CudaLinear,
    (tokens, out): (DevicePtr, DevicePtr),
    num_rows: usize,
) -> Result<(), DriverError> {
    if num_rows == 0 || weight.num_inputs() == 0 {
        return Ok(());
    }
    assert!(weight.order().is_none(), "an embedding has its inputs in order");
    let [codes, scales, codebook] = weight.operands();
    let (offset, flags) = offset_and_flags(weight.format());
    let params = EmbedParams {
        tokens,
        codes,
        scales,
        codebook,
        out,
        num_rows: num_rows as u32,
        num_inputs: weight.num_inputs() as u32,
        num_outputs: weight.num_outputs() as u32,
        num_steps: weight.num_steps() as u32,
        flags,
        offset,
    };
    let half = usize::from(weight.half() == HalfType::Bf16);
    let kernel = KERNELS[kernel_format(weight.format())][half];
    let threads = (weight.num_inputs() as u32).div_ceil(4).next_multiple_of(32).min(256);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape::of(num_rows, threads), &params) }
}

/// The same in f64: rows of `weight:[N,K]`.
#[must_use]
pub fn reference(weight: &[f64], num_inputs: usize, tokens: &[u32]) -> Vec<f64> {
    tokens
        .iter()
        .flat_map(|&token| &weight[token as usize * num_inputs..][..num_inputs])
        .copied()
        .collect()
}
