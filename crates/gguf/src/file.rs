//! A GGUF file, mapped: a path in, metadata and tensor bytes out, nothing copied.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use crate::error::GgufError;
use crate::header::Header;
use crate::metadata::Metadata;
use crate::tensor::TensorInfo;
use std::path::Path;

/// An open GGUF file.
///
/// The file must not be truncated or rewritten in place while it is open; replacing it by renaming
/// another over it is fine.
#[derive(Debug)]
pub struct GgufFile {
    map: memmap2::Mmap,
    header: Header,
}

impl GgufFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// When it cannot be opened, or [`GgufFile::parse`] refuses it; the message names the path.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this struct. The bytes are plain `u8`, and
        // nothing read from them is trusted to stay the same: a rewrite in place, which the
        // documentation forbids, gives wrong weights or a fault, as with every mapped model file.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let header = Header::parse(&map).map_err(|source| GgufError::InFile {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self { map, header })
    }

    /// Parses a header from bytes that are the whole file.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
        Header::parse(bytes)
    }

    /// The key-value part.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        self.header.metadata()
    }

    /// The tensor table, in the file's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors()
    }

    /// A tensor and its bytes, as they stand in the file.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let tensor = self.header.tensor(name)?;
        Some((tensor, self.map.get(self.header.byte_range(tensor))?))
    }

    /// As [`GgufFile::tensor`], for a tensor that the model cannot do without.
    ///
    /// # Errors
    /// When it is missing, or of a type that Weft cannot read.
    pub fn require_tensor(&self, name: &str) -> Result<(&TensorInfo, &[u8]), GgufError> {
        let (tensor, bytes) =
            self.tensor(name).ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })?;
        tensor.require_supported()?;
        Ok((tensor, bytes))
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.map.len()
    }
}
