//! Gains and shifts of adapters, and the residual stream that waits for them.
//!
//! `x[t,:] *= gain_in`, or `y[t,:] = gain_out * y[t,:] + shift`, `x, y:[T,N]`, gains and shifts `[N]` f32:
//! what the adapter of a row has at a site. Kernels: `kernels/lora/gains.cu`, `kernels/lora/aside.cu`.

use crate::adapter_table::Gain;
use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};

/// Pieces of a step: an array of [`crate::work_list::LoraPiece`], with padding.
pub type PieceList = (DevicePtr, usize);

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct GainsParams {
    pieces: DevicePtr,
    x: DevicePtr,
    site: u32,
    width: u32,
    is_input: u32,
    pad: u32,
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct AsideParams {
    pieces: DevicePtr,
    y: DevicePtr,
    aside: DevicePtr,
    site: u32,
    bottleneck: u32,
    width: u32,
    pad: u32,
}

/// In place; x is of `half`, or of f32 for `None`. For rows whose adapter has vectors at `site`. Input
/// gains are for the base's x, not for that of updates; output gains come after updates.
///
/// # Safety
/// The memory is there, and so are the adapters of all pieces.
///
/// # Errors
/// When the driver fails.
pub unsafe fn apply_gains(
    gpu: &Gpu,
    half: Option<HalfType>,
    (pieces, num_pieces): PieceList,
    (site, gain): (u32, Gain),
    (x, width): (DevicePtr, usize),
) -> Result<(), DriverError> {
    if num_pieces == 0 {
        return Ok(());
    }
    let kernel = match half {
        Some(HalfType::F16) => "apply_gains_f16",
        Some(HalfType::Bf16) => "apply_gains_bf16",
        None => "apply_gains_f32",
    };
    let is_input = u32::from(gain == Gain::In);
    let params = GainsParams { pieces, x, site, width: width as u32, is_input, pad: 0 };
    let grid = [width.div_ceil(8 * 256) as u32, num_pieces as u32, 1];
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, Shape { grid, threads: 256, shared_bytes: 0 }, &params) }
}

/// The residual stream before and after a linear that adapters change.
#[derive(Clone, Copy, Debug)]
pub struct Aside {
    /// Of the linear.
    pub site: u32,
    /// Of the bottleneck behind it: see [`crate::adapter_table::bottleneck_index`].
    pub bottleneck: u32,
    /// The residual stream, `[T, N]` f32.
    pub y: DevicePtr,
    /// Scratch, the same.
    pub aside: DevicePtr,
    /// N
    pub width: usize,
}

impl Aside {
    /// `aside[t,:] = y[t,:], y[t,:] = 0` for rows whose adapter changes the linear's output: what is
    /// added to y is then that output.
    ///
    /// # Safety
    /// The memory is there, and so are the adapters of all pieces.
    ///
    /// # Errors
    /// When the driver fails.
    pub unsafe fn set_aside(&self, gpu: &Gpu, pieces: PieceList) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(gpu, "set_aside", pieces) }
    }

    /// `y[t,:] += aside[t,:]` for the same rows.
    ///
    /// # Safety
    /// As above.
    ///
    /// # Errors
    /// When the driver fails.
    pub unsafe fn put_back(&self, gpu: &Gpu, pieces: PieceList) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(gpu, "put_back", pieces) }
    }

    unsafe fn launch(
        &self,
        gpu: &Gpu,
        kernel: &'static str,
        (pieces, num_pieces): PieceList,
    ) -> Result<(), DriverError> {
        if num_pieces == 0 {
            return Ok(());
        }
        let &Self { site, bottleneck, y, aside, width } = self;
        let params =
            AsideParams { pieces, y, aside, site, bottleneck, width: width as u32, pad: 0 };
        let grid = [width.div_ceil(4 * 256) as u32, num_pieces as u32, 1];
        // SAFETY: the caller's promise; the kernel takes this struct.
        unsafe { gpu.launch(kernel, Shape { grid, threads: 256, shared_bytes: 0 }, &params) }
    }
}

/// One row in f64.
#[must_use]
pub fn reference(x: &[f64], gain: Option<&[f32]>, shift: Option<&[f32]>) -> Vec<f64> {
    let of = |vector: Option<&[f32]>, i: usize| vector.map(|vector| f64::from(vector[i]));
    let number =
        |(i, x): (usize, &f64)| x * of(gain, i).unwrap_or(1.0) + of(shift, i).unwrap_or(0.0);
    x.iter().enumerate().map(number).collect()
}
