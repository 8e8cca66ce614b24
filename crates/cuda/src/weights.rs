//! A linear's weights on the device, in the order in which its tensor cores read them.
//!
//! In: the CPU's packed linears, plain 4-bit codes with their absmax, or nothing (random weights). Out:
//! buffers for the kernels of `kernels/matmul`; `weights.cuh` there has the layout. Nothing is
//! requantized; scales and mins are rounded to the activations' type, which the kernels compute in.

pub(crate) mod layout;
mod random;

use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use half::{bf16, f16};
use layout::{Row, STEP, TILE, pack};
use random::Random;
use weft_kernels::PackedLinear;
use weft_kernels::weight::Format;

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// In the activations' type.
    Dense,
    /// `scale * code + min`: four-bit codes, groups of 32 inputs.
    W4,
    /// `scale * (code - offset) + min`: eight-bit codes.
    W8 {
        /// Inputs that share a scale: 16 or 32.
        group: usize,
        /// Subtracted from a code before scaling.
        offset: u8,
        /// Whether each group has a min.
        has_min: bool,
    },
    /// `codebook[code] * absmax`: four-bit codes, quantiles of a normal distribution, an absmax for 64
    /// inputs of a row.
    Nf4,
    /// The same with a codebook of four-bit floats.
    Fp4,
}

/// Of NF4 (Dettmers et al. 2023).
pub const NF4_CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Of FP4: a sign, two bits of exponent, one of mantissa; the largest is 1.
pub const FP4_CODEBOOK: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    -0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// A weight matrix `[num_outputs, num_inputs]` on the device.
#[derive(Debug)]
pub struct CudaLinear {
    half: HalfType,
    format: WeightFormat,
    num_inputs: usize,
    num_outputs: usize,
    codes: Buffer<u8>,
    scales: Option<Buffer<u8>>,
    codebook: Option<Buffer<f32>>,
}

impl CudaLinear {
    /// The CPU's weights. Its floats become 16-bit ones of type `half`; the largest are clamped to it.
    ///
    /// # Errors
    /// When there is not enough memory or the driver fails.
    pub fn from_packed(
        gpu: &Gpu,
        half: HalfType,
        packed: &PackedLinear,
    ) -> Result<Self, DriverError> {
        let format = match packed.format() {
            Format::F32 | Format::F16 | Format::Bf16 => WeightFormat::Dense,
            Format::W4 => WeightFormat::W4,
            Format::W8 { group, offset, has_min } => WeightFormat::W8 { group, offset, has_min },
        };
        let shape = [packed.num_outputs(), packed.num_inputs()];
        let bytes = pack(format, shape, |row, to| fill_from_packed(half, packed, row, to));
        Self::uploaded(gpu, half, format, shape, &bytes)
    }

    /// NF4: `codes:[N,K]`, one in a byte, row by row, and `absmax:[N,K/64]`.
    ///
    /// # Errors
    /// When K is not a multiple of 64, there is not enough memory or the driver fails.
    ///
    /// # Panics
    /// When lengths do not fit the shape.
    pub fn from_nf4(
        gpu: &Gpu,
        half: HalfType,
        shape: [usize; 2],
        codes: &[u8],
        absmax: &[f32],
    ) -> Result<Self, DriverError> {
        Self::from_codebook(gpu, half, WeightFormat::Nf4, shape, (codes, absmax))
    }

    /// FP4, as [`Self::from_nf4`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn from_fp4(
        gpu: &Gpu,
        half: HalfType,
        shape: [usize; 2],
        codes: &[u8],
        absmax: &[f32],
    ) -> Result<Self, DriverError> {
        Self::from_codebook(gpu, half, WeightFormat::Fp4, shape, (codes, absmax))
    }

    fn from_codebook(
        gpu: &Gpu,
        half: HalfType,
        format: WeightFormat,
        [num_outputs, num_inputs]: [usize; 2],
        (codes, absmax): (&[u8], &[f32]),
    ) -> Result<Self, DriverError> {
        check_inputs(format, num_inputs)?;
        let num_blocks = num_inputs / format.group();
        assert_eq!(codes.len(), num_outputs * num_inputs, "a code for each weight");
        assert_eq!(absmax.len(), num_outputs * num_blocks, "an absmax for each block");
        let shape = [num_outputs, num_inputs];
        let bytes = pack(format, shape, |row, to| {
            for (to, &code) in to.codes.iter_mut().zip(&codes[row * num_inputs..]) {
                *to = u16::from(code);
            }
            let absmax = &absmax[row * num_blocks..][..num_blocks];
            to.scales.copy_from_slice(bytemuck::cast_slice(absmax));
        });
        Self::uploaded(gpu, half, format, shape, &bytes)
    }

    /// Weights out of nothing, written by the device: inputs of variance 1 give outputs of variance 1.
    ///
    /// # Errors
    /// When inputs are not whole groups, there is not enough memory or the driver fails.
    pub fn random(
        gpu: &Gpu,
        half: HalfType,
        format: WeightFormat,
        [num_outputs, num_inputs]: [usize; 2],
        seed: u32,
    ) -> Result<Self, DriverError> {
        check_inputs(format, num_inputs)?;
        let num_step_tiles = num_outputs.div_ceil(TILE) * num_inputs.div_ceil(STEP);
        let scale_bytes = num_step_tiles * TILE * format.step_scale_bytes();
        let codes = gpu.alloc(num_step_tiles * format.step_code_bytes())?;
        let scales = if scale_bytes == 0 { None } else { Some(gpu.alloc(scale_bytes)?) };
        let codebook = codebook_of(format).map(|values| gpu.upload(&values)).transpose()?;
        let random = Random::new(half, format, num_inputs, seed);
        random.fill(gpu, &codes)?;
        if let Some(scales) = &scales {
            random.constant().fill(gpu, scales)?;
        }
        Ok(Self { half, format, num_inputs, num_outputs, codes, scales, codebook })
    }

    fn uploaded(
        gpu: &Gpu,
        half: HalfType,
        format: WeightFormat,
        [num_outputs, num_inputs]: [usize; 2],
        bytes: &layout::DeviceBytes,
    ) -> Result<Self, DriverError> {
        let codes = gpu.upload(&bytes.codes)?;
        let scales = if bytes.scales.is_empty() { None } else { Some(gpu.upload(&bytes.scales)?) };
        let codebook = codebook_of(format).map(|values| gpu.upload(&values)).transpose()?;
        Ok(Self { half, format, num_inputs, num_outputs, codes, scales, codebook })
    }

    /// Of the activations that it multiplies.
    #[must_use]
    pub fn half(&self) -> HalfType {
        self.half
    }

    /// How the numbers are stored.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// K of `y:[T,N] = x:[T,K] W^T`.
    #[must_use]
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// N of `y:[T,N] = x:[T,K] W^T`.
    #[must_use]
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, Buffer::len);
        self.codes.len() + scales + self.codebook.as_ref().map_or(0, |values| values.len() * 4)
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.num_outputs.div_ceil(TILE)
    }

    pub(crate) fn num_steps(&self) -> usize {
        self.num_inputs.div_ceil(STEP)
    }

    /// Codes, scales, codebook; null where the format has none.
    pub(crate) fn operands(&self) -> [DevicePtr; 3] {
        let scales = self.scales.as_ref().map_or(DevicePtr::NULL, Buffer::ptr);
        let codebook = self.codebook.as_ref().map_or(DevicePtr::NULL, Buffer::ptr);
        [self.codes.ptr(), scales, codebook]
    }
}

fn check_inputs(format: WeightFormat, num_inputs: usize) -> Result<(), DriverError> {
    if num_inputs.is_multiple_of(format.group()) {
        return Ok(());
    }
    Err(DriverError(format!(
        "a linear of {num_inputs} inputs cannot be {format:?}: its groups of {} would not be whole",
        format.group()
    )))
}

fn codebook_of(format: WeightFormat) -> Option<[f32; 16]> {
    match format {
        WeightFormat::Nf4 => Some(NF4_CODEBOOK),
        WeightFormat::Fp4 => Some(FP4_CODEBOOK),
        _ => None,
    }
}

/// The nearest 16-bit float; what is too large becomes the largest.
fn half_bits(half: HalfType, value: f32) -> u16 {
    match half {
        HalfType::F16 => f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits(),
        HalfType::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

fn fill_from_packed(half: HalfType, packed: &PackedLinear, row: usize, to: &mut Row) {
    let num_inputs = packed.num_inputs();
    if !packed.format().is_integer() {
        let mut values = vec![0.0; num_inputs];
        packed.dequantize_row_into(row, &mut values);
        for (to, &value) in to.codes.iter_mut().zip(&values) {
            *to = half_bits(half, value);
        }
        return;
    }
    let num_groups = num_inputs / packed.format().group();
    let has_min = !matches!(packed.format(), Format::W8 { has_min: false, .. });
    let mut codes = vec![0; num_inputs];
    let (mut scales, mut mins) =
        (vec![0; num_groups], vec![0; if has_min { num_groups } else { 0 }]);
    packed.quantized_row_into(row, &mut codes, &mut scales, &mut mins);
    for (to, &code) in to.codes.iter_mut().zip(&codes) {
        *to = u16::from(code);
    }
    let on_device = |bits: u16| match half {
        HalfType::F16 => bits,
        HalfType::Bf16 => half_bits(half, f16::from_bits(bits).to_f32()),
    };
    let mut numbers = to.scales.chunks_exact_mut(2);
    for (group, &scale) in scales.iter().enumerate() {
        for bits in std::iter::once(scale).chain(mins.get(group).copied()) {
            let number = numbers.next().expect("scales and mins of whole steps");
            number.copy_from_slice(&on_device(bits).to_le_bytes());
        }
    }
}
