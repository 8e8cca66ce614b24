//! Random numbers, sets of them on the device, and how far a result is from what it should be.

use super::Work;
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use half::{bf16, f16};

/// Sets begin at multiples of so many values: of 256 bytes, as allocations do.
const ALIGNMENT: usize = 256;

/// Uniform numbers.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub(super) fn halves(&mut self, half: HalfType, len: usize) -> Vec<u16> {
        (0..len).map(|_| to_half(half, self.float())).collect()
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// 0 .. len in any order.
    pub(super) fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Bits of the nearest 16-bit float.
pub(super) fn to_half(half: HalfType, value: f32) -> u16 {
    match half {
        HalfType::F16 => f16::from_f32(value).to_bits(),
        HalfType::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

/// What 16-bit floats stand for.
pub(super) fn from_halves(half: HalfType, bits: &[u16]) -> Vec<f64> {
    let number = |&bits: &u16| match half {
        HalfType::F16 => f16::from_bits(bits).to_f64(),
        HalfType::Bf16 => bf16::from_bits(bits).to_f64(),
    };
    bits.iter().map(number).collect()
}

/// The same of bytes.
pub(super) fn from_half_bytes(half: HalfType, bytes: &[u8]) -> Vec<f64> {
    let bits = bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    from_halves(half, &bits.collect::<Vec<_>>())
}

/// What the bytes of f32 stand for.
pub(super) fn from_f32_bytes(bytes: &[u8]) -> Vec<f64> {
    let values = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    values.map(f64::from).collect()
}

pub(super) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Half the distance between 1 and the next number.
pub(super) fn precision(half: HalfType) -> f64 {
    match half {
        HalfType::F16 => 2f64.powi(-11),
        HalfType::Bf16 => 2f64.powi(-8),
    }
}

/// The same values several times, each at a place of its own.
pub(super) struct Sets<T> {
    buffer: Buffer<T>,
    len: usize,
    stride: usize,
}

impl<T: bytemuck::Pod> Sets<T> {
    pub(super) fn new(gpu: &Gpu, num_sets: usize, values: &[T]) -> Result<Self, DriverError> {
        let mut sets = Self::empty(gpu, num_sets, values.len())?;
        for set in 0..num_sets {
            sets.buffer.write(set * sets.stride, values)?;
        }
        Ok(sets)
    }

    /// For results.
    pub(super) fn empty(gpu: &Gpu, num_sets: usize, len: usize) -> Result<Self, DriverError> {
        let stride = len.next_multiple_of(ALIGNMENT);
        Ok(Self { buffer: gpu.alloc(num_sets * stride)?, len, stride })
    }

    pub(super) fn ptr(&self, set: usize) -> DevicePtr {
        self.buffer.at(set * self.stride)
    }

    /// The first set, after what the device does now.
    pub(super) fn read(&self) -> Result<Vec<T>, DriverError> {
        self.buffer.read(0..self.len)
    }
}

/// Up to `max` of `len`, with the first and the last.
pub(super) fn sample(len: usize, max: usize) -> Vec<usize> {
    let num = len.min(max);
    (0..num).map(|i| if num == 1 { 0 } else { i * (len - 1) / (num - 1) }).collect()
}

/// The largest difference, relative to the largest value wanted.
#[derive(Default)]
pub(super) struct Deviation {
    difference: f64,
    largest: f64,
}

impl Deviation {
    pub(super) fn add(&mut self, got: &[f64], want: &[f64]) {
        if got.len() != want.len() {
            self.difference = f64::INFINITY;
        }
        for (got, want) in got.iter().zip(want) {
            let difference = (got - want).abs();
            let is_number = difference.is_finite();
            self.difference =
                if is_number { self.difference.max(difference) } else { f64::INFINITY };
            self.largest = self.largest.max(want.abs());
        }
    }

    pub(super) fn value(&self) -> f64 {
        self.difference / self.largest.max(1e-30)
    }

    pub(super) fn of(got: &[f64], want: &[f64]) -> f64 {
        let mut deviation = Self::default();
        deviation.add(got, want);
        deviation.value()
    }
}

impl Work {
    pub(super) fn bytes(bytes: usize) -> Self {
        Self { bytes: bytes as f64, flops: 0.0 }
    }
}
