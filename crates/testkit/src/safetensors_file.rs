//! Writes safetensors files tensor by tensor, whatever their names and shapes: also those that no
//! library would write.

use serde_json::{Map, Value, json};
use weft_types::Dtype;

/// A tensor as it will stand in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Its name.
    pub name: String,
    /// As the header spells it: `F32`, `F16`, `BF16`, `I64`, …
    pub dtype: String,
    /// As the header says; need not agree with `data`.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub data: Vec<u8>,
}

impl RawTensor {
    /// A tensor of `values`, rounded to `dtype`.
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        let data = match dtype {
            Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => {
                values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
            }
            Dtype::Bf16 => {
                values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
            }
            Dtype::I8 => values.iter().map(|&value| (value as i8).cast_unsigned()).collect(),
        };
        let (name, shape) = (name.into(), shape.to_vec());
        Self { name, dtype: dtype_name(dtype).to_owned(), shape, data }
    }
}

/// The header's spelling.
#[must_use]
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::I8 => "I8",
    }
}

/// The bytes of a file with these tensors in this order.
#[must_use]
pub fn safetensors_bytes(tensors: &[RawTensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.data.len();
        let entry = json!({
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let mut bytes = with_header(&Value::Object(header).to_string());
    tensors.iter().for_each(|tensor| bytes.extend_from_slice(&tensor.data));
    bytes
}

/// The length and the header, without any data. Pads with spaces to eight bytes, as the format does.
#[must_use]
pub fn with_header(header: &str) -> Vec<u8> {
    let padded = header.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(8 + padded, b' ');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn what_is_written_is_what_the_library_reads() {
        let tensors = [
            RawTensor::new("a", Dtype::F32, &[1, 2], &[1.5, -2.0]),
            RawTensor::new("b", Dtype::Bf16, &[3], &[1.0, 2.0, 3.0]),
            RawTensor::new("c", Dtype::F16, &[0, 7], &[]),
        ];
        let bytes = safetensors_bytes(&tensors);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for tensor in &tensors {
            let view = file.tensor(&tensor.name).unwrap();
            assert_eq!((view.shape(), view.data()), (&*tensor.shape, &*tensor.data));
        }
        assert_eq!(file.len(), 3);
    }
}
