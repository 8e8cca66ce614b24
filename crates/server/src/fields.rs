//! In: a JSON object. Out: its fields, one by one, each of the type and range that was asked for.
//!
//! A field that is `null` is absent. What nobody asked for is left, and can be listed. Errors name
//! the field by its full path and say what was expected. Knows no route.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::ops::RangeInclusive;
use weft_types::TokenId;

/// The fields of one JSON object that have not been taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// `""` for the body, `stream_options.` or `messages[0].` for objects in it.
    prefix: String,
}

impl Fields {
    /// The body of a request.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(ApiError::bad_request("the body is empty; it must be a JSON object"));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, prefix: String::new() }),
            Ok(other) => Err(ApiError::bad_request(format!(
                "the body must be a JSON object, but it is {}",
                kind(&other)
            ))),
            Err(error) => {
                Err(ApiError::bad_request(format!("the body is not valid JSON: {error}")))
            }
        }
    }

    /// The object `value`, which stands at `path`.
    pub(crate) fn of(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, prefix: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The full name of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Any value but `null`.
    pub(crate) fn any(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|value| !value.is_null())
    }

    /// The same, and an error when it is absent.
    pub(crate) fn required(&mut self, key: &str) -> Result<Value, ApiError> {
        self.any(key).ok_or_else(|| ApiError::missing(&self.path(key)))
    }

    /// A string.
    pub(crate) fn string(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        let Some(value) = self.any(key) else { return Ok(None) };
        string(value, &self.path(key)).map(Some)
    }

    /// A string that must be there and not be empty.
    pub(crate) fn required_string(&mut self, key: &str) -> Result<String, ApiError> {
        let path = self.path(key);
        let text = string(self.required(key)?, &path)?;
        if text.is_empty() {
            return Err(ApiError::invalid(&path, format!("`{path}` must not be empty")));
        }
        Ok(text)
    }

    /// `true` or `false`, or the default.
    pub(crate) fn boolean(&mut self, key: &str, default: bool) -> Result<bool, ApiError> {
        match self.any(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong_type(&self.path(key), "true or false", &other)),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.any(key) else { return Ok(None) };
        integer(&value, &self.path(key), &range).map(Some)
    }

    /// The same for a count; `range` lies within `u32`.
    pub(crate) fn count(
        &mut self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ApiError> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        let value = self.integer(key, range)?;
        Ok(value.map(|value| u32::try_from(value).expect("the range lies within u32")))
    }

    /// A number within `range`.
    pub(crate) fn number(
        &mut self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.any(key) else { return Ok(None) };
        number(&value, &self.path(key), &range).map(Some)
    }

    /// An object.
    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Self>, ApiError> {
        let Some(value) = self.any(key) else { return Ok(None) };
        Self::of(value, &self.path(key)).map(Some)
    }

    /// A list of at most `max_len` values.
    pub(crate) fn list(
        &mut self,
        key: &str,
        max_len: usize,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        let Some(value) = self.any(key) else { return Ok(None) };
        list(value, &self.path(key), max_len).map(Some)
    }

    /// A list of token ids below `vocab_size`.
    pub(crate) fn token_ids(
        &mut self,
        key: &str,
        max_len: usize,
        vocab_size: usize,
    ) -> Result<Option<Vec<TokenId>>, ApiError> {
        let path = self.path(key);
        let Some(values) = self.list(key, max_len)? else { return Ok(None) };
        token_ids(&values, &path, vocab_size).map(Some)
    }

    /// What is left, as a JSON object.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// The full names of the fields that nobody took.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.map.keys().map(|key| self.path(key)).collect()
    }
}

/// A string at `path`.
pub(crate) fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// A list of at most `max_len` values at `path`.
pub(crate) fn list(value: Value, path: &str, max_len: usize) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(values) if values.len() <= max_len => Ok(values),
        Value::Array(values) => Err(ApiError::invalid(
            path,
            format!("`{path}` must hold at most {max_len} items, but it holds {}", values.len()),
        )),
        other => Err(wrong_type(path, "a list", &other)),
    }
}

/// Token ids below `vocab_size`, the list at `path`.
pub(crate) fn token_ids(
    values: &[Value],
    path: &str,
    vocab_size: usize,
) -> Result<Vec<TokenId>, ApiError> {
    let read =
        |(index, value): (usize, &Value)| token_id(value, &format!("{path}[{index}]"), vocab_size);
    // The path of an item is made twice only where it is needed: prompts have thousands of items.
    let fast = |value: &Value| {
        let id = TokenId::try_from(value.as_u64()?).ok()?;
        ((id as usize) < vocab_size).then_some(id)
    };
    match values.iter().map(fast).collect() {
        Some(ids) => Ok(ids),
        None => values.iter().enumerate().map(read).collect(),
    }
}

/// One token id below `vocab_size`.
pub(crate) fn token_id(value: &Value, path: &str, vocab_size: usize) -> Result<TokenId, ApiError> {
    let last = i64::try_from(vocab_size).unwrap_or(i64::MAX).saturating_sub(1);
    let id = integer(value, path, &(0..=last))?;
    Ok(TokenId::try_from(id).expect("a vocabulary has fewer than 2^32 tokens"))
}

fn integer(value: &Value, path: &str, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
    let whole = match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            // `16.0` is what some languages write for 16; above 2^53 floats skip integers.
            number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
        }),
        _ => None,
    };
    match whole {
        Some(whole) if range.contains(&whole) => Ok(whole),
        Some(whole) => Err(out_of_range(path, range, &whole)),
        None if value.is_u64() => Err(out_of_range(path, range, value)),
        None => Err(wrong_type(path, "a whole number", value)),
    }
}

/// A number within `range` at `path`.
pub(crate) fn number(
    value: &Value,
    path: &str,
    range: &RangeInclusive<f64>,
) -> Result<f64, ApiError> {
    match value.as_f64() {
        Some(number) if range.contains(&number) => Ok(number),
        Some(number) => Err(out_of_range(path, range, &number)),
        None => Err(wrong_type(path, "a number", value)),
    }
}

fn out_of_range<T: Display>(
    path: &str,
    range: &RangeInclusive<T>,
    found: &dyn Display,
) -> ApiError {
    let (low, high) = (range.start(), range.end());
    ApiError::invalid(path, format!("`{path}` must be between {low} and {high}, but it is {found}"))
}

fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::invalid(path, format!("`{path}` must be {expected}, but it is {}", kind(found)))
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
