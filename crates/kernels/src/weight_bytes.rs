//! The bytes of a packed matrix: its own, or shared with others that only read them. In: a format and a
//! shape, or bytes. Out: how many bytes that is; a slice at a multiple of a cache line. Knows no file and
//! not what bytes mean.

use crate::coded::WORD_INPUTS;
use crate::slab::SlabLines;
use crate::weight::{Format, GROUP, TILE};
use bytes::Bytes;
use std::fmt;

/// Bytes that a tile row or a vector fills.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct CacheLine(pub(crate) [u8; 64]);

/// Whole cache lines.
#[derive(Clone)]
pub(crate) enum WeightBytes {
    Small(Vec<CacheLine>),
    Large(SlabLines),
    Shared(Bytes),
}

impl WeightBytes {
    pub(crate) fn zeroed(num_bytes: usize) -> Self {
        /// Smaller matrices would not profit of huge pages.
        const LARGE: usize = 64 << 10;
        let num_lines = num_bytes.div_ceil(64);
        match num_bytes {
            LARGE.. => Self::Large(SlabLines::zeroed(num_lines)),
            _ => Self::Small(vec![CacheLine([0; 64]); num_lines]),
        }
    }

    /// These bytes, which are `num_bytes` and what fills the last cache line.
    pub(crate) fn shared(bytes: Bytes, num_bytes: usize) -> Result<Self, NotPacked> {
        let want = num_bytes.next_multiple_of(64);
        if bytes.len() != want {
            let reason = format!("{} bytes, where a matrix of this shape has {want}", bytes.len());
            return Err(NotPacked(reason));
        }
        if !bytes.as_ptr().addr().is_multiple_of(64) {
            return Err(NotPacked("bytes that do not begin at a multiple of 64".to_owned()));
        }
        Ok(Self::Shared(bytes))
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        let lines = match self {
            Self::Small(lines) => lines,
            Self::Large(lines) => lines.as_slice(),
            Self::Shared(bytes) => return bytes,
        };
        // SAFETY: a `CacheLine` is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 64) }
    }

    /// # Panics
    /// When the bytes are shared: those are packed already.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let lines = match self {
            Self::Small(lines) => lines,
            Self::Large(lines) => lines.as_mut_slice(),
            Self::Shared(_) => panic!("shared bytes are only read"),
        };
        let num_bytes = lines.len() * 64;
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), num_bytes) }
    }
}

/// Why a matrix cannot be packed so, or bytes are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotPacked(pub(crate) String);

impl fmt::Display for NotPacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPacked {}

/// Bytes of a packed matrix, before they are padded.
pub(crate) fn packed_bytes(
    format: Format,
    num_outputs: usize,
    num_inputs: usize,
) -> Result<usize, NotPacked> {
    let group = format.group();
    let is_served = match format {
        Format::W8 { group, .. } => matches!(group, 16 | GROUP),
        Format::Codebook { .. } => group.is_multiple_of(WORD_INPUTS),
        Format::ZeroPoint { bits, .. } => {
            matches!(bits, 4 | 8) && group.is_multiple_of(WORD_INPUTS)
        }
        _ => true,
    };
    if !is_served || group == 0 || group > num_inputs.max(1) {
        return Err(NotPacked(format!("{format:?} is no format of {num_inputs} inputs")));
    }
    // So that bytes of a group can be counted.
    if num_inputs.max(num_outputs) > u32::MAX as usize {
        return Err(NotPacked(format!("[{num_outputs}, {num_inputs}] is no matrix of a model")));
    }
    if !num_inputs.is_multiple_of(group) {
        return Err(NotPacked(format!("{num_inputs} inputs are not whole groups of {group}")));
    }
    let num_tiles = num_outputs.div_ceil(TILE);
    (num_inputs / group)
        .checked_mul(format.group_bytes())
        .and_then(|tile| tile.checked_mul(num_tiles))
        .filter(|&num_bytes| num_bytes < isize::MAX as usize / 2)
        .ok_or_else(|| NotPacked(format!("[{num_outputs}, {num_inputs}] is larger than memory")))
}
