//! A linear's weights on the device, in the order in which its tensor cores read them.
//!
//! In: the CPU's packed linears, or nothing (random weights). Out: buffers for the kernels of
//! `kernels/matmul`; `weights.cuh` there has the layout. Nothing is requantized; scales, mins and zeros are
//! rounded to the activations' type, which the kernels compute in.

pub(crate) mod layout;
mod random;

use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use half::{bf16, f16};
use layout::{Row, STEP, TILE, pack};
use random::Random;
use weft_kernels::PackedLinear;
use weft_kernels::codebook::Codebook;
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
    /// `scale * (code - zero)`: codes of 4 or 8 bits, integer zeros, groups of 32 inputs.
    ZeroPoint {
        /// Of a code and of a zero: 4 or 8.
        bits: usize,
    },
    /// `codebook[code] * absmax`: four-bit codes, an absmax for 64 inputs of a row.
    Codebook(Codebook),
}

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
    order: Option<InputOrder>,
}

/// The input that each stored input is, here and on the device.
#[derive(Debug)]
struct InputOrder {
    inputs: Box<[u32]>,
    on_device: Buffer<u32>,
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
        let format = device_format(packed);
        let shape = [packed.num_outputs(), packed.num_inputs()];
        let bytes = pack(format, shape, |row, to| match format {
            WeightFormat::Dense => fill_dense(half, packed, row, to),
            WeightFormat::W4 | WeightFormat::W8 { .. } => fill_quantized(half, packed, row, to),
            WeightFormat::ZeroPoint { .. } | WeightFormat::Codebook(_) => {
                fill_coded(half, format, packed, row, to);
            }
        });
        let mut linear = Self::uploaded(gpu, half, format, shape, &bytes)?;
        if let (Some(order), false) = (packed.order(), format == WeightFormat::Dense) {
            linear.order = Some(InputOrder { inputs: order.into(), on_device: gpu.upload(order)? });
        }
        Ok(linear)
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
        let codebook = codebook_of(format).map(|values| gpu.upload(values)).transpose()?;
        let random = Random::new(half, format, num_inputs, seed);
        random.fill(gpu, &codes)?;
        if let Some(scales) = &scales {
            random.constant().fill(gpu, scales)?;
        }
        Ok(Self { half, format, num_inputs, num_outputs, codes, scales, codebook, order: None })
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
        let codebook = codebook_of(format).map(|values| gpu.upload(values)).transpose()?;
        Ok(Self { half, format, num_inputs, num_outputs, codes, scales, codebook, order: None })
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

    /// The input that each stored input is, if they differ: columns of x must be gathered.
    #[must_use]
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_ref().map(|order| &*order.inputs)
    }

    pub(crate) fn order_ptr(&self) -> Option<DevicePtr> {
        self.order.as_ref().map(|order| order.on_device.ptr())
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, Buffer::len);
        let codebook = self.codebook.as_ref().map_or(0, |values| values.len() * 4);
        let order = self.order.as_ref().map_or(0, |order| order.on_device.len() * 4);
        self.codes.len() + scales + codebook + order
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

fn codebook_of(format: WeightFormat) -> Option<&'static [f32; 16]> {
    match format {
        WeightFormat::Codebook(book) => Some(book.values()),
        _ => None,
    }
}

/// The device's form of a format. Groups that it does not have become dense: the same values rounded to
/// 16 bits, in four times the memory of 4-bit codes.
fn device_format(packed: &PackedLinear) -> WeightFormat {
    match packed.format() {
        Format::W4 => WeightFormat::W4,
        Format::W8 { group, offset, has_min } => WeightFormat::W8 { group, offset, has_min },
        Format::Codebook { book, group } if group.is_multiple_of(64) => {
            WeightFormat::Codebook(book)
        }
        Format::ZeroPoint { bits, group } if group.is_multiple_of(32) => {
            WeightFormat::ZeroPoint { bits }
        }
        _ => WeightFormat::Dense,
    }
}

/// The nearest 16-bit float; what is too large becomes the largest.
fn half_bits(half: HalfType, value: f32) -> u16 {
    match half {
        HalfType::F16 => f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits(),
        HalfType::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

fn fill_dense(half: HalfType, packed: &PackedLinear, row: usize, to: &mut Row) {
    let mut values = vec![0.0; packed.num_inputs()];
    packed.dequantize_row_into(row, &mut values);
    for (to, &value) in to.codes.iter_mut().zip(&values) {
        *to = half_bits(half, value);
    }
}

/// Scales of the CPU's longer groups are repeated.
fn fill_coded(
    half: HalfType,
    format: WeightFormat,
    packed: &PackedLinear,
    row: usize,
    to: &mut Row,
) {
    let num_groups = packed.num_inputs() / packed.format().group();
    let has_zeros = matches!(format, WeightFormat::ZeroPoint { .. });
    let mut codes = vec![0; packed.num_inputs()];
    let mut scales = vec![0.0; num_groups];
    let mut zeros = vec![0; if has_zeros { num_groups } else { 0 }];
    packed.coded_row_into(row, &mut codes, &mut scales, &mut zeros);
    for (to, &code) in to.codes.iter_mut().zip(&codes) {
        *to = u16::from(code);
    }
    let repeats = packed.format().group() / format.group();
    let mut numbers = to.scales.chunks_exact_mut(4);
    for (group, &scale) in scales.iter().enumerate() {
        let number = match format {
            WeightFormat::ZeroPoint { bits } => {
                let zero = f32::from(zeros[group]) - f32::from(zero_point_offset(bits));
                u32::from(half_bits(half, scale)) | u32::from(half_bits(half, zero)) << 16
            }
            _ => scale.to_bits(),
        };
        for to in numbers.by_ref().take(repeats) {
            to.copy_from_slice(&number.to_le_bytes());
        }
    }
}

fn fill_quantized(half: HalfType, packed: &PackedLinear, row: usize, to: &mut Row) {
    let num_inputs = packed.num_inputs();
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

/// What the device subtracts from codes, and its zeros lack, so that both are exact in bf16.
pub(crate) fn zero_point_offset(bits: usize) -> u8 {
    if bits == 8 { 128 } else { 0 }
}
