//! A file in memory without reading it first.

#![expect(unsafe_code, reason = "mapping a file")]

use crate::ModelError;
use std::fs::File;
use std::path::Path;

/// Maps `path` for reading.
pub(crate) fn map_file(path: &Path) -> Result<memmap2::Mmap, ModelError> {
    let io_error = |source| ModelError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    // SAFETY: the map is private to the load, which copies everything out. Someone who truncates
    // the file meanwhile stops this process, as they could by other means; model files are the
    // operator's.
    unsafe { memmap2::Mmap::map(&file) }.map_err(io_error)
}
