//! In: the fields of a request. Out: an error for each that we know and do not support yet.
//!
//! A field that would be ignored silently changes what the client gets: it is refused by name,
//! unless its value asks for nothing.

use crate::error::ApiError;
use crate::fields::{Fields, kind};
use serde_json::Value;

/// Which value of an unsupported field asks for nothing.
#[derive(Clone, Copy)]
enum Neutral {
    /// None does.
    Never,
    False,
    /// `""`, `[]` or `{}`
    Empty,
    OneOf(&'static [&'static str]),
}

const UNSUPPORTED: &[(&str, Neutral)] = &[
    ("tools", Neutral::Empty),
    ("tool_choice", Neutral::OneOf(&["none", "auto"])),
    ("functions", Neutral::Empty),
    ("function_call", Neutral::OneOf(&["none", "auto"])),
    ("structured_outputs", Neutral::Never),
    ("guided_json", Neutral::Never),
    ("guided_regex", Neutral::Never),
    ("guided_choice", Neutral::Never),
    ("guided_grammar", Neutral::Never),
    ("guided_decoding_backend", Neutral::Never),
    ("guided_whitespace_pattern", Neutral::Never),
    ("structural_tag", Neutral::Never),
    ("suffix", Neutral::Empty),
    ("prompt_embeds", Neutral::Never),
    ("use_beam_search", Neutral::False),
    ("length_penalty", Neutral::Never),
    ("bad_words", Neutral::Empty),
    ("allowed_token_ids", Neutral::Never),
    ("logprob_token_ids", Neutral::Empty),
    ("logits_processors", Neutral::Empty),
    ("truncate_prompt_tokens", Neutral::Never),
    ("chat_template", Neutral::Never),
    ("documents", Neutral::Empty),
    ("reasoning_effort", Neutral::OneOf(&["none"])),
    ("thinking_token_budget", Neutral::Never),
    ("include_reasoning", Neutral::False),
    ("vllm_xargs", Neutral::Empty),
    ("kv_transfer_params", Neutral::Empty),
    ("repetition_detection", Neutral::Never),
    ("mm_processor_kwargs", Neutral::Empty),
    ("modalities", Neutral::Empty),
    ("audio", Neutral::Never),
    ("prediction", Neutral::Never),
    ("web_search_options", Neutral::Never),
    ("verbosity", Neutral::OneOf(&["medium"])),
    ("store", Neutral::False),
];

/// Fields that say something about the request and ask for nothing in the answer.
const WITHOUT_EFFECT: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "request_id",
    "safety_identifier",
    "service_tier",
    "session_id",
];

/// Takes all fields that we know and do not read; an error when one of them asks for something.
pub(super) fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, neutral) in UNSUPPORTED {
        let Some(value) = fields.any(name) else { continue };
        if !neutral.is(&value) {
            let message = format!("`{name}` is not supported by this server yet; leave it out");
            return Err(ApiError::unsupported(*name, message));
        }
    }
    for name in WITHOUT_EFFECT {
        fields.any(name);
    }
    refuse_formats(fields)
}

/// `response_format` may ask for plain text only.
fn refuse_formats(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(()) };
    let kind = format.required_string("type")?;
    match kind.as_str() {
        "text" => Ok(()),
        "json_object" | "json_schema" | "structural_tag" => Err(ApiError::unsupported(
            "response_format",
            format!(
                "`response_format` of type `{kind}` is not supported by this server yet; only `text` is"
            ),
        )),
        _ => Err(ApiError::invalid(
            "response_format.type",
            "`response_format.type` must be `text`, `json_object` or `json_schema`",
        )),
    }
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::Never => false,
            Self::False => value == &Value::Bool(false),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            },
            Self::OneOf(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
        }
    }
}

/// A message's or part's field that is refused unless it is absent, `null` or empty.
pub(super) fn refuse_unless_empty(fields: &mut Fields, key: &str) -> Result<(), ApiError> {
    let Some(value) = fields.any(key) else { return Ok(()) };
    if Neutral::Empty.is(&value) {
        return Ok(());
    }
    let path = fields.path(key);
    let message = format!("`{path}` ({}) is not supported by this server yet", kind(&value));
    Err(ApiError::unsupported(path, message))
}
