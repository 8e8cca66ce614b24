//! Reads golden values: safetensors files of f32 and i32/i64 tensors that a reference implementation
//! wrote. For tests: says at once what is missing.

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor with its values.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenTensor<T> {
    /// The lengths, outermost first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<T>,
}

impl<T> GoldenTensor<T> {
    /// Row `index` of a matrix: the elements of the last dimension.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &[T] {
        let width = self.shape.last().copied().unwrap_or(1);
        &self.values[index * width..][..width]
    }
}

/// All tensors of one file.
#[derive(Clone, Debug, Default)]
pub struct GoldenFile {
    path: PathBuf,
    floats: BTreeMap<String, GoldenTensor<f32>>,
    integers: BTreeMap<String, GoldenTensor<i32>>,
}

/// Why a golden file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct GoldenError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

impl GoldenFile {
    /// Reads a file. f16 and bf16 are widened to f32, i64 is narrowed to i32.
    ///
    /// # Errors
    /// If it cannot be read, or holds another dtype or an integer beyond i32.
    pub fn open(path: &Path) -> Result<Self, GoldenError> {
        let error = |reason: String| GoldenError { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(|cause| error(cause.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|cause| error(cause.to_string()))?;
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        for (name, view) in tensors.iter() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            let floats = match view.dtype() {
                Dtype::F32 => Some(elements(data, f32::from_le_bytes)),
                Dtype::F16 => Some(elements(data, |b| half::f16::from_le_bytes(b).to_f32())),
                Dtype::BF16 => Some(elements(data, |b| half::bf16::from_le_bytes(b).to_f32())),
                _ => None,
            };
            if let Some(values) = floats {
                file.floats.insert(name.to_owned(), GoldenTensor { shape, values });
                continue;
            }
            let values = match view.dtype() {
                Dtype::I32 => Some(elements(data, i32::from_le_bytes)),
                Dtype::I64 => elements(data, i64::from_le_bytes)
                    .into_iter()
                    .map(|value| i32::try_from(value).ok())
                    .collect(),
                _ => None,
            };
            let Some(values) = values else {
                return Err(error(format!("{name} in {:?} does not fit i32 or f32", view.dtype())));
            };
            file.integers.insert(name.to_owned(), GoldenTensor { shape, values });
        }
        Ok(file)
    }

    /// The names of all tensors, floats first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.floats.keys().chain(self.integers.keys()).map(String::as_str)
    }

    /// A tensor of floats.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn f32(&self, name: &str) -> &GoldenTensor<f32> {
        let path = self.path.display();
        self.floats.get(name).unwrap_or_else(|| panic!("{path} has no float tensor {name:?}"))
    }

    /// A tensor of integers.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn i32(&self, name: &str) -> &GoldenTensor<i32> {
        let path = self.path.display();
        self.integers.get(name).unwrap_or_else(|| panic!("{path} has no integer tensor {name:?}"))
    }
}

fn elements<T, const SIZE: usize>(data: &[u8], read: fn([u8; SIZE]) -> T) -> Vec<T> {
    data.as_chunks::<SIZE>().0.iter().map(|&element| read(element)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors_file::{RawTensor, safetensors_bytes};

    #[test]
    fn floats_and_integers_come_back_with_their_shapes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let floats = [1.0, -2.5, 3.0, 4.0];
        let ids: Vec<u8> = [7_i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
        let tensors = [
            RawTensor::new("x", weft_types::Dtype::Bf16, &[2, 2], &floats),
            RawTensor { name: "ids".into(), dtype: "I64".into(), shape: vec![2], data: ids },
        ];
        std::fs::write(file.path(), safetensors_bytes(&tensors)).unwrap();
        let golden = GoldenFile::open(file.path()).unwrap();
        assert_eq!(golden.f32("x").row(1), [3.0, 4.0]);
        assert_eq!(golden.i32("ids"), &GoldenTensor { shape: vec![2], values: vec![7, -1] });
        assert_eq!(golden.names().collect::<Vec<_>>(), ["x", "ids"]);
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = i64::MAX.to_le_bytes().to_vec();
        let big = RawTensor { name: "big".into(), dtype: "I64".into(), shape: vec![1], data };
        std::fs::write(file.path(), safetensors_bytes(&[big])).unwrap();
        assert!(GoldenFile::open(file.path()).unwrap_err().to_string().contains("big"));
    }
}
