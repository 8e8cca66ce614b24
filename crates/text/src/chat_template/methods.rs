//! Methods of Python strings, dicts and lists that chat templates call, where `minijinja`'s own
//! set ends or differs.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// Called for every method that a value does not have by itself.
///
/// # Errors
/// For unknown methods, wrong arguments, and methods that would change the value.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        ValueKind::Seq if method == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == wanted);
            Some(Value::from(at.ok_or_else(|| refuse("the list has no such item"))?))
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn refuse(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `None` for a method that is not defined here.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let affix = || -> Result<&str, Error> { from_args::<(&str,)>(args).map(|(affix,)| affix) };
    let result = match method {
        "removeprefix" => Value::from(text.strip_prefix(affix()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(affix()?).unwrap_or(text)),
        "partition" => {
            let separator = not_empty(affix()?)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = before.len() < text.len();
            triple(before, if found { separator } else { "" }, after)
        }
        "rpartition" => {
            let separator = not_empty(affix()?)?;
            match text.rsplit_once(separator) {
                Some((before, after)) => triple(before, separator, after),
                None => triple("", "", text),
            }
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, separator, most)?
        }
        "index" => {
            let at = text.find(affix()?).ok_or_else(|| refuse("substring not found"))?;
            Value::from(text.get(..at).unwrap_or_default().chars().count())
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            split_lines(text, keep_ends.unwrap_or(false))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            Value::from(pad_center(text, width, fill.unwrap_or(" "))?)
        }
        "ljust" | "rjust" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let padding = fill.unwrap_or(" ").repeat(missing(text, width)?);
            let sides = if method == "ljust" { [text, &padding] } else { [&padding, text] };
            Value::from(sides.concat())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let zeros = "0".repeat(missing(text, width)?);
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let sign = text.strip_suffix(digits).unwrap_or_default();
            Value::from([sign, &zeros, digits].concat())
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn triple(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, separator, after].map(Value::from)))
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(refuse("empty separator")) } else { Ok(separator) }
}

/// `str.center`
pub(super) fn pad_center(text: &str, width: usize, fill: &str) -> Result<String, Error> {
    let missing = missing(text, width)?;
    // Python puts the odd one on the left if the width is odd.
    let left = missing / 2 + (missing & width & 1);
    Ok([&fill.repeat(left), text, &fill.repeat(missing - left)].concat())
}

/// Characters to add up to `width`.
fn missing(text: &str, width: usize) -> Result<usize, Error> {
    const MAX_WIDTH: usize = 1 << 16;
    if width > MAX_WIDTH {
        return Err(refuse("a text cannot be padded to more than 65536 characters"));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<i64>) -> Result<Value, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(most.saturating_add(1), not_empty(separator)?).collect(),
        None => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end());
            while !rest.is_empty() && parts.len() < most {
                let (before, last) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
                parts.push(last);
                rest = before.trim_end();
            }
            parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_lines(text: &str, keep_ends: bool) -> Value {
    let is_end = |char: char| {
        matches!(
            char,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some((line, end)) = rest.find(is_end).and_then(|at| rest.split_at_checked(at)) {
        let end_len =
            if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        let kept = if keep_ends { line.len() + end_len } else { line.len() };
        lines.push(rest.get(..kept).unwrap_or_default());
        rest = end.get(end_len..).unwrap_or_default();
    }
    lines.extend(Some(rest).filter(|rest| !rest.is_empty()));
    lines.into_iter().map(Value::from).collect()
}
