//! Random weights, written by the device. Knows what codes mean, not where they lie.

use super::{WeightFormat, half_bits};
use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Buffer, Gpu, HalfType};

/// As in `kernels/matmul/random_weights.cu`: `out[i] = random word`.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
pub(super) struct Random {
    out: DevicePtr,
    len: u64,
    kind: u32,
    seed: u32,
    num_codes: u32,
    constant: u32,
    bound: f32,
    pad: u32,
}

impl Random {
    const CONSTANT: u32 = 0;
    const BITS: u32 = 1;
    const BYTES: u32 = 2;
    const F16: u32 = 3;
    const BF16: u32 = 4;

    /// Codes and a scale such that the variance of a weight is 1 / K.
    pub(super) fn new(half: HalfType, format: WeightFormat, num_inputs: usize, seed: u32) -> Self {
        let deviation = (1.0 / num_inputs as f32).sqrt();
        let pair = |low: f32, high: f32| {
            u32::from(half_bits(half, low)) | u32::from(half_bits(half, high)) << 16
        };
        // Mean of squares of codes 0 .. n around their middle.
        let spread = |n: f32| ((n * n - 1.0) / 12.0).sqrt();
        let mut random = Self {
            out: DevicePtr::NULL,
            len: 0,
            kind: Self::BITS,
            seed,
            num_codes: 0,
            constant: 0,
            bound: 0.0,
            pad: 0,
        };
        match format {
            WeightFormat::Dense => {
                random.kind = if half == HalfType::F16 { Self::F16 } else { Self::BF16 };
                random.bound = deviation * 3f32.sqrt();
            }
            WeightFormat::W4 => {
                let scale = deviation / spread(16.0);
                random.constant = pair(scale, -7.5 * scale);
            }
            WeightFormat::W8 { offset, has_min, .. } => {
                // Without mins, codes lie around the offset.
                let offset = f32::from(offset);
                let num_codes =
                    if has_min || offset == 0.0 { 256.0 } else { (2.0 * offset).min(256.0) };
                let scale = deviation / spread(num_codes);
                random.kind = Self::BYTES;
                random.num_codes = num_codes as u32;
                random.constant = if has_min {
                    pair(scale, (offset - (num_codes - 1.0) / 2.0) * scale)
                } else {
                    pair(scale, scale)
                };
            }
            WeightFormat::ZeroPoint { bits: 4 } => {
                random.constant = pair(deviation / spread(16.0), 7.5);
            }
            WeightFormat::ZeroPoint { .. } => {
                random.constant = pair(deviation / spread(256.0), -0.5);
            }
            WeightFormat::Codebook(book) => {
                let mean = book.values().iter().map(|value| value * value).sum::<f32>() / 16.0;
                random.constant = (deviation / mean.sqrt()).to_bits();
            }
        }
        random
    }

    /// The word that all scales consist of.
    pub(super) fn constant(self) -> Self {
        Self { kind: Self::CONSTANT, ..self }
    }

    pub(super) fn fill(self, gpu: &Gpu, to: &Buffer<u8>) -> Result<(), DriverError> {
        let len = to.len() / 4;
        let params = Self { out: to.ptr(), len: len as u64, ..self };
        let num_blocks = len.div_ceil(256).clamp(1, 4096);
        // SAFETY: the buffer was just made and is as long; the kernel takes this struct.
        unsafe { gpu.launch("random_weights", Shape::of(num_blocks, 256), &params) }
    }
}
