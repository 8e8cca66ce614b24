//! The header of a GGUF file: bytes in, metadata and a checked tensor table out.
//!
//! After [`Header::parse`] every tensor lies inside the file, aligned, and overlaps no other. Only
//! offsets are kept: who reads the data brings the same bytes again.

use crate::cursor::Cursor;
use crate::error::GgufError;
use crate::metadata::Metadata;
use crate::tensor::TensorInfo;
use std::collections::HashMap;
use std::ops::Range;

/// What the first bytes of a file say of the rest.
#[derive(Clone, Debug)]
pub struct Header {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    data_start: usize,
}

const DEFAULT_ALIGNMENT: u64 = 32;

impl Header {
    /// Parses a whole file's bytes. Linear in the header's size, allocates no more than it in
    /// proportion, reads no tensor data.
    ///
    /// # Errors
    /// Whatever is wrong with the file, see [`GgufError`]. Never panics.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        const WHAT: &str = "the file's header";
        let mut cursor = Cursor::new(bytes);
        if !bytes.starts_with(b"GGUF") {
            return Err(GgufError::NotGguf);
        }
        cursor.take(4, WHAT)?;
        match cursor.u32(WHAT)? {
            2 | 3 => {}
            version if version & 0xffff == 0 && version != 0 => return Err(GgufError::BigEndian),
            version => return Err(GgufError::Version { version }),
        }
        let num_tensors = cursor.u64(WHAT)?;
        let num_keys = cursor.u64(WHAT)?;
        let metadata = Metadata::parse(&mut cursor, num_keys)?;
        let alignment = metadata.get_u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        let alignment = usize::try_from(alignment)
            .ok()
            .filter(|alignment| alignment.is_power_of_two())
            .ok_or(GgufError::Alignment { alignment })?;

        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut by_name = HashMap::new();
        for index in 0..num_tensors {
            let tensor = TensorInfo::parse(&mut cursor)?;
            // Cannot truncate: every entry so far took bytes of a slice.
            if by_name.insert(tensor.name.clone(), index as usize).is_some() {
                return Err(GgufError::DuplicateTensor { name: tensor.name });
            }
            tensors.push(tensor);
        }
        // A file without tensors may end before the padding; then there is no data to place.
        let data_start = cursor.position().checked_next_multiple_of(alignment);
        let data_start = data_start.unwrap_or(bytes.len()).min(bytes.len());
        check_places(&tensors, bytes.len() - data_start, alignment)?;
        Ok(Self { metadata, tensors, by_name, data_start })
    }

    /// The key-value part.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensor table, in the file's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The entry of one tensor.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    /// The byte range in the file of one of [`Header::tensors`]'s entries.
    #[must_use]
    pub fn byte_range(&self, tensor: &TensorInfo) -> Range<usize> {
        // In range: `check_places` compared the sum with the file's length.
        let start = self.data_start.saturating_add(tensor.offset as usize);
        start..start.saturating_add(tensor.num_bytes)
    }
}

/// Every tensor inside `available` data bytes, aligned, and none on another's bytes.
fn check_places(
    tensors: &[TensorInfo],
    available: usize,
    alignment: usize,
) -> Result<(), GgufError> {
    let mut places = Vec::new();
    for tensor in tensors {
        let TensorInfo { ref name, offset, num_bytes, .. } = *tensor;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned { name: name.clone(), offset, alignment });
        }
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(num_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= available => places.push((start, end, name)),
            _ => {
                let name = name.clone();
                return Err(GgufError::OutOfFile { name, offset, num_bytes, available });
            }
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            return Err(GgufError::Overlap {
                first: first.to_string(),
                second: second.to_string(),
            });
        }
    }
    Ok(())
}
