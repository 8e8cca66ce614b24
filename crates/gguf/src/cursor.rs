//! Reads little-endian numbers and length-prefixed strings from a byte slice, each length checked
//! against what is left. Knows nothing of keys or tensors.

use crate::error::GgufError;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The next `needed` bytes.
    pub(crate) fn take(&mut self, needed: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = usize::try_from(needed).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or(GgufError::Truncated {
            what,
            position: self.position,
            needed,
            available: rest.len(),
        })?;
        self.position += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string's bytes, whatever they are.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that must be text.
    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let position = self.position;
        let bytes = self.string(what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what, position })
    }
}
