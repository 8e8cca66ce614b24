//! A linear's weights as the matmul reads them.
//!
//! Sixteen output rows make a *tile*; within a tile the input index is outermost, so that one
//! vector load brings the same few inputs of sixteen outputs and no sum ever crosses lanes.
//!
//! | format | one group of a tile | bits per weight |
//! |---|---|---|
//! | `W4` | 16 × f16 scale, 16 × f16 min, 32 inputs × 16 × 4 bits | 5 |
//! | `W8` | 16 × f16 scale, (16 × f16 min), group inputs × 16 × 8 bits | 8.5, 9 (group 16 or min) |
//! | `Codebook`, `ZeroPoint` | 16 × f32 scale, (16 × i8 zero), group inputs × 16 × 4 or 8 bits | 4.5 (group 64), 4.3 (group 128) |
//! | floats | one input × 16 values | 16, 32 |
//!
//! `value = scale * (code - offset) + min`. GGUF's Q4_0, Q4_1 and Q4_K are `W4`; Q5_0, Q5_1, Q5_K,
//! Q6_K and Q8_0 are `W8`. Those two are multiplied with activations in 12-bit integers. `Codebook`
//! (bitsandbytes) and `ZeroPoint` (GPTQ, AWQ, LLM.int8) say exactly what their files say, and are
//! multiplied in single precision: `coded`.

use crate::codebook::Codebook;
use crate::lanes::{Bf16, Element, F16};
use crate::weight_bytes::{WeightBytes, packed_bytes};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

pub(crate) use crate::weight_bytes::CacheLine;
pub use crate::weight_bytes::NotPacked;

/// Of the layout described here: part of the name of packed weights that outlive a process. Raise it
/// with every change of what bytes mean; a test knows when.
pub const LAYOUT_VERSION: u32 = 1;

/// Output rows of a tile.
pub const TILE: usize = 16;
/// Inputs that share a scale in `W4`, and whose activations share one.
pub const GROUP: usize = 32;

/// How the numbers of a [`PackedLinear`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Four-bit codes in groups of 32 with scale and min.
    W4,
    /// Eight-bit codes.
    W8 {
        /// Inputs that share a scale: 16 or 32.
        group: usize,
        /// Subtracted from a code before scaling.
        offset: u8,
        /// Whether each group has a min.
        has_min: bool,
    },
    /// `scale * codebook[code]`: four-bit codes, single-precision scales (absmax).
    Codebook {
        /// What codes stand for.
        book: Codebook,
        /// Inputs that share a scale: a multiple of 8.
        group: usize,
    },
    /// `scale * (code - zero)`: single-precision scales, integer zeros.
    ZeroPoint {
        /// Of a code and of a zero: 4 or 8.
        bits: usize,
        /// Inputs that share a scale and a zero: a multiple of 8.
        group: usize,
    },
}

impl Format {
    /// Whether activations are quantized to integers for this format.
    #[must_use]
    pub fn is_integer(self) -> bool {
        matches!(self, Self::W4 | Self::W8 { .. })
    }

    /// Whether values are stored as they are.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Inputs that share a scale; 1 for floats.
    #[must_use]
    pub fn group(self) -> usize {
        match self {
            Self::W4 => GROUP,
            Self::W8 { group, .. }
            | Self::Codebook { group, .. }
            | Self::ZeroPoint { group, .. } => group,
            _ => 1,
        }
    }

    /// Bytes of one group of one tile.
    #[must_use]
    pub fn group_bytes(self) -> usize {
        match self {
            Self::F32 => TILE * 4,
            Self::F16 | Self::Bf16 => TILE * 2,
            Self::W4 => 4 * TILE + TILE * GROUP / 2,
            Self::W8 { group, has_min, .. } => (if has_min { 4 } else { 2 }) * TILE + TILE * group,
            Self::Codebook { group, .. } => self.coded_header_bytes() + TILE * group / 2,
            Self::ZeroPoint { bits, group } => self.coded_header_bytes() + TILE * group * bits / 8,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("float32"),
            Self::F16 => f.write_str("float16"),
            Self::Bf16 => f.write_str("bfloat16"),
            Self::W4 => write!(f, "4 bits in groups of {GROUP}"),
            Self::W8 { group, .. } => write!(f, "8 bits in groups of {group}"),
            Self::Codebook { book, group } => write!(f, "{book} in groups of {group}"),
            Self::ZeroPoint { bits, group } => {
                write!(f, "{bits} bits with zeros in groups of {group}")
            }
        }
    }
}

/// A weight matrix `[num_outputs, num_inputs]`, packed.
#[derive(Clone)]
pub struct PackedLinear {
    format: Format,
    num_inputs: usize,
    num_outputs: usize,
    /// Stored input → input, if they differ.
    order: Option<Box<[u32]>>,
    data: WeightBytes,
}

impl fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedLinear([{}, {}] {:?})", self.num_outputs, self.num_inputs, self.format)
    }
}

impl PackedLinear {
    pub(crate) fn zeroed(format: Format, num_outputs: usize, num_inputs: usize) -> Self {
        let num_bytes = packed_bytes(format, num_outputs, num_inputs);
        let num_bytes = num_bytes.unwrap_or_else(|why| panic!("{why}"));
        Self { format, num_inputs, num_outputs, order: None, data: WeightBytes::zeroed(num_bytes) }
    }

    /// Bytes that were packed before, of a matrix `[num_outputs, num_inputs]`: those of
    /// [`Self::as_bytes`], at a multiple of 64 in memory. Nothing is copied. What the numbers are is not
    /// looked at: other bytes are another matrix.
    ///
    /// # Errors
    /// When the format is none that is served, does not divide the matrix, or lengths, place or order do
    /// not fit.
    pub fn from_packed(
        format: Format,
        [num_outputs, num_inputs]: [usize; 2],
        order: Option<Vec<u32>>,
        bytes: Bytes,
    ) -> Result<Self, NotPacked> {
        let num_bytes = packed_bytes(format, num_outputs, num_inputs)?;
        let data = WeightBytes::shared(bytes, num_bytes)?;
        let mut linear = Self { format, num_inputs, num_outputs, order: None, data };
        if let Some(order) = order {
            linear.try_set_order(order)?;
        }
        Ok(linear)
    }

    /// All bytes as they lie in memory, for whoever keeps them: padded with zeros to whole cache lines.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// Whether the bytes are shared, such as those of a mapped file, and not its own.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.data, WeightBytes::Shared(_))
    }

    /// Stores inputs in this order from now on, of a format of codes.
    pub(crate) fn set_order(&mut self, order: Vec<u32>) {
        self.try_set_order(order).unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_set_order(&mut self, order: Vec<u32>) -> Result<(), NotPacked> {
        if self.format.coded().is_none() {
            return Err(NotPacked(format!("{:?} has no order of inputs", self.format)));
        }
        let mut seen = vec![false; self.num_inputs];
        let is_new = |input: &u32| {
            seen.get_mut(*input as usize).is_some_and(|seen| !std::mem::replace(seen, true))
        };
        if order.len() != self.num_inputs || !order.iter().all(is_new) {
            return Err(NotPacked("an order of inputs names each input once".to_owned()));
        }
        self.order = Some(order.into());
        Ok(())
    }

    /// How the numbers are stored.
    #[must_use]
    pub fn format(&self) -> Format {
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

    /// The input that each stored input is; `None` if they are stored in order.
    #[must_use]
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Bytes held.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.data.as_slice().len() + self.order.as_ref().map_or(0, |order| 4 * order.len())
    }

    /// Tiles of sixteen outputs, the last one perhaps padded with zeros.
    #[must_use]
    pub fn num_tiles(&self) -> usize {
        self.num_outputs.div_ceil(TILE)
    }

    fn tile_bytes(&self) -> usize {
        self.num_inputs / self.format.group() * self.format.group_bytes()
    }

    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        let num_bytes = self.tile_bytes();
        &self.data.as_slice()[tile * num_bytes..(tile + 1) * num_bytes]
    }

    pub(crate) fn tile_mut(&mut self, tile: usize) -> &mut [u8] {
        let num_bytes = self.tile_bytes();
        &mut self.data.as_mut_slice()[tile * num_bytes..(tile + 1) * num_bytes]
    }

    /// A float tile as `[num_inputs][16]` elements.
    pub(crate) fn float_tile<T: FloatElement>(&self, tile: usize) -> &[T] {
        assert_eq!(self.format, T::FORMAT, "float tiles are read in their own format");
        let bytes = self.tile(tile);
        // SAFETY: `T` is plain old data; the allocation is 64-byte aligned and tiles are whole
        // multiples of 32 bytes.
        let (head, body, tail) = unsafe { bytes.align_to::<T>() };
        debug_assert!(head.is_empty() && tail.is_empty());
        body
    }

    /// Row `row` of a quantized format as it is stored, for another device's layout: a code for each
    /// input, the bits of a half-precision scale and, if the format has them, of a min for each group.
    ///
    /// # Panics
    /// When `row` is out of range, the format is not quantized or a length does not fit.
    pub fn quantized_row_into(
        &self,
        row: usize,
        codes: &mut [u8],
        scales: &mut [u16],
        mins: &mut [u16],
    ) {
        assert!(self.format.is_integer(), "{:?} is not quantized", self.format);
        assert!(row < self.num_outputs, "row {row} of {}", self.num_outputs);
        let (group, lane) = (self.format.group(), row % TILE);
        let has_min = !matches!(self.format, Format::W8 { has_min: false, .. });
        assert_eq!(codes.len(), self.num_inputs);
        assert_eq!(scales.len(), self.num_inputs / group);
        assert_eq!(mins.len(), if has_min { scales.len() } else { 0 });
        let half = |block: &[u8], index: usize| {
            u16::from_le_bytes([block[2 * index], block[2 * index + 1]])
        };
        let blocks = self.tile(row / TILE).chunks_exact(self.format.group_bytes());
        for (index, (block, codes)) in blocks.zip(codes.chunks_exact_mut(group)).enumerate() {
            scales[index] = half(block, lane);
            if has_min {
                mins[index] = half(block, TILE + lane);
            }
            let stored = &block[if has_min { 4 } else { 2 } * TILE..];
            for (k, code) in codes.iter_mut().enumerate() {
                *code = if self.format == Format::W4 {
                    let (byte, shift) = w4_position(lane, k);
                    stored[byte] >> shift & 15
                } else {
                    stored[w8_position(lane, k)]
                };
            }
        }
    }

    /// Row `row` in single precision: an embedding lookup, and the reference for tests.
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `num_inputs` long.
    pub fn dequantize_row_into(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.num_outputs, "row {row} of {}", self.num_outputs);
        assert_eq!(out.len(), self.num_inputs);
        let (tile, lane) = (row / TILE, row % TILE);
        match self.format {
            Format::F32 => read_float_row::<f32>(self, tile, lane, out),
            Format::F16 => read_float_row::<F16>(self, tile, lane, out),
            Format::Bf16 => read_float_row::<Bf16>(self, tile, lane, out),
            Format::W4 | Format::W8 { .. } => {
                let groups = self.tile(tile).chunks_exact(self.format.group_bytes());
                for (block, out) in groups.zip(out.chunks_exact_mut(self.format.group())) {
                    dequantize_group(self.format, block, lane, out);
                }
            }
            Format::Codebook { .. } | Format::ZeroPoint { .. } => {
                self.dequantize_coded_row_into(row, out);
            }
        }
    }
}

/// An [`Element`] that weights are stored in.
pub(crate) trait FloatElement: Element {
    const FORMAT: Format;
}
impl FloatElement for f32 {
    const FORMAT: Format = Format::F32;
}
impl FloatElement for F16 {
    const FORMAT: Format = Format::F16;
}
impl FloatElement for Bf16 {
    const FORMAT: Format = Format::Bf16;
}

fn read_float_row<T: FloatElement>(
    weight: &PackedLinear,
    tile: usize,
    lane: usize,
    out: &mut [f32],
) {
    for (values, out) in weight.float_tile::<T>(tile).chunks_exact(TILE).zip(out) {
        *out = values[lane].to_f32();
    }
}

fn dequantize_group(format: Format, block: &[u8], lane: usize, out: &mut [f32]) {
    let half =
        |index: usize| F16(u16::from_le_bytes([block[2 * index], block[2 * index + 1]])).to_f32();
    let scale = half(lane);
    let (min, offset, codes) = match format {
        Format::W8 { offset, has_min: false, .. } => (0.0, offset, &block[2 * TILE..]),
        Format::W8 { offset, .. } => (half(TILE + lane), offset, &block[4 * TILE..]),
        _ => (half(TILE + lane), 0, &block[4 * TILE..]),
    };
    for (k, out) in out.iter_mut().enumerate() {
        let code = match format {
            Format::W4 => {
                let (byte, shift) = w4_position(lane, k);
                codes[byte] >> shift & 15
            }
            _ => codes[w8_position(lane, k)],
        };
        *out = scale * f32::from(i16::from(code) - i16::from(offset)) + min;
    }
}

/// Byte and shift of input `k` of a group in `W4` codes.
///
/// Eight inputs of a lane fill 32 bits. Shifting those right by 4 s and masking with 0x000f000f
/// leaves inputs 2 s and 2 s + 1 as a pair of 16-bit integers.
#[inline]
pub(crate) fn w4_position(lane: usize, k: usize) -> (usize, u32) {
    let nibble = k % 8 / 2 + 4 * (k % 2);
    (k / 8 * 4 * TILE + lane * 4 + nibble / 2, 4 * (nibble as u32 % 2))
}

/// Byte of input `k` of a group in `W8` codes: likewise, four inputs of a lane in 32 bits.
#[inline]
pub(crate) fn w8_position(lane: usize, k: usize) -> usize {
    k / 4 * 4 * TILE + lane * 4 + [0, 2, 1, 3][k % 4]
}

#[cfg(test)]
mod tests;
