//! Why something could not be made: a sentence for the person who asked for it.

use std::path::{Path, PathBuf};
use weft_adapters::AdapterError;
use weft_gguf::GgufError;
use weft_model::ModelError;

/// What this crate's operations refuse with.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    /// The system refused to read or write.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The files are there, and this cannot be made from them.
    #[error("{0}")]
    Refused(String),
    /// An adapter cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A base cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

pub(crate) type Result<T> = std::result::Result<T, TransformError>;

/// The refusal of this sentence.
pub(crate) fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(TransformError::Refused(sentence.into()))
}

/// Says which file an error of the system is about.
pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> TransformError {
    |source| TransformError::Io { path: path.to_owned(), source }
}
