//! A file of weights as they are multiplied. In: its bytes. Out: linears that lie in them, vectors, or a
//! sentence why it is refused. Knows neither where such files are nor what model they are of.
//!
//! | bytes | what |
//! |---|---|
//! | 64 | [`Header`]: magic, version, byte order, where the contents are, their BLAKE3 |
//! | pieces | data of linears, orders of inputs, vectors; each begins at a multiple of 64 |
//! | to the end | [`Contents`] as JSON: for each name its format, shape and pieces, for each piece its BLAKE3 |
//!
//! All that is read is compared with its hash, so that a file is what was written or is refused.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use weft_kernels::PackedLinear;
use weft_kernels::weight::{Format, NotPacked};
use weft_types::LinearShape;

pub(crate) use write::write;

mod write;

/// Of what this file describes; the layout of linears has a version of its own.
pub(crate) const FILE_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"WEFTPACK";
/// Reads differently where bytes have another order.
const BYTE_ORDER: u32 = u32::from_ne_bytes([1, 2, 3, 4]);
const ALIGNMENT: usize = 64;

/// Why a file of packed weights is refused.
#[derive(Debug, thiserror::Error)]
pub enum PackedFileError {
    /// Something else lies there.
    #[error("it is no file of packed weights")]
    Foreign,
    /// Another build wrote it.
    #[error("it has version {found}, this build reads {FILE_VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// Another kind of machine wrote it.
    #[error("it was written on a machine with another order of bytes")]
    ByteOrder,
    /// Bytes are missing, or too many.
    #[error("it has {found} bytes, its header says {expected}")]
    Length {
        /// As it is.
        found: u64,
        /// As it should be.
        expected: u64,
    },
    /// The table of contents is not what was written.
    #[error("its table of contents is damaged: {0}")]
    Contents(String),
    /// It was made from other files, or in another way.
    #[error("it holds weights of another model")]
    OtherWeights,
    /// Bytes of a tensor are not what was written.
    #[error("bytes of {0} are damaged")]
    Damaged(String),
    /// A tensor is not there, or not as the model has it.
    #[error("{name}: {reason}")]
    Tensor {
        /// Which.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The first bytes.
#[derive(Clone, Copy, Debug)]
struct Header {
    contents_offset: u64,
    contents_bytes: u64,
    contents_hash: [u8; 32],
}

impl Header {
    fn to_bytes(self) -> [u8; ALIGNMENT] {
        let mut bytes = [0; ALIGNMENT];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FILE_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&BYTE_ORDER.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.contents_offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.contents_bytes.to_le_bytes());
        bytes[32..].copy_from_slice(&self.contents_hash);
        bytes
    }
}

/// What is in the file, and where.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// Of what the weights were made from, and how.
    identity: String,
    linears: BTreeMap<String, Linear>,
    vectors: BTreeMap<String, Piece>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Linear {
    format: Format,
    num_outputs: usize,
    num_inputs: usize,
    data: Piece,
    order: Option<Piece>,
}

/// Some bytes of the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    offset: u64,
    num_bytes: u64,
    blake3: String,
}

/// A file whose header and contents are sound.
#[derive(Debug)]
pub(crate) struct PackedFile {
    bytes: Bytes,
    contents: Contents,
}

impl PackedFile {
    /// Reads header and contents of the whole file's bytes, which begin at a multiple of 64 in memory.
    /// Never panics.
    pub(crate) fn parse(bytes: Bytes, identity: &str) -> Result<Self, PackedFileError> {
        let header = Self::header(&bytes)?;
        let contents = usize::try_from(header.contents_offset).unwrap_or(usize::MAX);
        let contents = bytes.get(contents..).unwrap_or_default();
        if *blake3::hash(contents).as_bytes() != header.contents_hash {
            return Err(PackedFileError::Contents("its hash is another".to_owned()));
        }
        let contents: Contents = serde_json::from_slice(contents)
            .map_err(|error| PackedFileError::Contents(error.to_string()))?;
        if contents.identity != identity {
            return Err(PackedFileError::OtherWeights);
        }
        Ok(Self { bytes, contents })
    }

    fn header(bytes: &[u8]) -> Result<Header, PackedFileError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(PackedFileError::Foreign);
        }
        let found = bytes.len() as u64;
        let Some(header) = bytes.first_chunk::<ALIGNMENT>() else {
            return Err(PackedFileError::Length { found, expected: ALIGNMENT as u64 });
        };
        let word = |at: usize| header[at..].first_chunk().copied().unwrap_or_default();
        let long = |at: usize| header[at..].first_chunk().copied().unwrap_or_default();
        match u32::from_le_bytes(word(8)) {
            FILE_VERSION => {}
            found => return Err(PackedFileError::Version { found }),
        }
        if u32::from_ne_bytes(word(12)) != BYTE_ORDER {
            return Err(PackedFileError::ByteOrder);
        }
        let mut contents_hash = [0; 32];
        contents_hash.copy_from_slice(&header[32..]);
        let header = Header {
            contents_offset: u64::from_le_bytes(long(16)),
            contents_bytes: u64::from_le_bytes(long(24)),
            contents_hash,
        };
        let expected = header.contents_offset.saturating_add(header.contents_bytes);
        if found != expected {
            return Err(PackedFileError::Length { found, expected });
        }
        Ok(header)
    }

    /// Whether there is a linear or vector of this full name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let linear = name.strip_suffix(".weight").unwrap_or_default();
        self.contents.linears.contains_key(linear) || self.contents.vectors.contains_key(name)
    }

    /// The matrix `name.weight`. Its bytes stay where they are.
    pub(crate) fn linear(
        &self,
        name: &str,
        shape: LinearShape,
    ) -> Result<PackedLinear, PackedFileError> {
        let refuse = |reason: String| PackedFileError::Tensor { name: name.to_owned(), reason };
        let found = self.contents.linears.get(name).ok_or_else(|| refuse("is missing".into()))?;
        let (num_outputs, num_inputs) = (found.num_outputs, found.num_inputs);
        if (num_outputs, num_inputs) != (shape.num_outputs, shape.num_inputs) {
            return Err(refuse(format!(
                "has shape [{num_outputs}, {num_inputs}], where the model has [{}, {}]",
                shape.num_outputs, shape.num_inputs
            )));
        }
        let order = found.order.as_ref().map(|order| self.piece(name, order)).transpose()?;
        let order = order.map(|bytes| words(&bytes).map(u32::from_le_bytes).collect());
        let data = self.piece(name, &found.data)?;
        PackedLinear::from_packed(found.format, [num_outputs, num_inputs], order, data)
            .map_err(|why: NotPacked| refuse(why.to_string()))
    }

    /// The vector of this full name, if there is one.
    pub(crate) fn vector(
        &self,
        name: &str,
        len: usize,
    ) -> Result<Option<Vec<f32>>, PackedFileError> {
        let Some(piece) = self.contents.vectors.get(name) else { return Ok(None) };
        if usize::try_from(piece.num_bytes).ok() != len.checked_mul(4) {
            let reason = format!("has {} bytes for {len} numbers", piece.num_bytes);
            return Err(PackedFileError::Tensor { name: name.to_owned(), reason });
        }
        Ok(Some(words(&self.piece(name, piece)?).map(f32::from_le_bytes).collect()))
    }

    fn piece(&self, name: &str, piece: &Piece) -> Result<Bytes, PackedFileError> {
        let range = usize::try_from(piece.offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(piece.num_bytes).ok()?)?;
            (end <= self.bytes.len()).then_some(start..end)
        });
        let damaged = || PackedFileError::Damaged(name.to_owned());
        let bytes = self.bytes.slice(range.ok_or_else(damaged)?);
        let is_sound = blake3::hash(&bytes).to_hex().as_str() == piece.blake3;
        if is_sound { Ok(bytes) } else { Err(damaged()) }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks().0.iter().copied()
}

#[cfg(test)]
mod tests;
