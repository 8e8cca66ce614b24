//! Float rows → integer codes, for `--quantize`.

use weft_kernels::pack::{Packer, QuantizedRow};
use weft_kernels::weight::{Format, GROUP};

/// Eight bits, symmetric: `scale = max|w| / 127` over 32 inputs.
pub(crate) const INT8: Format = Format::W8 { group: GROUP, offset: 128, has_min: false };
/// Four bits with scale and min over 32 inputs.
pub(crate) const INT4: Format = Format::W4;

/// Quantizes `values` as row `row` of `packer`, whose format is [`INT8`] or [`INT4`].
pub(crate) fn set_row(packer: &mut Packer, format: Format, row: usize, values: &[f32]) {
    let mut codes = Vec::with_capacity(values.len());
    let (mut scales, mut mins) = (Vec::new(), Vec::new());
    for group in values.chunks_exact(GROUP) {
        let (low, high) = group
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)));
        let (scale, min, offset, max_code) = if format == INT4 {
            (half((high - low) / 15.0), half(low), 0.0, 15.0)
        } else {
            (half(low.abs().max(high.abs()) / 127.0), 0.0, 128.0, 255.0)
        };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        codes.extend(
            group.iter().map(|w| {
                ((w - min) * inverse + offset).round_ties_even().clamp(0.0, max_code) as u8
            }),
        );
        scales.push(scale);
        if format == INT4 {
            mins.push(min);
        }
    }
    packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
}

/// As it will be stored, so that codes are chosen for the scale that is used.
fn half(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 29 % 97) as f32 - 40.0) * 0.01).collect();
        for (format, steps) in [(INT8, 254.0), (INT4, 15.0)] {
            let mut packer = Packer::new(format, 1, 96);
            set_row(&mut packer, format, 0, &values);
            let mut got = vec![0.0; 96];
            packer.finish().dequantize_row_into(0, &mut got);
            for (got, want) in got.iter().zip(&values) {
                assert!((got - want).abs() < 1.2 / steps * 0.6, "{got} {want}");
            }
        }
    }
}
