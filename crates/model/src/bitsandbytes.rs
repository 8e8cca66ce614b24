//! Linears as bitsandbytes saves them: 4-bit blocks (NF4, FP4) and LLM.int8.
//!
//! In: tensors beside `NAME.weight`. Out: the same codes, packed; scales in single precision. What is
//! served is what bitsandbytes dequantizes to, before it rounds that to its compute type. LLM.int8's
//! outliers are a matter of activations: those stay in single precision here, so there are none.

use crate::error::ModelError;
use crate::tensor_files::{Tensor, TensorFiles};
use crate::zero_points::greatest_common_divisor;
use safetensors::Dtype;
use serde::Deserialize;
use weft_kernels::PackedLinear;
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::pack::Packer;
use weft_kernels::weight::Format;
use weft_types::LinearShape;

/// `weight.quant_state.bitsandbytes__nf4`: JSON in a tensor of bytes.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// The scales of a matrix, one for `block` of its values, row after row.
pub(crate) struct Blocks {
    pub(crate) absmax: Vec<f32>,
    pub(crate) block: usize,
}

impl Blocks {
    /// The longest piece of a row, as a format's group, that never crosses a block.
    pub(crate) fn group(&self, num_inputs: usize) -> usize {
        greatest_common_divisor(num_inputs, self.block)
    }

    /// The scale of each group of a row.
    pub(crate) fn scales_of_row(&self, row: usize, num_inputs: usize) -> Vec<f32> {
        let firsts = (0..num_inputs).step_by(self.group(num_inputs));
        firsts.map(|input| self.absmax[(row * num_inputs + input) / self.block]).collect()
    }
}

/// The linear of this name if it is 4-bit; `None` if it has no state.
pub(crate) fn read_4bit(
    files: &TensorFiles,
    name: &str,
    shape: LinearShape,
    book: Codebook,
) -> Result<Option<PackedLinear>, ModelError> {
    let key = |book: &str| format!("{name}.weight.quant_state.bitsandbytes__{book}");
    let quant_type = if book == Codebook::Nf4 { "nf4" } else { "fp4" };
    let other = if book == Codebook::Nf4 { "fp4" } else { "nf4" };
    if files.has(&key(other)) {
        return Err(ModelError::Invalid(format!(
            "{name} is {other}, but config.json's bnb_4bit_quant_type makes it {quant_type}"
        )));
    }
    let Some(state) = files.find(&key(quant_type)) else { return Ok(None) };
    let invalid = |what: String| ModelError::Invalid(format!("tensor {}: {what}", state.name));
    let parsed: QuantState = serde_json::from_slice(state.of_dtype(Dtype::U8)?.data)
        .map_err(|error| invalid(error.to_string()))?;
    let LinearShape { num_inputs, num_outputs } = shape;
    if parsed.quant_type != quant_type {
        return Err(invalid(format!("quant_type is {}", parsed.quant_type)));
    }
    if parsed.shape != [num_outputs, num_inputs] {
        return Err(invalid(format!(
            "shape is {:?}, but config.json makes it {:?}",
            parsed.shape,
            [num_outputs, num_inputs]
        )));
    }
    let num_values = num_outputs * num_inputs;
    if parsed.blocksize == 0 {
        return Err(invalid("blocksize is 0".into()));
    }
    let num_blocks = num_values.div_ceil(parsed.blocksize);
    let map = files.get(&format!("{name}.weight.quant_map"))?;
    if map.floats()? != book.values() {
        return Err(ModelError::Unsupported(format!(
            "tensor {} is not the table of {book}",
            map.name
        )));
    }
    let absmax = absmax(files, name, num_blocks, &parsed)?;
    let blocks = Blocks { absmax, block: parsed.blocksize };
    let group = blocks.group(num_inputs);
    if !group.is_multiple_of(8) {
        return Err(ModelError::Unsupported(format!(
            "{name} has {num_inputs} inputs in blocks of {}, which have no multiple of 8 in common",
            parsed.blocksize
        )));
    }
    // Saved as any type whose bytes these are: bnb_4bit_quant_storage.
    let weight = files.get(&format!("{name}.weight"))?;
    if weight.data.len() * 2 != num_values {
        return Err(ModelError::Invalid(format!(
            "tensor {} has {} bytes, where {num_values} codes of four bits belong",
            weight.name,
            weight.data.len()
        )));
    }
    let mut packer = Packer::new(Format::Codebook { book, group }, num_outputs, num_inputs);
    for (row, bytes) in weight.data.chunks_exact(num_inputs / 2).enumerate() {
        // The first of two codes is the high one.
        let codes: Vec<u8> = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
        let scales = blocks.scales_of_row(row, num_inputs);
        packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &[] });
    }
    Ok(Some(packer.finish()))
}

/// One scale a block; with double quantization each is `map[code] * nested_absmax + offset`.
fn absmax(
    files: &TensorFiles,
    name: &str,
    num_blocks: usize,
    state: &QuantState,
) -> Result<Vec<f32>, ModelError> {
    let absmax = files.get(&format!("{name}.weight.absmax"))?;
    of_len(&absmax, num_blocks)?;
    let Some(nested_block) = state.nested_blocksize else { return absmax.floats() };
    let codes = absmax.of_dtype(Dtype::U8)?.data;
    let missing = |key: &str| {
        ModelError::Invalid(format!("{name}.weight.quant_state has no {key} of its absmax"))
    };
    let offset = state.nested_offset.ok_or_else(|| missing("nested_offset"))? as f32;
    if nested_block == 0 {
        return Err(missing("nested_blocksize"));
    }
    let nested = files.get(&format!("{name}.weight.nested_absmax"))?;
    of_len(&nested, num_blocks.div_ceil(nested_block))?;
    let map = files.get(&format!("{name}.weight.nested_quant_map"))?;
    of_len(&map, 256)?;
    let (nested, map) = (nested.floats()?, map.floats()?);
    let value = |(index, &code): (usize, &u8)| {
        map[usize::from(code)] * nested[index / nested_block] + offset
    };
    Ok(codes.iter().enumerate().map(value).collect())
}

fn of_len(tensor: &Tensor<'_>, len: usize) -> Result<(), ModelError> {
    if tensor.shape.iter().product::<usize>() == len {
        return Ok(());
    }
    Err(ModelError::Invalid(format!(
        "tensor {} has shape {:?}, where {len} values belong",
        tensor.name, tensor.shape
    )))
}

/// The linear of this name if it is LLM.int8; `None` if it has no scales.
pub(crate) fn read_int8(
    files: &TensorFiles,
    name: &str,
    shape: LinearShape,
) -> Result<Option<PackedLinear>, ModelError> {
    let Some(scales) = files.find(&format!("{name}.SCB")) else { return Ok(None) };
    let LinearShape { num_inputs, num_outputs } = shape;
    of_len(&scales, num_outputs)?;
    if let Some(order) = files.find(&format!("{name}.weight_format"))
        && order.of_dtype(Dtype::U8)?.data != [0]
    {
        return Err(ModelError::Unsupported(format!(
            "tensor {} is not 0: the codes lie in the order of a GPU; save it again with a current \
             bitsandbytes",
            order.name
        )));
    }
    if !num_inputs.is_multiple_of(8) {
        return Err(ModelError::Unsupported(format!(
            "{name} has {num_inputs} inputs; LLM.int8 is read in multiples of 8"
        )));
    }
    let weight = files.get(&format!("{name}.weight"))?;
    let weight = weight.of_dtype(Dtype::I8)?.of_shape(&[num_outputs, num_inputs])?;
    let format = Format::ZeroPoint { bits: 8, group: num_inputs };
    let mut packer = Packer::new(format, num_outputs, num_inputs);
    let scales = scales.floats()?;
    for (row, bytes) in weight.data.chunks_exact(num_inputs).enumerate() {
        let codes: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x80).collect();
        let row_scale = [scales[row] / 127.0];
        packer.set_coded(row, CodedRow { codes: &codes, scales: &row_scale, zeros: &[0x80] });
    }
    Ok(Some(packer.finish()))
}
