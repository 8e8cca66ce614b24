//! The Jinja environment that transformers renders chat templates in, rebuilt on `minijinja`:
//! whitespace rules, filters, tests, functions and methods, with bounds on time, memory and output.

use super::{filters, methods, python_json, source};
use crate::error::TextError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde_json::Map;
use std::fmt::Write as _;
use std::io;

/// Instructions of a rendering, and 64-byte pieces of the values that it makes: far more than a
/// long conversation needs, and less than a second.
const FUEL: u64 = 10_000_000;

/// Bytes of a prompt, and of one `tojson`.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// Nested macro calls and loops.
const RECURSION_LIMIT: usize = 100;

const NAME: &str = "chat_template";

/// A template with its environment.
#[derive(Debug)]
pub(super) struct Compiled {
    environment: Environment<'static>,
    source: String,
}

impl Compiled {
    /// # Errors
    /// [`TextError::BadTemplate`] with the place and the reason.
    pub(super) fn new(source: &str) -> Result<Self, TextError> {
        let bad = |error: Error| TextError::BadTemplate { message: error.to_string() };
        let mut environment = environment().map_err(bad)?;
        environment.add_template_owned(NAME, source::normalize(source)).map_err(bad)?;
        Ok(Self { environment, source: source.to_owned() })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// # Errors
    /// When the template fails, refuses the variables, or exceeds a bound.
    pub(super) fn render(
        &self,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let template = self.environment.get_template(NAME).map_err(render_error)?;
        let context = to_map(variables);
        let mut out = CappedOutput { bytes: Vec::new(), exceeded: false };
        let rendered = template.render_captured_to(context, &mut out);
        if out.exceeded {
            return Err(TextError::RenderedTooLong { max_bytes: MAX_OUTPUT_BYTES });
        }
        rendered.map_err(render_error)?;
        String::from_utf8(out.bytes)
            .map_err(|error| TextError::Render { message: error.to_string() })
    }
}

/// Keeps output until there is too much of it.
struct CappedOutput {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl io::Write for CappedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `raise_exception` raised.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn render_error(error: Error) -> TextError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TextError::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    let message = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
        _ => error.to_string(),
    };
    TextError::Render { message }
}

fn to_map(fields: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), to_value(value))))
}

fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => {
            let integer = number.as_i64().map(Value::from).or(number.as_u64().map(Value::from));
            integer.unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN)))
        }
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(to_value).collect(),
        serde_json::Value::Object(fields) => to_map(fields),
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(false)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_debug(false);
    environment.set_formatter(format_value);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("string", |value: &Value| match python_text(value) {
        Some(text) => Value::from(text),
        None if value.kind() == ValueKind::String => value.clone(),
        None => Value::from(value.to_string()),
    });
    filters::add_to(&mut environment);
    environment.add_filter("tojson", tojson);
    environment.add_test("sequence", |value: &Value| {
        // Whatever has a length and items is a sequence in Python.
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
            || value.is_undefined()
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

fn format_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match python_text(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// `str(value)` where it differs from `minijinja`'s: numbers, alone or in lists and dicts.
fn python_text(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).ok().map(python_json::float_repr)
        }
        ValueKind::Seq => {
            let items = value.try_iter().ok()?.map(|item| python_repr(&item)).collect::<Vec<_>>();
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            Some(match items.as_slice() {
                [item] if is_tuple => format!("({item},)"),
                _ if is_tuple => format!("({})", items.join(", ")),
                _ => format!("[{}]", items.join(", ")),
            })
        }
        ValueKind::Map => {
            let pair = |key: Value| {
                let item = value.get_item(&key).ok()?;
                Some(format!("{}: {}", python_repr(&key), python_repr(&item)))
            };
            let pairs: Vec<String> = value.try_iter().ok()?.map(pair).collect::<Option<_>>()?;
            // Namespaces, loops and the like have no fields to show.
            (!pairs.is_empty()).then(|| format!("{{{}}}", pairs.join(", ")))
        }
        _ => None,
    }
}

fn python_repr(value: &Value) -> String {
    python_text(value).unwrap_or_else(|| format!("{value:?}"))
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: invalid format"))?;
    Ok(text)
}

type JsonArguments = (Option<bool>, Option<Value>, Option<Value>, Option<bool>);

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    const MAX_INDENT: usize = 64;
    let bad = |message| Error::new(ErrorKind::InvalidOperation, message);
    let (ensure_ascii, indent, separators, sort_keys): JsonArguments = from_args(&args)?;
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(kwargs.get("indent")?);
    let separators = separators.or(kwargs.get("separators")?);
    let sort_keys = sort_keys.or(kwargs.get("sort_keys")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(indent)?.clamp(0, MAX_INDENT as i64) as usize),
        }),
    };
    let (item_separator, key_separator) = match separators.filter(|given| !given.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(given) => {
            let given: Vec<Value> = given.try_iter()?.collect();
            match given.as_slice() {
                [item, key] => (item.to_string(), key.to_string()),
                _ => return Err(bad("tojson: separators must be two strings")),
            }
        }
    };
    let style =
        python_json::JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    python_json::dumps(value, &style, MAX_OUTPUT_BYTES)
}
