//! Values of `adapter_config.json` in the form in which they are computed with, or a sentence about
//! the one that has none.

use crate::error::Refusal;
use crate::json::shown;
use crate::peft_config::{ModuleNames, refuse};
use crate::quoted::Quoted;
use serde_json::{Map, Value};
use weft_types::TokenId;

/// A whole number from 1, as ranks and counts are. A missing one is `default`.
pub(crate) fn count(
    object: &Map<String, Value>,
    key: &str,
    default: u64,
) -> Result<usize, Refusal> {
    match object.get(key) {
        None | Some(Value::Null) => rank_of(key, &Value::from(default)),
        Some(value) => rank_of(key, value),
    }
}

pub(crate) fn rank_of(key: &str, value: &Value) -> Result<usize, Refusal> {
    match value.as_u64().and_then(|rank| usize::try_from(rank).ok()) {
        Some(rank) if rank > 0 => Ok(rank),
        _ => refuse(format!(
            "has rank {} ({key} in adapter_config.json); a rank is a whole number from 1",
            shown(value)
        )),
    }
}

/// A finite number. A missing one is `default`.
pub(crate) fn alpha(object: &Map<String, Value>, key: &str, default: f64) -> Result<f64, Refusal> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => alpha_of(key, value),
    }
}

pub(crate) fn alpha_of(key: &str, value: &Value) -> Result<f64, Refusal> {
    match value.as_f64() {
        // Finite as f32 too: that is what it is computed with.
        Some(alpha) if (alpha as f32).is_finite() => Ok(alpha),
        _ => refuse(format!(
            "has alpha {} ({key} in adapter_config.json); it must be a finite number",
            shown(value)
        )),
    }
}

pub(crate) fn flag(object: &Map<String, Value>, key: &str) -> bool {
    matches!(object.get(key), Some(Value::Bool(true)))
}

/// A pattern for each value, in the order of the file.
pub(crate) fn pattern<T>(
    object: &Map<String, Value>,
    key: &str,
    read: fn(&str, &Value) -> Result<T, Refusal>,
) -> Result<Vec<(String, T)>, Refusal> {
    let entries = object.get(key).and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(name, value)| {
            let value = read(&format!("{key} of {}", Quoted(name)), value)?;
            Ok((name.clone(), value))
        })
        .collect()
}

/// A list of names or one pattern; `None` if nothing is given, or an empty list or string.
pub(crate) fn names(
    object: &Map<String, Value>,
    key: &str,
) -> Result<Option<ModuleNames>, Refusal> {
    match object.get(key) {
        Some(Value::String(pattern)) if !pattern.is_empty() => {
            Ok(Some(ModuleNames::Pattern(pattern.clone())))
        }
        Some(Value::Array(items)) if !items.is_empty() => {
            let name = |item: &Value| match item.as_str() {
                Some(name) if !name.is_empty() => Ok(name.to_owned()),
                _ => refuse(format!(
                    "lists {} in {key} of adapter_config.json; it must be a name",
                    shown(item)
                )),
            };
            Ok(Some(ModuleNames::List(items.iter().map(name).collect::<Result<_, _>>()?)))
        }
        _ => Ok(None),
    }
}

/// Whole numbers, one or a list; `None` if nothing is given, or an empty list.
pub(crate) fn numbers(
    object: &Map<String, Value>,
    key: &str,
    what: &str,
) -> Result<Option<Vec<u64>>, Refusal> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => numbers_of(key, value, what),
    }
}

pub(crate) fn numbers_of(
    key: &str,
    value: &Value,
    what: &str,
) -> Result<Option<Vec<u64>>, Refusal> {
    let items = match value {
        Value::Array(items) if items.is_empty() => return Ok(None),
        Value::Array(items) => items.as_slice(),
        single => std::slice::from_ref(single),
    };
    let number = |item: &Value| {
        item.as_u64().ok_or_else(|| {
            let found = shown(item);
            Refusal::new(format!(
                "lists {found} in {key} of adapter_config.json; it must be the number of a {what}"
            ))
        })
    };
    items.iter().map(number).collect::<Result<_, _>>().map(Some)
}

/// PEFT never activates an adapter with an empty list.
pub(crate) fn invocation_tokens(
    object: &Map<String, Value>,
) -> Result<Option<Box<[TokenId]>>, Refusal> {
    let key = "alora_invocation_tokens";
    let Some(Value::Array(items)) = object.get(key) else { return Ok(None) };
    if items.is_empty() {
        return refuse(format!(
            "has an empty {key} in adapter_config.json, which would never activate it; list the \
             tokens, or make it null for an adapter that is always active"
        ));
    }
    let token = |item: &Value| {
        item.as_u64().and_then(|token| TokenId::try_from(token).ok()).ok_or_else(|| {
            let found = shown(item);
            Refusal::new(format!(
                "lists {found} in {key} of adapter_config.json; it must be the id of a token"
            ))
        })
    };
    items.iter().map(token).collect::<Result<_, _>>().map(Some)
}
