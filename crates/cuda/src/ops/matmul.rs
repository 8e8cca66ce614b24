//! Linears with quantized weights, up to three of them over the same inputs in one launch.
//!
//! `out[t,n] (+)= sum_k x[t,k] W[n,k] + bias[n]   x:[T,K] T  W:[N,K] packed  bias:[N] f32  out:[T,N] T or f32`.
//! Kernels: `kernels/matmul/linear_decode.cuh` for up to 64 rows, `linear_prefill.cuh` for more.

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};
use crate::weights::{CudaLinear, WeightFormat, zero_point_offset};

/// Linears of one launch.
const MAX_PARTS: usize = 3;
/// Rows up to which a block takes them all.
const MAX_DECODE_ROWS: usize = 64;

/// As in the kernels.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct LinearPart {
    codes: DevicePtr,
    scales: DevicePtr,
    codebook: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    num_outputs: u32,
    num_tiles: u32,
    first_block: u32,
    flags: u32,
    offset: u32,
    pad: u32,
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct LinearParams {
    parts: [LinearPart; MAX_PARTS],
    x: DevicePtr,
    num_rows: u32,
    num_inputs: u32,
    num_steps: u32,
    num_parts: u32,
    x_is_aligned: u32,
    pad: u32,
}

pub(super) const HAS_MIN: u32 = 1;
pub(super) const GROUP_16: u32 = 2;
const OUT_F32: u32 = 4;
const ACCUMULATE: u32 = 8;
const OUT_VECTORS: u32 = 16;
const HAS_ZERO: u32 = 32;

/// Where results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Over what is there, in the activations' type.
    Half(DevicePtr),
    /// Over what is there, in f32.
    F32(DevicePtr),
    /// Added to the f32 that is there.
    AddF32(DevicePtr),
}

/// One linear.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `W:[N,K]`.
    pub weight: &'a CudaLinear,
    /// `bias:[N]` f32, or [`DevicePtr::NULL`].
    pub bias: DevicePtr,
    /// `out:[T,N]`.
    pub out: Output,
}

/// Kernels by format, type and shape: those for up to 8, 16, 32, 64 rows, and for more.
macro_rules! kernels {
    ($format:literal, $half:literal) => {
        [
            concat!("linear_decode_", $format, "_", $half, "_rows8"),
            concat!("linear_decode_", $format, "_", $half, "_rows16"),
            concat!("linear_decode_", $format, "_", $half, "_rows32"),
            concat!("linear_decode_", $format, "_", $half, "_rows64"),
            concat!("linear_prefill_", $format, "_", $half),
        ]
    };
    ($format:literal) => {
        [kernels!($format, "f16"), kernels!($format, "bf16")]
    };
}
const KERNELS: [[[&str; 5]; 2]; 4] =
    [kernels!("dense"), kernels!("w4"), kernels!("w8"), kernels!("codebook")];

/// Formats of one kernel.
pub(super) fn kernel_format(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Dense => 0,
        WeightFormat::W4 | WeightFormat::ZeroPoint { bits: 4 } => 1,
        WeightFormat::W8 { .. } | WeightFormat::ZeroPoint { .. } => 2,
        WeightFormat::Codebook(_) => 3,
    }
}

pub(super) fn offset_and_flags(format: WeightFormat) -> (u32, u32) {
    match format {
        WeightFormat::W8 { group, offset, has_min } => {
            let group = if group == 16 { GROUP_16 } else { 0 };
            (u32::from(offset), group | if has_min { HAS_MIN } else { 0 })
        }
        WeightFormat::ZeroPoint { bits } => {
            (u32::from(zero_point_offset(bits)), HAS_MIN | HAS_ZERO)
        }
        _ => (0, 0),
    }
}

/// What a launch looks like for so many rows; as the kernels' templates say.
struct Plan {
    kernel: usize,
    /// Tiles of sixteen outputs of a block.
    tiles: usize,
    threads: u32,
    shared_bytes: usize,
}

impl Plan {
    fn new(num_rows: usize, num_steps: usize, has_codebook: bool) -> Self {
        let table_bytes = if has_codebook { 256 * 32 * 4 } else { 0 };
        if num_rows > MAX_DECODE_ROWS {
            let stages_bytes = 3 * 128 * 64 * 2;
            let shared_bytes = stages_bytes + table_bytes;
            return Self { kernel: 4, tiles: 8, threads: 256, shared_bytes };
        }
        let (kernel, rows, tiles, row_parts, max_warps) = match num_rows {
            0..=8 => (0, 8, 2, 1, 16),
            9..=16 => (1, 16, 2, 1, 16),
            17..=32 => (2, 32, 2, 1, 8),
            _ => (3, 64, 4, 2, 8),
        };
        let k_parts = num_steps.clamp(1, max_warps / row_parts);
        // Rows of sixteen sums, four floats apart.
        let sums_bytes = k_parts * rows * 20 * 4;
        let threads = (k_parts * row_parts * 32) as u32;
        Self { kernel, tiles, threads, shared_bytes: sums_bytes.max(table_bytes) }
    }
}

/// `x:[T,K]` in the weights' type of activations. Linears of the same kernel that follow each other,
/// up to three, are one launch. A row's result depends on that row and on the kernel, which the number
/// of rows picks.
/// Columns of `x` are in the order of the weights: see `rows::gather_columns`.
///
/// # Safety
/// The memory is there, and the linears write to different places.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When linears have different inputs or types, or quantized ones read rows that are not aligned to 16
/// bytes.
pub unsafe fn linear(
    gpu: &Gpu,
    x: DevicePtr,
    num_rows: usize,
    linears: &[Linear<'_>],
) -> Result<(), DriverError> {
    let kernel = |linear: &Linear<'_>| kernel_format(linear.weight.format());
    let Some(first) = linears.first() else { return Ok(()) };
    let (half, num_inputs) = (first.weight.half(), first.weight.num_inputs());
    for linear in linears {
        assert_eq!(linear.weight.half(), half, "linears of the same x have its type");
        assert_eq!(linear.weight.num_inputs(), num_inputs, "linears of the same x have its inputs");
    }
    if num_rows == 0 || num_inputs == 0 {
        return Ok(());
    }
    for same in linears.chunk_by(|a, b| kernel(a) == kernel(b)) {
        for parts in same.chunks(MAX_PARTS) {
            // SAFETY: the caller's promise.
            unsafe { launch(gpu, half, (x, num_rows), parts)? };
        }
    }
    Ok(())
}

unsafe fn launch(
    gpu: &Gpu,
    half: HalfType,
    (x, num_rows): (DevicePtr, usize),
    linears: &[Linear<'_>],
) -> Result<(), DriverError> {
    let weight = linears[0].weight;
    let (format, num_inputs) = (kernel_format(weight.format()), weight.num_inputs());
    let x_is_aligned = num_inputs.is_multiple_of(8) && x.0.is_multiple_of(16);
    assert!(x_is_aligned || format == 0, "quantized linears read rows of x aligned to 16 bytes");
    let plan = Plan::new(num_rows, weight.num_steps(), format == 3);
    let mut parts = [LinearPart::default(); MAX_PARTS];
    let mut num_blocks = 0;
    for (part, linear) in parts.iter_mut().zip(linears) {
        *part = part_of(linear, num_blocks as u32);
        num_blocks += linear.weight.num_tiles().div_ceil(plan.tiles);
    }
    if num_blocks == 0 {
        return Ok(());
    }
    let params = LinearParams {
        parts,
        x,
        num_rows: num_rows as u32,
        num_inputs: num_inputs as u32,
        num_steps: weight.num_steps() as u32,
        num_parts: linears.len() as u32,
        x_is_aligned: u32::from(x_is_aligned),
        pad: 0,
    };
    // Prefill: blocks of the same outputs are neighbours.
    let grid = if plan.kernel == 4 {
        [num_rows.div_ceil(128) as u32, num_blocks as u32, 1]
    } else {
        [num_blocks as u32, 1, 1]
    };
    let shape = Shape { grid, threads: plan.threads, shared_bytes: plan.shared_bytes as u32 };
    let half = usize::from(half == HalfType::Bf16);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(KERNELS[format][half][plan.kernel], shape, &params) }
}

fn part_of(linear: &Linear<'_>, first_block: u32) -> LinearPart {
    let weight = linear.weight;
    let [codes, scales, codebook] = weight.operands();
    let (offset, mut flags) = offset_and_flags(weight.format());
    let out = match linear.out {
        Output::Half(out) => out,
        Output::F32(out) => {
            flags |= OUT_F32;
            out
        }
        Output::AddF32(out) => {
            flags |= OUT_F32 | ACCUMULATE;
            out
        }
    };
    if weight.num_outputs().is_multiple_of(8) && out.0.is_multiple_of(16) {
        flags |= OUT_VECTORS;
    }
    LinearPart {
        codes,
        scales,
        codebook,
        bias: linear.bias,
        out,
        num_outputs: weight.num_outputs() as u32,
        num_tiles: weight.num_tiles() as u32,
        first_block,
        flags,
        offset,
        pad: 0,
    }
}

/// The same in f64: `x:[T,K]`, `weight:[N,K]`.
#[must_use]
pub fn reference(x: &[f64], weight: &[f64], num_inputs: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(num_inputs) {
        for (n, weight) in weight.chunks_exact(num_inputs).enumerate() {
            let sum: f64 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
            out.push(sum + bias.map_or(0.0, |bias| f64::from(bias[n])));
        }
    }
    out
}
