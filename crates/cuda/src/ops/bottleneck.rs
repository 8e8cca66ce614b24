//! Bottlenecks of adapters behind a linear.
//!
//! `y[t,:] += act(y[t,:] A^T + h_bias) B + shift`, `y:[T,N]` f32, `A, B:[rank,N]`, `h_bias:[rank]`,
//! `shift:[N]`. The products are those of low-rank updates, between them `kernels/lora/bottleneck.cu`.

use crate::adapter_table::Gain;
use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};
use crate::ops::gains::apply_gains;
use crate::ops::lora::{
    LoraInput, LoraTarget, OutType, Pieces, bgmv_expand, bgmv_shrink, h_width, num_splits,
    sgmv_expand, sgmv_shrink,
};
use weft_types::Activation;

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct NarrowParams {
    pieces: DevicePtr,
    y: DevicePtr,
    x: DevicePtr,
    site: u32,
    width: u32,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct ActivateParams {
    pieces: DevicePtr,
    h: DevicePtr,
    site: u32,
    num_rows: u32,
    h_width: u32,
    num_splits: u32,
}

/// Applies the bottlenecks of the adapters of pieces to `target.out`, f32; the target's site is that of
/// the bottleneck's record. The input's `x` is scratch for `[T, N]` numbers of `half`.
///
/// # Safety
/// The memory is there, and so are the adapters of all pieces.
///
/// # Errors
/// When the driver fails.
pub unsafe fn bottleneck(
    gpu: &Gpu,
    (half, pieces): (HalfType, Pieces),
    input: &LoraInput,
    target: LoraTarget,
) -> Result<(), DriverError> {
    if input.num_pieces == 0 || input.max_rank == 0 {
        return Ok(());
    }
    let LoraTarget { site, num_outputs: width, out: y } = target;
    let narrow = NarrowParams { pieces: input.pieces, y, x: input.x, site, width: width as u32 };
    let kernel = match half {
        HalfType::F16 => "bottleneck_narrow_f16",
        HalfType::Bf16 => "bottleneck_narrow_bf16",
    };
    let grid = [width.div_ceil(4 * 256) as u32, input.num_pieces as u32, 1];
    let num_splits = match pieces {
        Pieces::Decode => 1,
        Pieces::Prefill => num_splits(width),
    };
    let activate = ActivateParams {
        pieces: input.pieces,
        h: input.h,
        site,
        num_rows: input.num_rows as u32,
        h_width: h_width(input.max_rank) as u32,
        num_splits: num_splits as u32,
    };
    let activate_shape = Shape::of(input.num_pieces, 256);
    let types = (half, OutType::F32);
    // SAFETY: the caller's promise; the kernels take these structs.
    unsafe {
        gpu.launch(kernel, Shape { grid, threads: 256, shared_bytes: 0 }, &narrow)?;
        match pieces {
            Pieces::Decode => bgmv_shrink(gpu, half, input, &[target])?,
            Pieces::Prefill => sgmv_shrink(gpu, half, input, &[target])?,
        }
        gpu.launch("bottleneck_activate", activate_shape, &activate)?;
        match pieces {
            Pieces::Decode => bgmv_expand(gpu, types, input, &[target])?,
            Pieces::Prefill => sgmv_expand(gpu, types, input, &[target], 1)?,
        }
        let pieces = (input.pieces, input.num_pieces);
        apply_gains(gpu, None, pieces, (site, Gain::Out), (y, width))
    }
}

/// What a bottleneck consists of, in f64: `a, b:[rank,N]`, scales of rows included.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// `[rank, N]`
    pub a: &'a [f64],
    /// `[rank]`
    pub a_bias: &'a [f32],
    /// Between the two.
    pub activation: Activation,
    /// `[rank, N]`
    pub b: &'a [f64],
    /// `[N]`
    pub b_bias: &'a [f32],
}

impl Reference<'_> {
    /// One row of y afterwards.
    #[must_use]
    pub fn apply(&self, y: &[f64]) -> Vec<f64> {
        let mut out: Vec<f64> = y.iter().zip(self.b_bias).map(|(y, d)| y + f64::from(*d)).collect();
        let rows = self.a.chunks(y.len()).zip(self.b.chunks(y.len())).zip(self.a_bias);
        for ((a, b), bias) in rows {
            let sum: f64 = y.iter().zip(a).map(|(y, a)| y * a).sum();
            let h = activate_reference(self.activation, sum + f64::from(*bias));
            out.iter_mut().zip(b).for_each(|(out, b)| *out += h * b);
        }
        out
    }
}

/// The nonlinearity in f64, erf by its series.
#[must_use]
pub fn activate_reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Identity => x,
    }
}

/// `2/√π e^{-x²} Σ 2^n x^{2n+1} / (2n+1)!!`, all terms of one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()
}
