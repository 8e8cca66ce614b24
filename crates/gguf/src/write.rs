//! Writes a GGUF file, version 3: keys and tensors in, bytes out. What is written is what
//! [`crate::Header`] reads. Knows no key's meaning.

use crate::error::GgufError;
use crate::ggml_type::GgmlType;
use std::io::{self, Write};

const ALIGNMENT: usize = 32;
const F32: u32 = 6;
const U32: u32 = 4;
const STRING: u32 = 8;

/// A file in the making. Keys and tensors come in the order in which they are given.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    num_keys: u64,
    keys: Vec<u8>,
    num_tensors: u64,
    tensors: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    /// Without keys and tensors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a string.
    #[must_use]
    pub fn str(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        put_str(&mut bytes, value);
        self.key(key, STRING, &bytes)
    }

    /// Adds a single-precision number.
    #[must_use]
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, F32, &value.to_le_bytes())
    }

    /// Adds an unsigned integer.
    #[must_use]
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, U32, &value.to_le_bytes())
    }

    fn key(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        put_str(&mut self.keys, key);
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
        self
    }

    /// Adds a tensor; `shape[0]` is the contiguous dimension.
    ///
    /// # Errors
    /// If `data` has not the length that shape and type say, or they are none that a file can have.
    pub fn tensor(
        mut self,
        name: &str,
        shape: &[usize],
        dtype: GgmlType,
        data: &[u8],
    ) -> Result<Self, GgufError> {
        let (Some(block_len), Some(block_bytes)) = (dtype.block_len(), dtype.block_bytes()) else {
            return Err(GgufError::WriteTensor { name: name.to_owned() });
        };
        let num_elements: usize = shape.iter().product();
        let is_right = (1..=4).contains(&shape.len())
            && num_elements > 0
            && shape[0].is_multiple_of(block_len)
            && num_elements / block_len * block_bytes == data.len();
        if !is_right {
            return Err(GgufError::WriteTensor { name: name.to_owned() });
        }
        put_str(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|&dim| self.tensors.extend((dim as u64).to_le_bytes()));
        self.tensors.extend(dtype.number().to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.num_tensors += 1;
        Ok(self)
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = b"GGUF".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend(self.num_tensors.to_le_bytes());
        header.extend(self.num_keys.to_le_bytes());
        header.extend(&self.keys);
        header.extend(&self.tensors);
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&header)?;
        out.write_all(&self.data)
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgufFile;

    #[test]
    fn what_is_written_is_read_back() {
        let (a, b) = ([1_u8; 24], [2_u8; 34]);
        let writer = GgufWriter::new()
            .str("general.type", "adapter")
            .f32("adapter.lora.alpha", 1.5)
            .u32("n", 7)
            .tensor("a", &[3, 2], GgmlType::F32, &a)
            .and_then(|writer| writer.tensor("b", &[32], GgmlType::Q8_0, &b))
            .unwrap();
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        let header = GgufFile::parse(&bytes).unwrap();
        let metadata = header.metadata();
        assert_eq!(metadata.require_str("general.type").unwrap(), "adapter");
        assert_eq!(metadata.require_f64("adapter.lora.alpha").unwrap(), 1.5);
        assert_eq!(metadata.require_u64("n").unwrap(), 7);
        for (name, shape, data) in [("a", vec![3, 2], a.as_slice()), ("b", vec![32], &b)] {
            let tensor = header.tensor(name).unwrap();
            assert_eq!(tensor.shape, shape);
            assert_eq!(&bytes[header.byte_range(tensor)], data);
        }
    }

    #[test]
    fn data_of_another_length_is_refused() {
        for (shape, length) in [(vec![3, 2], 20), (vec![], 4), (vec![0], 0), (vec![1; 5], 4)] {
            let written = GgufWriter::new().tensor("t", &shape, GgmlType::F32, &vec![0; length]);
            assert!(written.is_err(), "{shape:?}");
        }
        assert!(GgufWriter::new().tensor("t", &[31], GgmlType::Q8_0, &[0; 34]).is_err());
    }
}
