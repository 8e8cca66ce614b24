//! A Hugging Face checkpoint on disk, read and changed tensor by tensor. In: a directory of safetensors
//! files, one or several. Out: a tensor's bytes and where they lie. Never more than one tensor is in
//! memory. Knows no model.

use crate::error::{Result, at, refuse};
use crate::matrix::{Matrix, decode, encode, float_dtype};
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use weft_types::Dtype;

/// Above any that is written: a header has some hundred bytes per tensor.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct TensorPlace {
    /// Index in [`Checkpoint::files`].
    file: usize,
    /// In bytes from the file's start.
    range: Range<u64>,
    pub(crate) dtype: safetensors::Dtype,
    pub(crate) shape: Vec<usize>,
}

/// All tensors of a directory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) tensors: BTreeMap<String, TensorPlace>,
}

impl Checkpoint {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint =
            Self { files: weft_model::weight_files(dir)?, tensors: BTreeMap::new() };
        for (file, path) in checkpoint.files.iter().enumerate() {
            for (name, place) in read_header(path, file)? {
                if checkpoint.tensors.contains_key(&name) {
                    return refuse(format!("{}: tensor {name} is there twice", dir.display()));
                }
                checkpoint.tensors.insert(name, place);
            }
        }
        Ok(checkpoint)
    }

    /// The same tensors in a directory to which the files were copied.
    pub(crate) fn moved_to(mut self, dir: &Path) -> Self {
        for file in &mut self.files {
            if let Some(name) = file.file_name() {
                *file = dir.join(name);
            }
        }
        self
    }

    pub(crate) fn read(&self, place: &TensorPlace) -> Result<Vec<u8>> {
        let path = &self.files[place.file];
        let mut file = File::open(path).map_err(at(path))?;
        read_range(&mut file, &place.range).map_err(at(path))
    }

    /// A matrix as `cols × rows`, and its element type. Refuses other shapes and types.
    pub(crate) fn read_matrix(&self, name: &str) -> Result<(Matrix, Dtype)> {
        let Some(place) = self.tensors.get(name) else {
            return refuse(format!("the checkpoint has no tensor {name}"));
        };
        let (Some(dtype), &[rows, cols]) = (float_dtype(place.dtype), &place.shape[..]) else {
            return refuse(format!(
                "tensor {name} is {:?} of shape {:?}; a matrix in F32, F16 or BF16 is needed",
                place.dtype, place.shape
            ));
        };
        Ok((Matrix::from_vec(cols, rows, decode(&self.read(place)?, dtype)), dtype))
    }

    /// Rounds a matrix, `cols × rows`, to the element type of the tensor and writes it in its place.
    pub(crate) fn overwrite(&self, name: &str, matrix: &Matrix) -> Result<()> {
        let place = &self.tensors[name];
        let dtype = float_dtype(place.dtype).unwrap_or(Dtype::F32);
        let bytes = match encode(matrix.as_slice(), dtype) {
            Ok(bytes) => bytes,
            Err(value) => {
                return refuse(format!(
                    "the merged {name} has the value {value:e}, which {dtype:?} does not hold"
                ));
            }
        };
        debug_assert_eq!(bytes.len() as u64, place.range.end - place.range.start);
        let path = &self.files[place.file];
        let mut file = OpenOptions::new().write(true).open(path).map_err(at(path))?;
        let written =
            file.seek(SeekFrom::Start(place.range.start)).and_then(|_| file.write_all(&bytes));
        written.map_err(at(path))
    }
}

fn read_range(file: &mut File, range: &Range<u64>) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The tensors of one file; every range lies in the file and has the length that shape and type say.
fn read_header(path: &Path, index: usize) -> Result<Vec<(String, TensorPlace)>> {
    let damaged =
        |why: String| refuse(format!("{} is not a valid safetensors file: {why}", path.display()));
    let mut file = File::open(path).map_err(at(path))?;
    let num_bytes = file.metadata().map_err(at(path))?.len();
    let mut length = [0; 8];
    if file.read_exact(&mut length).is_err() {
        return damaged(format!("it has {num_bytes} bytes"));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length + 8 > num_bytes {
        return damaged(format!("it claims a header of {length} bytes"));
    }
    let header = read_range(&mut file, &(8..8 + length)).map_err(at(path))?;
    let metadata: Metadata = match serde_json::from_slice(&header) {
        Ok(metadata) => metadata,
        Err(cause) => return damaged(cause.to_string()),
    };
    let data_start = 8 + length;
    let mut places = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let num_elements = info.shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        let num_bits = num_elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let is_right = num_bits.is_some_and(|bits| {
            start <= end && end <= num_bytes - data_start && (end - start) * 8 == bits as u64
        });
        if !is_right {
            return damaged(format!("the place of tensor {name} is wrong"));
        }
        let range = data_start + start..data_start + end;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        places.push((name, TensorPlace { file: index, range, dtype, shape }));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::safetensors_file::{RawTensor, safetensors_bytes, with_header};

    #[test]
    fn one_tensor_is_changed_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [
            RawTensor::new("a", Dtype::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            RawTensor::new("b", Dtype::Bf16, &[1, 2], &[7.0, 8.0]),
        ];
        std::fs::write(dir.path().join("model.safetensors"), safetensors_bytes(&tensors)).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (b, dtype) = checkpoint.read_matrix("b").unwrap();
        assert_eq!((b.as_slice(), dtype), ([7.0, 8.0].as_slice(), Dtype::Bf16));
        checkpoint.overwrite("b", &(b * 2.0)).unwrap();
        assert_eq!(checkpoint.read_matrix("b").unwrap().0.as_slice(), [14.0, 16.0]);
        let (a, _) = checkpoint.read_matrix("a").unwrap();
        assert_eq!((a.nrows(), a.ncols(), a[(2, 1)]), (3, 2, 6.0));
        let error = checkpoint.overwrite("b", &Matrix::from_element(2, 1, 1e39)).unwrap_err();
        assert!(error.to_string().contains("1e39"), "{error}");
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let lies = [
            b"short".to_vec(),
            u64::MAX.to_le_bytes().to_vec(),
            with_header("{"),
            with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#),
            with_header(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
            ),
            [with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#), vec![0; 8]]
                .concat(),
        ];
        for bytes in lies {
            std::fs::write(&path, &bytes).unwrap();
            let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("safetensors"), "{error}");
        }
    }
}
