//! What can be wrong with a GGUF file, said to the person who chose the file.

use crate::ggml_type::GgmlType;
use std::path::PathBuf;

/// Why a GGUF file, key or tensor was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the variants and fields mean")]
pub enum GgufError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<GgufError> },
    #[error("this is not a GGUF file: it does not start with the letters GGUF")]
    NotGguf,
    #[error(
        "GGUF version {version} cannot be read, only versions 2 and 3: convert the model again"
    )]
    Version { version: u32 },
    #[error("the file is big-endian GGUF, which cannot be read: convert it to little-endian")]
    BigEndian,
    #[error(
        "the file says that {what} at byte {position} takes {needed} bytes, but only {available} \
         are left: it is truncated or damaged, fetch it again"
    )]
    Truncated { what: &'static str, position: usize, needed: u64, available: usize },
    #[error("{what} at byte {position} is not valid UTF-8")]
    NotUtf8 { what: &'static str, position: usize },
    #[error("metadata key \"{key}\" has value type {value_type}, which GGUF does not define")]
    UnknownValueType { key: String, value_type: u32 },
    #[error("metadata key \"{key}\" is an array of arrays, which cannot be read")]
    NestedArray { key: String },
    #[error("metadata key \"{key}\" is a bool with the value {value} instead of 0 or 1")]
    Bool { key: String, value: u8 },
    #[error("tensor \"{name}\" cannot be written: its data does not fit its shape and type")]
    WriteTensor { name: String },
    #[error("metadata key \"{key}\" occurs twice")]
    DuplicateKey { key: String },
    #[error("metadata key \"{key}\" is missing")]
    MissingKey { key: String },
    #[error("metadata key \"{key}\" is {found}, but {expected} is needed")]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("metadata key \"{key}\" holds text that is not valid UTF-8 (element {index})")]
    ValueNotUtf8 { key: String, index: usize },
    #[error("general.alignment is {alignment}, but it must be a power of two")]
    Alignment { alignment: u64 },
    #[error("a tensor at byte {position} has an empty name")]
    EmptyTensorName { position: usize },
    #[error("tensor \"{name}\" occurs twice")]
    DuplicateTensor { name: String },
    #[error("tensor \"{name}\" has {num_dims} dimensions, but 1 to 4 are allowed")]
    NumDims { name: String, num_dims: u32 },
    #[error("tensor \"{name}\" has the impossible shape {shape:?}")]
    Shape { name: String, shape: Vec<u64> },
    #[error(
        "tensor \"{name}\" has rows of {row} elements, but {dtype} stores blocks of {block_len}"
    )]
    PartialBlock { name: String, row: usize, dtype: GgmlType, block_len: usize },
    #[error("tensor \"{name}\" starts at offset {offset}, which is no multiple of {alignment}")]
    Misaligned { name: String, offset: u64, alignment: usize },
    #[error(
        "tensor \"{name}\" takes {num_bytes} bytes from offset {offset} of the data, but the file \
         holds only {available}: it is truncated or damaged, fetch it again"
    )]
    OutOfFile { name: String, offset: u64, num_bytes: usize, available: usize },
    #[error("tensors \"{first}\" and \"{second}\" overlap")]
    Overlap { first: String, second: String },
    #[error("tensor \"{name}\" is missing")]
    MissingTensor { name: String },
    #[error(
        "tensor \"{name}\" has type {dtype}, which Weft cannot read; supported: {}",
        GgmlType::supported_names()
    )]
    UnsupportedType { name: String, dtype: GgmlType },
}
