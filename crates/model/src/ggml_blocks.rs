//! Blocks of ggml's quantized types → codes, scales and mins of the kernels' formats.
//!
//! The layouts are ggml's (`ggml-quants.h` documents them); `value = scale·(code - offset) + min`.

use weft_gguf::GgmlType;
use weft_kernels::weight::Format;

/// The kernels' format that holds a ggml type without loss (but for the rounding of the products
/// of super-block scales to half precision), or `None` for types that are not read.
pub(crate) fn format_of(dtype: GgmlType) -> Option<Format> {
    let w8 = |group, offset, has_min| Format::W8 { group, offset, has_min };
    Some(match dtype {
        GgmlType::F32 => Format::F32,
        GgmlType::F16 => Format::F16,
        GgmlType::BF16 => Format::Bf16,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q4K => Format::W4,
        GgmlType::Q5_0 => w8(32, 16, false),
        GgmlType::Q5_1 | GgmlType::Q5K => w8(32, 0, true),
        GgmlType::Q8_0 => w8(32, 128, false),
        GgmlType::Q6K => w8(16, 32, false),
        _ => return None,
    })
}

/// One row of codes. Reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) mins: Vec<f32>,
}

impl Codes {
    /// Decodes the blocks of one row of a quantized type.
    pub(crate) fn decode(&mut self, dtype: GgmlType, row: &[u8]) {
        self.codes.clear();
        self.scales.clear();
        self.mins.clear();
        let decode = match dtype {
            GgmlType::Q4_0 => Self::q4_0,
            GgmlType::Q4_1 => Self::q4_1,
            GgmlType::Q5_0 => Self::q5_0,
            GgmlType::Q5_1 => Self::q5_1,
            GgmlType::Q8_0 => Self::q8_0,
            GgmlType::Q4K => Self::q4_k,
            GgmlType::Q5K => Self::q5_k,
            GgmlType::Q6K => Self::q6_k,
            other => unreachable!("{other:?} is not quantized"),
        };
        let block_bytes = dtype.block_bytes().expect("a quantized type has blocks");
        for block in row.chunks_exact(block_bytes) {
            decode(self, block);
        }
    }

    /// d, 16 bytes: inputs 0..16 in the low nibbles, 16..32 in the high ones.
    fn q4_0(&mut self, block: &[u8]) {
        let scale = half(block, 0);
        self.scales.push(scale);
        self.mins.push(-8.0 * scale);
        self.nibbles(&block[2..18]);
    }

    /// d, m, nibbles.
    fn q4_1(&mut self, block: &[u8]) {
        self.scales.push(half(block, 0));
        self.mins.push(half(block, 2));
        self.nibbles(&block[4..20]);
    }

    /// d, 32 fifth bits, nibbles.
    fn q5_0(&mut self, block: &[u8]) {
        self.scales.push(half(block, 0));
        self.five_bits(&block[2..6], &block[6..22]);
    }

    /// d, m, 32 fifth bits, nibbles.
    fn q5_1(&mut self, block: &[u8]) {
        self.scales.push(half(block, 0));
        self.mins.push(half(block, 2));
        self.five_bits(&block[4..8], &block[8..24]);
    }

    /// d, 32 signed bytes.
    fn q8_0(&mut self, block: &[u8]) {
        self.scales.push(half(block, 0));
        self.codes.extend(block[2..34].iter().map(|byte| byte ^ 0x80));
    }

    /// d, dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles: 8 groups of 32.
    fn q4_k(&mut self, block: &[u8]) {
        self.super_scales(block);
        for bytes in block[16..144].chunks_exact(32) {
            self.codes.extend(bytes.iter().map(|byte| byte & 15));
            self.codes.extend(bytes.iter().map(|byte| byte >> 4));
        }
    }

    /// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte l is group g's.
    fn q5_k(&mut self, block: &[u8]) {
        self.super_scales(block);
        let high = &block[16..48];
        for (pair, bytes) in block[48..176].chunks_exact(32).enumerate() {
            let fifth = |byte: u8, group: usize| (byte >> group & 1) << 4;
            let inputs = || bytes.iter().zip(high);
            self.codes.extend(inputs().map(|(low, high)| low & 15 | fifth(*high, 2 * pair)));
            self.codes.extend(inputs().map(|(low, high)| low >> 4 | fifth(*high, 2 * pair + 1)));
        }
    }

    /// 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d: 16 groups of 16.
    fn q6_k(&mut self, block: &[u8]) {
        let d = half(block, 208);
        self.scales.extend(block[192..208].iter().map(|&scale| d * f32::from(scale as i8)));
        for (low, high) in block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32)) {
            for quarter in 0..4 {
                let low = &low[quarter % 2 * 32..][..32];
                self.codes.extend(low.iter().zip(high).map(|(low, high)| {
                    let nibble = if quarter < 2 { low & 15 } else { low >> 4 };
                    nibble | (high >> (2 * quarter) & 3) << 4
                }));
            }
        }
    }

    fn nibbles(&mut self, bytes: &[u8]) {
        self.codes.extend(bytes.iter().map(|byte| byte & 15));
        self.codes.extend(bytes.iter().map(|byte| byte >> 4));
    }

    fn five_bits(&mut self, high: &[u8], low: &[u8]) {
        let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
        let start = self.codes.len();
        self.nibbles(low);
        for (i, code) in self.codes[start..].iter_mut().enumerate() {
            *code |= ((high >> i & 1) as u8) << 4;
        }
    }

    /// The eight scales and mins of a 4- or 5-bit super-block: six bits each, packed in 12 bytes.
    fn super_scales(&mut self, block: &[u8]) {
        let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
        for j in 0..8 {
            let (scale, min) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                (
                    packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
                    packed[j + 4] >> 4 | packed[j] >> 6 << 4,
                )
            };
            self.scales.push(d * f32::from(scale));
            self.mins.push(-dmin * f32::from(min));
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
