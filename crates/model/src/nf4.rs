//! Float matrices → NF4 as bitsandbytes makes it, for `--quantize nf4` and `nf4-dq`.
//!
//! A block is 64 values of a row; its scale (absmax) is its largest magnitude, a code the nearest number
//! of the table to value / absmax. Double quantization (QLoRA's default) makes the scales themselves,
//! less their mean, bytes of a table with a scale for 256 of them. Codes and single scales have
//! bitsandbytes' bits. Double-quantized scales depend on its device: the mean's last bit on the order of
//! its sum, and, in the CPU build, one byte in a thousand on a look-up that is off by one where two
//! numbers are as near to 1e-5. Here the nearest is taken, as on a GPU.

use weft_kernels::PackedLinear;
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::pack::Packer;
use weft_kernels::weight::Format;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 64;
/// NF4 with bitsandbytes' blocks.
pub(crate) const NF4: Format = Format::Codebook { book: Codebook::Nf4, group: BLOCK };
/// Scales that share a scale.
const NESTED_BLOCK: usize = 256;

/// Quantizes `[num_outputs, num_inputs]`; `row_into` reads a row. Inputs are whole blocks.
pub(crate) fn quantize(
    [num_outputs, num_inputs]: [usize; 2],
    double: bool,
    mut row_into: impl FnMut(usize, &mut Vec<f32>),
) -> PackedLinear {
    let mut codes = Vec::with_capacity(num_outputs * num_inputs);
    let mut absmax = Vec::with_capacity(num_outputs * num_inputs / BLOCK);
    let mut values = Vec::with_capacity(num_inputs);
    for row in 0..num_outputs {
        values.clear();
        row_into(row, &mut values);
        for block in values.chunks_exact(BLOCK) {
            let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let inverse = 1.0 / largest;
            let nearest = |value: &f32| Codebook::Nf4.nearest((value * inverse).clamp(-1.0, 1.0));
            codes.extend(block.iter().map(nearest));
            absmax.push(largest);
        }
    }
    if double {
        requantize(&mut absmax);
    }
    let mut packer = Packer::new(NF4, num_outputs, num_inputs);
    let rows = codes.chunks_exact(num_inputs).zip(absmax.chunks_exact(num_inputs / BLOCK));
    for (row, (codes, scales)) in rows.enumerate() {
        packer.set_coded(row, CodedRow { codes, scales, zeros: &[] });
    }
    packer.finish()
}

/// Scales → what is left of them after double quantization.
fn requantize(absmax: &mut [f32]) {
    let mean = absmax.iter().map(|&scale| f64::from(scale)).sum::<f64>() / absmax.len() as f64;
    let offset = mean as f32;
    let map = dynamic_map();
    for block in absmax.chunks_mut(NESTED_BLOCK) {
        let largest =
            block.iter().fold(0.0f32, |largest, scale| largest.max((scale - offset).abs()));
        let inverse = 1.0 / largest;
        for scale in block {
            let value = ((*scale - offset) * inverse).clamp(-1.0, 1.0);
            *scale = map[nearest(&map, value)] * largest + offset;
        }
    }
}

/// The index of the nearest number of a sorted table, of two as near the lower; 0 for a NaN.
fn nearest(map: &[f32; 256], value: f32) -> usize {
    let above = map.partition_point(|&number| number < value).min(255);
    if above > 0 && value - map[above - 1] <= map[above] - value { above - 1 } else { above }
}

/// The dynamic tree of 8 bits (Dettmers 2015), signed: a decade for each leading zero, whose fraction
/// has the bits that are left.
fn dynamic_map() -> [f32; 256] {
    let mut numbers = vec![0.0f32, 1.0];
    for decade in 0..7 {
        let num_means = 1usize << decade;
        let size = 10f64.powi(decade - 6) as f32;
        let step = (1.0f32 - 0.1) / num_means as f32;
        // From the nearer end, rounded once.
        let boundary = |i: usize| {
            if i < num_means.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((num_means - i) as f32, 1.0)
            }
        };
        for i in 0..num_means {
            let mean = (boundary(i) + boundary(i + 1)) / 2.0;
            numbers.extend([size * mean, -(size * mean)]);
        }
    }
    numbers.sort_by(f32::total_cmp);
    numbers.try_into().expect("2 and twice 127 numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_has_256_numbers_from_nearly_minus_one_to_one() {
        let map = dynamic_map();
        assert!(map.is_sorted());
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        assert!((map[0] + 0.992_968_74).abs() < 1e-6 && (map[254] - 0.992_968_74).abs() < 1e-6);
        assert_eq!((nearest(&map, f32::NAN), nearest(&map, 2.0), nearest(&map, -2.0)), (0, 255, 0));
        for (index, &number) in map.iter().enumerate() {
            assert_eq!(nearest(&map, number), index);
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zeros_and_the_largest_value_is_exact() {
        let rows = [vec![0.0; BLOCK], (0..BLOCK).map(|k| 0.37 * (k as f32 - 20.0)).collect()];
        let packed = quantize([2, BLOCK], false, |row, values| values.extend(&rows[row]));
        let mut got = vec![1.0; BLOCK];
        packed.dequantize_row_into(0, &mut got);
        assert!(got.iter().all(|&value| value == 0.0));
        packed.dequantize_row_into(1, &mut got);
        assert_eq!(got[BLOCK - 1], rows[1][BLOCK - 1]);
        let largest_gap = 0.31 / 2.0 * got[BLOCK - 1];
        assert!(got.iter().zip(&rows[1]).all(|(got, want)| (got - want).abs() < largest_gap));
    }

    #[test]
    fn double_quantization_changes_scales_by_little() {
        let rows: Vec<Vec<f32>> = (0..40)
            .map(|row| (0..2 * BLOCK).map(|k| ((k * 31 + row * 17) % 97) as f32 - 48.0).collect())
            .collect();
        let shape = [40, 2 * BLOCK];
        let scales = |double| -> Vec<f32> {
            let packed = quantize(shape, double, |row, values| values.extend(&rows[row]));
            let mut scales = vec![0.0; 2];
            (0..40)
                .flat_map(|row| {
                    packed.coded_row_into(row, &mut [0; 2 * BLOCK], &mut scales, &mut []);
                    scales.clone()
                })
                .collect()
        };
        let (single, double) = (scales(false), scales(true));
        assert_ne!(single, double);
        for (one, other) in single.iter().zip(&double) {
            assert!((one - other).abs() < 0.02 * one, "{one} {other}");
        }
    }
}
