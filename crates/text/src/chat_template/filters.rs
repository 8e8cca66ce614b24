//! Jinja filters that `minijinja` lacks or defines otherwise.

use super::methods::pad_center;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error};

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("center", |text: String, width: Option<usize>| {
        pad_center(&text, width.unwrap_or(80), " ")
    });
    environment.add_filter("truncate", truncate);
}

fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for char in value.to_string().chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(char),
        }
    }
    Value::from_safe_string(out)
}

/// The number in a value; `default`, or 0, where there is none.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number => {
            let float = || f64::try_from(value.clone()).ok().filter(|float| float.is_finite());
            i64::try_from(value.clone()).ok().or_else(|| Some(float()?.trunc() as i64))
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
            let float = || text.parse::<f64>().ok().filter(|float| float.is_finite());
            i64::from_str_radix(text, base).ok().or_else(|| Some(float()?.trunc() as i64))
        }
        _ => None,
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from)
}

fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().parse().ok()),
        _ => None,
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

fn word_count(text: String) -> usize {
    let words = text.split(|char: char| !(char.is_alphanumeric() || char == '_'));
    words.filter(|word| !word.is_empty()).count()
}

fn truncate(
    text: String,
    length: Option<usize>,
    kill_words: Option<bool>,
    end: Option<String>,
    leeway: Option<usize>,
) -> Result<String, Error> {
    let (length, end) = (length.unwrap_or(255), end.unwrap_or_else(|| "...".to_owned()));
    let num_chars = text.chars().count();
    if num_chars <= length.saturating_add(leeway.unwrap_or(5)) {
        return Ok(text);
    }
    let num_kept = length.saturating_sub(end.chars().count());
    let mut kept: String = text.chars().take(num_kept).collect();
    if !kill_words.unwrap_or(false)
        && let Some((words, _)) = kept.rsplit_once(' ')
    {
        kept = words.to_owned();
    }
    Ok(kept + &end)
}
