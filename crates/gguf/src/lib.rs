//! GGUF files: bytes in, metadata, a tensor table and mapped tensor data out.
//!
//! * [`GgufFile`]: a mapped file; [`Header`]: what its first bytes say.
//! * [`Metadata`]: typed look-ups by key.
//! * [`TensorInfo`] and [`GgmlType`]: name, shape, element type and place of a tensor.
//! * [`GgufWriter`]: the other way.
//!
//! A file is untrusted: every count and length is checked against the bytes that are there before
//! anything is allocated or read. Knows no model, no tokenizer and no arithmetic on weights.

mod cursor;
mod error;
mod file;
mod ggml_type;
mod header;
mod metadata;
mod tensor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use error::GgufError;
pub use file::GgufFile;
pub use ggml_type::GgmlType;
pub use header::Header;
pub use metadata::Metadata;
pub use tensor::TensorInfo;
pub use value::{ScalarArray, StringArray, Value};
pub use write::GgufWriter;
