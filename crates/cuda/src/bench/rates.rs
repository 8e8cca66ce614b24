//! What the device can do at its best, with our own kernels: bytes and operations a second. Bounds
//! come of these, not of a data sheet.

use super::inputs::{Rng, Sets};
use super::session::Session;
use super::{KernelRow, Work};
use crate::driver::{DevicePtr, DriverError};
use crate::ops::matmul::{Linear, Output, linear};
use crate::ops::rows::{gather, silu_mul};
use crate::weights::{CudaLinear, WeightFormat};

/// Bytes that the copy reads: far more than the second level cache.
const COPY_BYTES: u64 = 1 << 30;
/// f32 of a row of the copy: a block's threads take it at once.
const COPY_WIDTH: usize = 1024;
/// Rows of the large linear.
const MATMUL_ROWS: usize = 4096;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Read or written, by the better of a copy of rows and the gated activation.
    pub bytes_per_s: f64,
    /// By the prefill kernel with dense weights.
    pub flops_per_s: f64,
}

impl Rates {
    /// Milliseconds that the work takes at the least.
    #[must_use]
    pub fn bound_ms(&self, work: Work) -> f64 {
        1e3 * (work.bytes / self.bytes_per_s).max(work.flops / self.flops_per_s)
    }

    /// Whether operations, not bytes, are the bound.
    #[must_use]
    pub fn is_compute_bound(&self, work: Work) -> bool {
        work.flops / self.flops_per_s > work.bytes / self.bytes_per_s
    }

    /// Part of the bound that a row reaches, 1 is all; none without a time.
    #[must_use]
    pub fn share_of_bound(&self, row: &KernelRow) -> Option<f64> {
        row.ms.map(|ms| self.bound_ms(row.work) / ms)
    }
}

/// Takes some seconds.
pub(super) fn measure(session: &Session<'_>) -> Result<Rates, DriverError> {
    let bytes_per_s = copy_rate(session)?.max(activation_rate(session)?);
    Ok(Rates { bytes_per_s, flops_per_s: matmul_rate(session)? })
}

/// A quarter of the memory at most.
fn copy_bytes(session: &Session<'_>) -> Result<usize, DriverError> {
    Ok(COPY_BYTES.min(session.gpu.driver().free_memory()? / 8) as usize)
}

fn copy_rate(session: &Session<'_>) -> Result<f64, DriverError> {
    let gpu = session.gpu.clone();
    let num_rows = copy_bytes(session)? / (COPY_WIDTH * size_of::<f32>());
    let len = num_rows * COPY_WIDTH;
    let (x, out) = (gpu.alloc::<f32>(len)?, gpu.alloc::<f32>(len)?);
    let rows = gpu.upload(&(0..num_rows as u32).collect::<Vec<_>>())?;
    let operands = (x.ptr(), rows.ptr(), out.ptr());
    // SAFETY: the buffers are as long as the shapes say.
    let launch = |_| unsafe { gather(&gpu, operands, [num_rows, COPY_WIDTH]) };
    let ms = session.time(1, launch)?;
    Ok(2.0 * (len * size_of::<f32>()) as f64 / (1e-3 * ms))
}

fn activation_rate(session: &Session<'_>) -> Result<f64, DriverError> {
    let gpu = session.gpu.clone();
    let num = copy_bytes(session)? / (2 * size_of::<u16>());
    let (gate, up) = (gpu.alloc::<u16>(num)?, gpu.alloc::<u16>(num)?);
    // SAFETY: the buffers are as long as this says.
    let launch = |_| unsafe { silu_mul(&gpu, session.half, (gate.ptr(), up.ptr()), num) };
    let ms = session.time(1, launch)?;
    Ok(3.0 * (num * size_of::<u16>()) as f64 / (1e-3 * ms))
}

fn matmul_rate(session: &Session<'_>) -> Result<f64, DriverError> {
    let (gpu, half) = (session.gpu.clone(), session.half);
    let shape = [2 * session.spec.intermediate_size, session.spec.hidden_size];
    let weight = CudaLinear::random(&gpu, half, WeightFormat::Dense, shape, 1)?;
    let x = Rng::new(1).halves(half, MATMUL_ROWS * shape[1]);
    let x = Sets::new(&gpu, 1, &x)?;
    let out = gpu.alloc::<u16>(MATMUL_ROWS * shape[0])?;
    let part = Linear { weight: &weight, bias: DevicePtr::NULL, out: Output::Half(out.ptr()) };
    // SAFETY: the buffers are as long as the shapes say.
    let launch = |_| unsafe { linear(&gpu, x.ptr(0), MATMUL_ROWS, &[part]) };
    let ms = session.time(1, launch)?;
    Ok(2.0 * (MATMUL_ROWS * shape[0] * shape[1]) as f64 / (1e-3 * ms))
}
