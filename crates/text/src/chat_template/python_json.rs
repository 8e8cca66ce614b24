//! Values as Python's `json.dumps` writes them, which is what `tojson` means in chat templates, and
//! numbers as Python prints them.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// `json.dumps`'s options.
#[derive(Clone, Debug)]
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// Written once per level; `None` puts everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

/// # Errors
/// For values that JSON does not have, and output longer than `max_bytes`.
pub(super) fn dumps(value: &Value, style: &JsonStyle, max_bytes: usize) -> Result<String, Error> {
    let mut writer = Writer { out: String::new(), style, level: 0, max_bytes };
    writer.value(value)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a JsonStyle,
    level: usize,
    max_bytes: usize,
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.container(['[', ']'], &items, |writer, item| writer.value(item))?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.collect::<Vec<_>>();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.container(['{', '}'], &keys, |writer, key| {
                    writer.key(key)?;
                    writer.out.push_str(&writer.style.key_separator);
                    writer.value(&value.get_item(key)?)
                })?;
            }
            kind => {
                return Err(refuse(format!("a value that is {kind} cannot be written as JSON")));
            }
        }
        if self.out.len() > self.max_bytes {
            return Err(refuse(format!("tojson wrote more than {} bytes", self.max_bytes)));
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        self.level += 1;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.style.item_separator);
            }
            self.new_line();
            write(self, item)?;
        }
        self.level -= 1;
        if !items.is_empty() {
            self.new_line();
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.level));
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key)?;
                self.out.push('"');
            }
            kind => return Err(refuse(format!("a key of JSON cannot be a {kind}"))),
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if char < ' ' || (self.style.ensure_ascii && char > '~') => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => self.out.push(char),
            }
        }
        self.out.push('"');
    }
}

/// A number as JSON; infinities and NaN as Python writes them.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) if float.is_nan() => "NaN".to_owned(),
        Ok(float) if float.is_infinite() => {
            if float > 0.0 {
                "Infinity".to_owned()
            } else {
                "-Infinity".to_owned()
            }
        }
        Ok(float) => float_repr(float),
        Err(_) => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn style() -> JsonStyle {
        JsonStyle {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ];
        for (float, expected) in cases {
            assert_eq!(float_repr(float), expected);
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value =
            context! { a => vec![1, 2], b => "é\"<'>\u{7f}\u{1}", c => context! {}, d => () };
        assert_eq!(
            dumps(&value, &style(), 1000).unwrap(),
            "{\"a\": [1, 2], \"b\": \"é\\\"<'>\u{7f}\\u0001\", \"c\": {}, \"d\": null}"
        );
        let ascii = JsonStyle { ensure_ascii: true, ..style() };
        assert_eq!(dumps(&Value::from("é🙂"), &ascii, 1000).unwrap(), "\"\\u00e9\\ud83d\\ude42\"");
        let indented =
            JsonStyle { indent: Some("  ".to_owned()), item_separator: ",".to_owned(), ..style() };
        assert_eq!(
            dumps(&context! { a => vec![1], b => Vec::<i32>::new() }, &indented, 1000).unwrap(),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"
        );
    }

    #[test]
    fn json_longer_than_the_limit_and_undefined_values_are_refused() {
        assert!(dumps(&Value::from(vec!["x"; 100]), &style(), 50).is_err());
        assert!(dumps(&Value::UNDEFINED, &style(), 50).is_err());
    }
}
