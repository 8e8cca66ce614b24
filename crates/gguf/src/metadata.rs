//! The key-value part of a GGUF header: parsed once, looked up by key and type.
//!
//! A missing key is `None`; a key of another type than asked for is an error that names both.
//! Knows no key's meaning.

use crate::cursor::Cursor;
use crate::error::GgufError;
use std::collections::BTreeMap;

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

/// All strings in one buffer, so that a vocabulary costs two allocations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StringArray {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl StringArray {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
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
    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
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
    fn describe(&self) -> String {
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

    fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
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

/// All keys of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn parse(cursor: &mut Cursor<'_>, num_keys: u64) -> Result<Self, GgufError> {
        let mut entries = BTreeMap::new();
        for _ in 0..num_keys {
            let key = cursor.text("a metadata key")?;
            let value = Value::parse(cursor, key)?;
            if entries.insert(key.to_owned(), value).is_some() {
                return Err(GgufError::DuplicateKey { key: key.to_owned() });
            }
        }
        Ok(Self { entries })
    }

    /// All keys with their values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether the key is there, of whatever type.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| GgufError::WrongType {
            key: key.to_owned(),
            expected,
            found: value.describe(),
        })
    }

    /// The text of `key`.
    ///
    /// # Errors
    /// When it is not a string, or not UTF-8.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        let bytes = self.get(key, "a string", |value| match value {
            Value::String(bytes) => Some(bytes),
            _ => None,
        })?;
        bytes.map(|bytes| utf8(key, 0, bytes)).transpose()
    }

    /// The non-negative integer of `key`, of whatever width and sign in the file.
    ///
    /// # Errors
    /// When it is not one.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key, "a non-negative integer", Value::as_u64)
    }

    /// The number of `key`.
    ///
    /// # Errors
    /// When it is not a number.
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.get(key, "a number", Value::as_f64)
    }

    /// The boolean of `key`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key, "a bool", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// The strings of `key`.
    ///
    /// # Errors
    /// When it is not an array of strings, or one of them is not UTF-8.
    pub fn get_str_array(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let array = self.get(key, "an array of strings", |value| match value {
            Value::StringArray(array) => Some(array),
            Value::Array(array) if array.bytes.is_empty() => Some(&EMPTY),
            _ => None,
        })?;
        let Some(array) = array else { return Ok(None) };
        let strings = array.iter().enumerate().map(|(index, bytes)| utf8(key, index, bytes));
        strings.collect::<Result<_, _>>().map(Some)
    }

    /// The non-negative integers of `key`.
    ///
    /// # Errors
    /// When it is not an array of them.
    pub fn get_u64_array(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.get_array(key, "an array of non-negative integers", Value::as_u64)
    }

    /// The integers of `key`.
    ///
    /// # Errors
    /// When it is not an array of them.
    pub fn get_i64_array(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        self.get_array(key, "an array of integers", Value::as_i64)
    }

    /// The numbers of `key`.
    ///
    /// # Errors
    /// When it is not an array of them.
    pub fn get_f64_array(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.get_array(key, "an array of numbers", Value::as_f64)
    }

    fn get_array<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        self.get(key, expected, |value| match value {
            Value::Array(array) => array
                .bytes
                .chunks_exact(array.kind.size())
                .map(|bytes| convert(&array.kind.decode(bytes, key).ok()?))
                .collect(),
            Value::StringArray(array) if array.ends.is_empty() => Some(Vec::new()),
            _ => None,
        })
    }

    /// As [`Metadata::get_str`], for a key that must be there.
    ///
    /// # Errors
    /// Also when it is missing.
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        required(key, self.get_str(key)?)
    }

    /// As [`Metadata::get_u64`], for a key that must be there.
    ///
    /// # Errors
    /// Also when it is missing.
    pub fn require_u64(&self, key: &str) -> Result<u64, GgufError> {
        required(key, self.get_u64(key)?)
    }

    /// As [`Metadata::get_f64`], for a key that must be there.
    ///
    /// # Errors
    /// Also when it is missing.
    pub fn require_f64(&self, key: &str) -> Result<f64, GgufError> {
        required(key, self.get_f64(key)?)
    }

    /// As [`Metadata::get_str_array`], for a key that must be there.
    ///
    /// # Errors
    /// Also when it is missing.
    pub fn require_str_array(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        required(key, self.get_str_array(key)?)
    }
}

static EMPTY: StringArray = StringArray { bytes: Vec::new(), ends: Vec::new() };

fn required<T>(key: &str, value: Option<T>) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
}

fn utf8<'a>(key: &str, index: usize, bytes: &'a [u8]) -> Result<&'a str, GgufError> {
    std::str::from_utf8(bytes).map_err(|_| GgufError::ValueNotUtf8 { key: key.to_owned(), index })
}
