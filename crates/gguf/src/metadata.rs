//! The key-value part of a GGUF header: parsed once, looked up by key and type.
//!
//! A missing key is `None`; a key of another type than asked for is an error that names both.
//! Knows no key's meaning.

use crate::cursor::Cursor;
use crate::error::GgufError;
use crate::value::{StringArray, Value};
use std::collections::BTreeMap;

static NO_STRINGS: StringArray = StringArray::EMPTY;

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
            Value::Array(array) if array.is_empty() => Some(&NO_STRINGS),
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
            Value::Array(array) => array.iter(key).map(|value| convert(&value.ok()?)).collect(),
            // Some writers give an empty array whatever element type comes to mind.
            Value::StringArray(array) if array.is_empty() => Some(Vec::new()),
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

fn required<T>(key: &str, value: Option<T>) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
}

fn utf8<'a>(key: &str, index: usize, bytes: &'a [u8]) -> Result<&'a str, GgufError> {
    std::str::from_utf8(bytes).map_err(|_| GgufError::ValueNotUtf8 { key: key.to_owned(), index })
}
