//! A Hugging Face directory: `config.json` and one or several safetensors files, float or quantized.

use crate::bitsandbytes;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::hf_config;
use crate::load::{Quantize, WeightSource};
use crate::nf4::{self, NF4};
use crate::quantization::Quantization;
use crate::quantize::{self, INT4, INT8};
use crate::tensor_files::{Tensor, TensorFiles};
use crate::zero_points::{self, Gptq};
use safetensors::Dtype;
use std::path::Path;
use weft_kernels::PackedLinear;
use weft_kernels::pack::Packer;
use weft_kernels::weight::{Format, GROUP};
use weft_types::LinearShape;

pub(crate) struct HfSource {
    config: ModelConfig,
    /// How the checkpoint was quantized.
    quantization: Quantization,
    /// What to do with it if it was not.
    quantize: Quantize,
    files: TensorFiles,
}

impl HfSource {
    pub(crate) fn open(dir: &Path, quantize: Quantize) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let (config, quantization) = (hf_config::parse(&text)?, Quantization::parse(&text)?);
        if quantize != Quantize::None && quantization != Quantization::None {
            return Err(ModelError::Unsupported(format!(
                "--quantize {quantize} is for float checkpoints; {} is {quantization} already",
                dir.display()
            )));
        }
        Ok(Self { config, quantization, quantize, files: TensorFiles::open(dir)? })
    }

    /// The linear of this name in the codes of the checkpoint's method, if it has them.
    fn coded(&self, name: &str, shape: LinearShape) -> Result<Option<PackedLinear>, ModelError> {
        let files = &self.files;
        if name == "model.embed_tokens" {
            return Ok(None);
        }
        let packed = match self.quantization {
            Quantization::None => None,
            Quantization::Bnb4 { book, .. } => bitsandbytes::read_4bit(files, name, shape, book)?,
            Quantization::BnbInt8 { .. } => bitsandbytes::read_int8(files, name, shape)?,
            Quantization::Gptq { bits, group, act_order, less_one } => {
                let gptq = Gptq { bits, group, act_order, less_one };
                zero_points::read_gptq(files, name, shape, gptq)?
            }
            Quantization::Awq { group, .. } => zero_points::read_awq(files, name, shape, group)?,
        };
        if packed.is_none() && !self.quantization.skips(name) {
            return Err(ModelError::Invalid(format!(
                "config.json makes {name} {}, and does not list it as skipped, but the checkpoint \
                 has no codes and scales of it",
                self.quantization
            )));
        }
        Ok(packed)
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
            // As bitsandbytes has it, tables stay as they are.
            Quantize::Nf4 | Quantize::Nf4DoubleQuant
                if !is_table && num_inputs.is_multiple_of(nf4::BLOCK) =>
            {
                NF4
            }
            _ => match dtype {
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                _ => Format::F32,
            },
        }
    }

    fn float(&self, name: &str, tensor: Tensor<'_>) -> PackedLinear {
        let (num_outputs, num_inputs) = (tensor.shape[0], tensor.shape[1]);
        let row_bytes = tensor.data.len() / num_outputs;
        let row_into = |row: usize, values: &mut Vec<f32>| {
            tensor.read_floats_into(&tensor.data[row * row_bytes..][..row_bytes], values);
        };
        let format = self.format(name, tensor.dtype, num_inputs);
        if format == NF4 {
            let double = self.quantize == Quantize::Nf4DoubleQuant;
            return nf4::quantize([num_outputs, num_inputs], double, row_into);
        }
        let mut packer = Packer::new(format, num_outputs, num_inputs);
        let mut values = Vec::with_capacity(num_inputs);
        for row in 0..num_outputs {
            values.clear();
            row_into(row, &mut values);
            if format.is_integer() {
                quantize::set_row(&mut packer, format, row, &values);
            } else {
                packer.set_float(row, &values);
            }
        }
        packer.finish()
    }
}

impl WeightSource for HfSource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn describe(&self) -> String {
        match (&self.quantization, self.quantize) {
            (Quantization::None, Quantize::None) => "not quantized".to_owned(),
            (Quantization::None, quantize) => format!("quantized to {quantize}"),
            (quantization, _) => quantization.to_string(),
        }
    }

    fn has(&self, name: &str) -> bool {
        // A quantized head has no `.weight` of its own.
        let codes = name.strip_suffix(".weight").map(|module| format!("{module}.qweight"));
        self.files.has(name) || codes.is_some_and(|codes| self.files.has(&codes))
    }

    fn linear(&self, name: &str, shape: LinearShape) -> Result<PackedLinear, ModelError> {
        if let Some(packed) = self.coded(name, shape)? {
            return Ok(packed);
        }
        let tensor = self.files.get(&format!("{name}.weight"))?;
        let tensor = tensor.of_shape(&[shape.num_outputs, shape.num_inputs])?.of_floats()?;
        Ok(self.float(name, tensor))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        self.files.find(name).map(|tensor| tensor.of_shape(&[len])?.floats()).transpose()
    }
}
