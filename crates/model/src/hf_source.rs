//! A Hugging Face directory: `config.json` and one or several safetensors files.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::hf_config;
use crate::load::{Quantize, WeightSource};
use crate::mapped_file::map_file;
use crate::quantize::{self, INT4, INT8};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use weft_kernels::PackedLinear;
use weft_kernels::pack::Packer;
use weft_kernels::weight::{Format, GROUP};
use weft_types::LinearShape;

pub(crate) struct HfSource {
    config: ModelConfig,
    quantize: Quantize,
    files: Vec<(PathBuf, memmap2::Mmap)>,
    /// Tensor name → index of its file.
    index: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl HfSource {
    pub(crate) fn open(dir: &Path, quantize: Quantize) -> Result<Self, ModelError> {
        let config = hf_config::parse(&read_text(&dir.join("config.json"))?)?;
        let mut source = Self { config, quantize, files: Vec::new(), index: HashMap::new() };
        for path in weight_files(dir)? {
            let map = map_file(&path)?;
            let tensors = parse(&path, &map)?;
            for name in tensors.names() {
                let file = source.files.len();
                if source.index.insert(name.to_owned(), file).is_some() {
                    let message = format!("tensor {name} is in two safetensors files");
                    return Err(ModelError::Invalid(message));
                }
            }
            source.files.push((path, map));
        }
        Ok(source)
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Calls `read` with the tensor after checking its shape.
    fn with_tensor<T>(
        &self,
        name: &str,
        shape: &[usize],
        read: impl FnOnce(&TensorView<'_>) -> T,
    ) -> Result<Option<T>, ModelError> {
        let Some(&file) = self.index.get(name) else { return Ok(None) };
        let (path, map) = &self.files[file];
        let tensors = parse(path, map)?;
        let tensor = tensors.tensor(name).map_err(|error| malformed(path, error))?;
        if tensor.shape() != shape {
            return Err(ModelError::Invalid(format!(
                "tensor {name} has shape {:?}, but config.json makes it {shape:?}",
                tensor.shape()
            )));
        }
        if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(ModelError::Unsupported(format!(
                "tensor {name} has dtype {:?}; F32, F16 and BF16 are read",
                tensor.dtype()
            )));
        }
        Ok(Some(read(&tensor)))
    }

    fn format(&self, name: &str, dtype: Dtype, num_inputs: usize) -> Format {
        let is_table = name == "lm_head" || name == "model.embed_tokens";
        match self.quantize {
            Quantize::Int8 if num_inputs.is_multiple_of(GROUP) => INT8,
            Quantize::Int4 if num_inputs.is_multiple_of(GROUP) => {
                if is_table {
                    INT8
                } else {
                    INT4
                }
            }
            _ => match dtype {
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                _ => Format::F32,
            },
        }
    }
}

impl WeightSource for HfSource {
    fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    fn linear(&self, name: &str, shape: LinearShape) -> Result<PackedLinear, ModelError> {
        let LinearShape { num_inputs, num_outputs } = shape;
        let full_name = format!("{name}.weight");
        let packed = self.with_tensor(&full_name, &[num_outputs, num_inputs], |tensor| {
            let format = self.format(name, tensor.dtype(), num_inputs);
            let mut packer = Packer::new(format, num_outputs, num_inputs);
            let row_bytes = tensor.data().len() / num_outputs;
            let mut values = Vec::with_capacity(num_inputs);
            for (row, bytes) in tensor.data().chunks_exact(row_bytes).enumerate() {
                values.clear();
                read_floats(tensor.dtype(), bytes, &mut values);
                if format.is_integer() {
                    quantize::set_row(&mut packer, format, row, &values);
                } else {
                    packer.set_float(row, &values);
                }
            }
            packer.finish()
        })?;
        packed
            .ok_or_else(|| ModelError::Invalid(format!("the checkpoint has no tensor {full_name}")))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        self.with_tensor(name, &[len], |tensor| {
            let mut values = Vec::with_capacity(len);
            read_floats(tensor.dtype(), tensor.data(), &mut values);
            values
        })
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
    let parsed: ShardIndex = serde_json::from_str(&read_text(&index)?)
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

fn read_text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })
}

fn parse<'a>(path: &Path, map: &'a memmap2::Mmap) -> Result<SafeTensors<'a>, ModelError> {
    SafeTensors::deserialize(map).map_err(|error| malformed(path, error))
}

fn malformed(path: &Path, error: impl std::fmt::Display) -> ModelError {
    ModelError::Safetensors { path: path.to_owned(), reason: error.to_string() }
}

fn read_floats(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F16 => out.extend(
            bytes.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()),
        ),
        Dtype::BF16 => out.extend(
            bytes.as_chunks::<2>().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        ),
        _ => out.extend(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
    }
}
