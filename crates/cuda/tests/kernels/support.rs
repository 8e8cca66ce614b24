//! A device for tests, random numbers, and comparisons.

use half::{bf16, f16};
use std::path::Path;
use std::sync::Arc;
use weft_cuda::{Buffer, EmulatedDriver, Gpu, HalfType, Order};

/// The emulated device, each launch in several orders of its threads.
pub(crate) fn gpu() -> Gpu {
    let library = match std::env::var("WEFT_EMULATOR") {
        Ok(path) => path,
        Err(_) => weft_emulator::LIBRARY.to_owned(),
    };
    let driver = EmulatedDriver::load(Path::new(&library), Order::Compared);
    Gpu::new(Arc::new(driver.expect("the emulator is built")))
}

/// Both types of activations.
pub(crate) const HALVES: [HalfType; 2] = [HalfType::F16, HalfType::Bf16];

/// Uniform numbers.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

/// Bits of the nearest 16-bit float.
pub(crate) fn to_half(half: HalfType, value: f32) -> u16 {
    match half {
        HalfType::F16 => f16::from_f32(value).to_bits(),
        HalfType::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

pub(crate) fn to_halves(half: HalfType, values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| to_half(half, value)).collect()
}

pub(crate) fn from_half(half: HalfType, bits: u16) -> f64 {
    match half {
        HalfType::F16 => f16::from_bits(bits).to_f64(),
        HalfType::Bf16 => bf16::from_bits(bits).to_f64(),
    }
}

/// What a device holds, as numbers.
pub(crate) fn halves(half: HalfType, buffer: &Buffer<u16>) -> Vec<f64> {
    let bits = buffer.read(0..buffer.len()).expect("the device works");
    bits.into_iter().map(|bits| from_half(half, bits)).collect()
}

pub(crate) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Half the distance between 1 and the next number.
pub(crate) fn precision(half: HalfType) -> f64 {
    match half {
        HalfType::F16 => 2f64.powi(-11),
        HalfType::Bf16 => 2f64.powi(-8),
    }
}

/// Each value is within `tolerance` of its reference, relative to the largest of all references.
#[track_caller]
pub(crate) fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-30f64, |max, value| max.max(value.abs()));
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs() / scale;
        assert!(error <= tolerance, "{what}: value {index} is {got}, not {want} ({error:.2e})");
    }
}
