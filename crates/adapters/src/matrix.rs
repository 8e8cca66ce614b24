//! Bytes of a stored matrix: copied, transposed, or searched for what is no number. Works on bit
//! patterns, so that weights keep the dtype and the values that they have in the file.

use crate::dtype::decode;
use crate::error::Refusal;
use crate::quoted::Quoted;
use crate::tensors::FileTensor;
use weft_types::{AdapterTensor, Dtype};

/// Columns that are written in one go: as many output rows stay in the nearest cache.
const TILE: usize = 32;

/// The same matrix. The shape must be `[rows, cols]`.
pub(crate) fn copied(tensor: &FileTensor<'_>) -> AdapterTensor {
    let (rows, cols) = rows_and_cols(tensor);
    AdapterTensor { dtype: tensor.dtype, rows, cols, data: tensor.data.into(), row_scales: None }
}

/// `out[c, r] = in[r, c]`. The shape must be `[rows, cols]`.
pub(crate) fn transposed(tensor: &FileTensor<'_>) -> AdapterTensor {
    let (rows, cols) = rows_and_cols(tensor);
    let data = match tensor.dtype.size() {
        1 => transposed_bytes::<1>(tensor.data, rows, cols),
        2 => transposed_bytes::<2>(tensor.data, rows, cols),
        _ => transposed_bytes::<4>(tensor.data, rows, cols),
    };
    AdapterTensor { dtype: tensor.dtype, rows: cols, cols: rows, data, row_scales: None }
}

/// The elements, row by row.
pub(crate) fn values(tensor: &FileTensor<'_>) -> Vec<f32> {
    let mut values = Vec::new();
    decode(tensor.data, tensor.dtype, &mut values);
    values
}

/// The elements of a matrix that was taken from a file.
pub(crate) fn tensor_values(tensor: &AdapterTensor) -> Vec<f32> {
    let mut values = Vec::new();
    decode(&tensor.data, tensor.dtype, &mut values);
    values
}

/// A computed matrix `[rows, cols]`: computed things stay in f32.
pub(crate) fn computed(rows: usize, cols: usize, values: &[f32]) -> AdapterTensor {
    debug_assert_eq!(values.len(), rows * cols);
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    AdapterTensor { dtype: Dtype::F32, rows, cols, data, row_scales: None }
}

fn rows_and_cols(tensor: &FileTensor<'_>) -> (usize, usize) {
    match tensor.shape[..] {
        [rows, cols] => (rows, cols),
        _ => (0, 0),
    }
}

fn transposed_bytes<const SIZE: usize>(data: &[u8], rows: usize, cols: usize) -> Box<[u8]> {
    let (input, _) = data.as_chunks::<SIZE>();
    let mut bytes = vec![0; data.len()].into_boxed_slice();
    let (output, _) = bytes.as_chunks_mut::<SIZE>();
    for first in (0..cols).step_by(TILE) {
        for row in 0..rows {
            for col in first..cols.min(first + TILE) {
                output[col * rows + row] = input[row * cols + col];
            }
        }
    }
    bytes
}

/// Elements that are searched at once.
const PART: usize = 1024;

/// Refuses infinities and NaN: one would spread over everything that shares a sum with it.
pub(crate) fn check_finite(name: &str, tensor: &FileTensor<'_>) -> Result<(), Refusal> {
    let flaw = match tensor.dtype {
        Dtype::F32 => first_with_exponent(tensor.data, 0x7f80_0000, u32::from_le_bytes),
        Dtype::F16 => {
            first_with_exponent(tensor.data, 0x7c00, |b: [u8; 2]| u16::from_le_bytes(b).into())
        }
        Dtype::Bf16 => {
            first_with_exponent(tensor.data, 0x7f80, |b: [u8; 2]| u16::from_le_bytes(b).into())
        }
        Dtype::I8 => None,
    };
    match flaw {
        None => Ok(()),
        Some(index) => Err(Refusal::new(format!(
            "holds tensor {} with a NaN or infinity (element {index}); the training diverged",
            Quoted(name)
        ))),
    }
}

/// The first element whose exponent bits are all ones.
fn first_with_exponent<const SIZE: usize>(
    data: &[u8],
    exponent: u32,
    bits: fn([u8; SIZE]) -> u32,
) -> Option<usize> {
    let (elements, _) = data.as_chunks::<SIZE>();
    let is_flaw = |&element: &[u8; SIZE]| bits(element) & exponent == exponent;
    // Without an early exit in it, the compiler makes vectors of the inner loop.
    let has_flaw = |part: &[[u8; SIZE]]| part.iter().fold(false, |any, one| any | is_flaw(one));
    let part = elements.chunks(PART).position(has_flaw)?;
    elements[part * PART..].iter().position(is_flaw).map(|index| part * PART + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        for (rows, cols) in [(1, 1), (3, 70), (70, 3), (33, 64)] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let num_bytes = rows * cols * dtype.size();
                let data: Vec<u8> = (0..num_bytes).map(|i| (i * 31 % 251) as u8).collect();
                let shape = vec![rows, cols];
                let once = transposed(&FileTensor { dtype, shape, data: &data });
                assert_eq!((once.rows, once.cols), (cols, rows));
                let size = dtype.size();
                let (row, col) = (rows - 1, cols / 2);
                assert_eq!(
                    once.data[(col * rows + row) * size..][..size],
                    data[(row * cols + col) * size..][..size]
                );
                let back = FileTensor { dtype, shape: vec![cols, rows], data: &once.data };
                assert_eq!(*transposed(&back).data, *data);
            }
        }
    }

    #[test]
    fn only_nan_and_infinities_are_not_finite() {
        let f32s = [f32::MAX, f32::MIN_POSITIVE, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for value in f32s {
            let data = value.to_le_bytes();
            let tensor = FileTensor { dtype: Dtype::F32, shape: vec![1, 1], data: &data };
            assert_eq!(check_finite("t", &tensor).is_ok(), value.is_finite(), "{value}");
        }
        let halves = [
            (Dtype::F16, 0x7bff_u16, true),
            (Dtype::F16, 0x7c00, false),
            (Dtype::F16, 0xfe01, false),
            (Dtype::Bf16, 0x7f7f, true),
            (Dtype::Bf16, 0x7f80, false),
            (Dtype::Bf16, 0xffc0, false),
        ];
        for (dtype, bits, is_finite) in halves {
            let data = bits.to_le_bytes();
            let tensor = FileTensor { dtype, shape: vec![1, 1], data: &data };
            assert_eq!(check_finite("t", &tensor).is_ok(), is_finite, "{dtype:?} {bits:x}");
        }
    }
}
