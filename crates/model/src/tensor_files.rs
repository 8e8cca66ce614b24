//! The safetensors files of a directory as one table of tensors. Knows no model.

use crate::error::ModelError;
use crate::mapped_file::map_file;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Mapped files, and where each tensor lies.
pub(crate) struct TensorFiles {
    maps: Vec<memmap2::Mmap>,
    index: HashMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: std::ops::Range<usize>,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    /// Row by row, little-endian.
    pub(crate) data: &'a [u8],
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl TensorFiles {
    pub(crate) fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut files = Self { maps: Vec::new(), index: HashMap::new() };
        for path in weight_files(dir)? {
            let map = map_file(&path)?;
            files.add(&path, map)?;
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path, map: memmap2::Mmap) -> Result<(), ModelError> {
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            ModelError::Safetensors { path: path.to_owned(), reason: error.to_string() }
        })?;
        // The length of the header, the header, then all tensors.
        let start = 8 + header_bytes;
        for (name, info) in metadata.tensors() {
            let (first, end) = info.data_offsets;
            let entry = Entry {
                file: self.maps.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: start + first..start + end,
            };
            if self.index.contains_key(&name) {
                let message = format!("tensor {name} is in two safetensors files");
                return Err(ModelError::Invalid(message));
            }
            self.index.insert(name, entry);
        }
        self.maps.push(map);
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor of this full name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.index.get_key_value(name)?;
        let data = &self.maps[entry.file][entry.bytes.clone()];
        Some(Tensor { name, dtype: entry.dtype, shape: &entry.shape, data })
    }

    /// The tensor of this full name.
    pub(crate) fn get(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        self.find(name)
            .ok_or_else(|| ModelError::Invalid(format!("the checkpoint has no tensor {name}")))
    }
}

impl<'a> Tensor<'a> {
    /// Itself, if it has this shape.
    pub(crate) fn of_shape(self, shape: &[usize]) -> Result<Self, ModelError> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(ModelError::Invalid(format!(
            "tensor {} has shape {:?}, but config.json makes it {shape:?}",
            self.name, self.shape
        )))
    }

    /// Itself, if it is of this type.
    pub(crate) fn of_dtype(self, dtype: Dtype) -> Result<Self, ModelError> {
        if self.dtype == dtype {
            return Ok(self);
        }
        Err(ModelError::Invalid(format!(
            "tensor {} has dtype {:?}, where {dtype:?} belongs",
            self.name, self.dtype
        )))
    }

    /// Itself, if it is of a floating-point type that is read.
    pub(crate) fn of_floats(self) -> Result<Self, ModelError> {
        if matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Ok(self);
        }
        Err(ModelError::Unsupported(format!(
            "tensor {} has dtype {:?}; F32, F16 and BF16 are read",
            self.name, self.dtype
        )))
    }

    /// All values of a floating-point type, in single precision: exact.
    pub(crate) fn floats(self) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        self.of_floats()?.read_floats_into(self.data, &mut values);
        Ok(values)
    }

    /// Appends the values of a piece of its bytes.
    pub(crate) fn read_floats_into(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self.dtype {
            Dtype::F16 => out.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&pair| half::f16::from_le_bytes(pair).to_f32()),
            ),
            Dtype::BF16 => out.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&pair| half::bf16::from_le_bytes(pair).to_f32()),
            ),
            _ => out.extend(bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word))),
        }
    }

    /// Its 32-bit words.
    pub(crate) fn words(self) -> Result<&'a [[u8; 4]], ModelError> {
        Ok(self.of_dtype(Dtype::I32)?.data.as_chunks().0)
    }
}

/// The files that hold the weights of a Hugging Face directory: one, or those that its index names.
///
/// # Errors
/// If there are none in safetensors, or the index is malformed or leads out of the directory.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.is_file() {
        return Ok(vec![single]);
    }
    if !index.is_file() {
        return Err(ModelError::Invalid(format!(
            "{} has neither model.safetensors nor model.safetensors.index.json; \
             checkpoints in pickle files (.bin) are not read",
            dir.display()
        )));
    }
    let text = std::fs::read_to_string(&index)
        .map_err(|source| ModelError::Io { path: index.clone(), source })?;
    let parsed: ShardIndex = serde_json::from_str(&text)
        .map_err(|source| ModelError::Json { path: index.clone(), source })?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    names
        .into_iter()
        .map(|name| {
            if name.contains(['/', '\\']) || name == ".." {
                let message = format!("{}: shard `{name}` is not a file name", index.display());
                return Err(ModelError::Invalid(message));
            }
            Ok(dir.join(name))
        })
        .collect()
}
