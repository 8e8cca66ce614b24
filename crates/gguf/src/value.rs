//! One value of the metadata, as parsed from the file. Whether its type is the wanted one is asked in
//! `metadata`.

use crate::cursor::Cursor;
use crate::error::GgufError;

/// A value of the metadata. Numbers are widened; strings keep their bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text, usually UTF-8, not checked.
    String(Box<[u8]>),
    /// An array of numbers or booleans.
    Array(ScalarArray),
    /// An array of strings.
    StringArray(StringArray),
}

/// Elements as they stand in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarArray {
    kind: Scalar,
    bytes: Box<[u8]>,
}

impl ScalarArray {
    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements; an error for a bool that is neither 0 nor 1.
    pub(crate) fn iter(&self, key: &str) -> impl Iterator<Item = Result<Value, GgufError>> {
        self.bytes.chunks_exact(self.kind.size()).map(move |bytes| self.kind.decode(bytes, key))
    }
}

/// All strings in one buffer, so that a vocabulary costs two allocations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StringArray {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl StringArray {
    pub(crate) const EMPTY: Self = Self { bytes: Vec::new(), ends: Vec::new() };

    /// Whether it has no strings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            string
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Scalar {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => size,
            Self::Bool => 1,
        }
    }

    /// `bytes` has [`Scalar::size`] bytes.
    fn decode(self, bytes: &[u8], key: &str) -> Result<Value, GgufError> {
        let mut low = [0; 8];
        low.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let bits = u64::from_le_bytes(low);
        Ok(match self {
            Self::Unsigned(_) => Value::Unsigned(bits),
            Self::Signed(size) => {
                let unused = 64 - 8 * size as u32;
                Value::Signed((bits << unused).cast_signed() >> unused)
            }
            Self::Float(4) => Value::Float(f64::from(f32::from_bits(bits as u32))),
            Self::Float(_) => Value::Float(f64::from_bits(bits)),
            Self::Bool if bits <= 1 => Value::Bool(bits == 1),
            Self::Bool => {
                return Err(GgufError::Bool { key: key.to_owned(), value: bits as u8 });
            }
        })
    }
}

impl Value {
    pub(crate) fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        const WHAT: &str = "a metadata value";
        match cursor.u32(WHAT)? {
            STRING => Ok(Self::String(cursor.string(WHAT)?.into())),
            ARRAY => Self::parse_array(cursor, key),
            number => {
                let kind = Scalar::from_number(number).ok_or_else(|| unknown(key, number))?;
                kind.decode(cursor.take(kind.size() as u64, WHAT)?, key)
            }
        }
    }

    fn parse_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        const WHAT: &str = "a metadata array";
        let number = cursor.u32(WHAT)?;
        let len = cursor.u64(WHAT)?;
        if number == ARRAY {
            return Err(GgufError::NestedArray { key: key.to_owned() });
        }
        if number == STRING {
            // Grows with the bytes that are there, not with the count that is claimed.
            let mut strings = StringArray::default();
            for _ in 0..len {
                strings.bytes.extend_from_slice(cursor.string(WHAT)?);
                strings.ends.push(strings.bytes.len());
            }
            return Ok(Self::StringArray(strings));
        }
        let kind = Scalar::from_number(number).ok_or_else(|| unknown(key, number))?;
        let bytes = cursor.take(len.saturating_mul(kind.size() as u64), WHAT)?;
        Ok(Self::Array(ScalarArray { kind, bytes: bytes.into() }))
    }

    /// "the string "llama"", "an array of 5 numbers", …
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Unsigned(value) => format!("the number {value}"),
            Self::Signed(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Bool(value) => format!("the bool {value}"),
            Self::String(value) => {
                let text: String = String::from_utf8_lossy(value).chars().take(40).collect();
                format!("the string {text:?}")
            }
            Self::Array(array) => {
                let len = array.bytes.len() / array.kind.size();
                let of = if array.kind == Scalar::Bool { "bools" } else { "numbers" };
                format!("an array of {len} {of}")
            }
            Self::StringArray(array) => format!("an array of {} strings", array.ends.len()),
        }
    }

    pub(crate) fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }
}

fn unknown(key: &str, value_type: u32) -> GgufError {
    GgufError::UnknownValueType { key: key.to_owned(), value_type }
}
