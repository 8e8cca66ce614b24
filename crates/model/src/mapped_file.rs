//! A file in memory without reading it first.

#![expect(unsafe_code, reason = "mapping a file")]

use crate::ModelError;
use bytes::Bytes;
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

/// The bytes of a file of the weight cache, which stay mapped as long as somebody has a part of them.
pub(crate) fn map_shared(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: files of the cache are written under another name, renamed when they are whole, and
    // never written again, only removed, which leaves a map as it is. Someone else who truncates one
    // stops this process, as they could by other means; the directory is the operator's.
    unsafe { memmap2::Mmap::map(file) }.map(Bytes::from_owner)
}
