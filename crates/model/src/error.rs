//! Why a model could not be loaded.

use crate::packed_file::PackedFileError;
use std::path::PathBuf;

/// A sentence for the person who started the server.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Neither a file nor a directory of a known form.
    #[error("{path} is not a model: expected a .gguf file or a directory with config.json", path = path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The GGUF file is malformed.
    #[error(transparent)]
    Gguf(#[from] weft_gguf::GgufError),
    /// A JSON file is malformed.
    #[error("{path} is not what it should be: {source}", path = path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A safetensors file is malformed.
    #[error("{path} is not a valid safetensors file: {reason}", path = path.display())]
    Safetensors {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file of packed weights is not what it should be.
    #[error(transparent)]
    Packed(#[from] PackedFileError),
    /// The model has something that Weft does not serve.
    #[error("{0}")]
    Unsupported(String),
    /// A key or tensor is missing or contradicts another.
    #[error("{0}")]
    Invalid(String),
}
