//! Numbers of files ↔ numbers to calculate with. A matrix of a file, `[rows, cols]` and row-major, is a
//! [`Matrix`] of `cols × rows`, column-major: the same numbers in the same order, so that nothing is
//! moved. So all matrices here are the transposes of those in the formulas of adapters.

use half::{bf16, f16};
use nalgebra::DMatrix;
use weft_types::{AdapterTensor, Dtype};

/// Double precision: a sum of updates is rounded once, when it is written.
pub(crate) type Matrix = DMatrix<f64>;

/// The float types of safetensors that are calculated with.
pub(crate) fn float_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// As safetensors spells it.
pub(crate) fn file_dtype(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::I8 => safetensors::Dtype::I8,
    }
}

/// The values of little-endian `bytes`.
pub(crate) fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|&bits| f32::from_le_bytes(bits).into()).collect()
        }
        Dtype::F16 => halves().map(|&bits| f16::from_le_bytes(bits).to_f64()).collect(),
        Dtype::Bf16 => halves().map(|&bits| bf16::from_le_bytes(bits).to_f64()).collect(),
        Dtype::I8 => bytes.iter().map(|&byte| byte.cast_signed().into()).collect(),
    }
}

/// The nearest values of a float type; the error is the first value beyond its range.
pub(crate) fn encode(values: &[f64], dtype: Dtype) -> Result<Vec<u8>, f64> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    for &value in values {
        let is_finite = match dtype {
            Dtype::F16 => {
                let rounded = f16::from_f64(value);
                bytes.extend(rounded.to_le_bytes());
                rounded.is_finite()
            }
            Dtype::Bf16 => {
                let rounded = bf16::from_f64(value);
                bytes.extend(rounded.to_le_bytes());
                rounded.is_finite()
            }
            Dtype::F32 | Dtype::I8 => {
                let rounded = value as f32;
                bytes.extend(rounded.to_le_bytes());
                rounded.is_finite()
            }
        };
        if !is_finite {
            return Err(value);
        }
    }
    Ok(bytes)
}

/// `[rows, cols]` as `cols × rows`, with the scales of quantized rows multiplied in.
pub(crate) fn of_tensor(tensor: &AdapterTensor) -> Matrix {
    let values = decode(&tensor.data, tensor.dtype);
    let mut matrix = Matrix::from_vec(tensor.cols, tensor.rows, values);
    if let Some(scales) = &tensor.row_scales {
        for (mut column, &scale) in matrix.column_iter_mut().zip(scales) {
            column *= f64::from(scale);
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_every_float_type_that_holds_them() {
        let values = [0.0, -1.5, 0.25, 96.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            assert_eq!(decode(&encode(&values, dtype).unwrap(), dtype), values);
        }
    }

    #[test]
    fn values_beyond_the_range_are_named() {
        assert_eq!(encode(&[1.0, 1e5], Dtype::F16), Err(1e5));
        assert_eq!(encode(&[-1e39], Dtype::F32), Err(-1e39));
        assert!(encode(&[1e5], Dtype::Bf16).is_ok());
    }

    #[test]
    fn rows_of_the_file_are_columns_and_scales_apply_to_them() {
        let tensor = AdapterTensor {
            dtype: Dtype::I8,
            rows: 2,
            cols: 3,
            data: [1, 2, 3, 4, 5, 255].into(),
            row_scales: Some([1.0, 10.0].into()),
        };
        let matrix = of_tensor(&tensor);
        assert_eq!((matrix.nrows(), matrix.ncols()), (3, 2));
        assert_eq!((matrix[(2, 0)], matrix[(1, 1)], matrix[(2, 1)]), (3.0, 50.0, -10.0));
    }
}
