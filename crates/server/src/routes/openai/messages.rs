//! In: the `messages` of a chat and how to end them. Out: what the chat template renders.

use super::params::optional_boolean;
use super::unsupported::refuse_unless_empty;
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::state::AppState;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use weft_text::RenderInput;

const MAX_MESSAGES: usize = 4096;
const MAX_PARTS: usize = 4096;

/// Variables of the rendering itself, which a client must not replace.
const RESERVED_VARIABLES: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "tokenize",
    "chat_template",
    "conversation",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
];

/// A chat, checked, not yet rendered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chat {
    messages: Vec<Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Map<String, Value>,
    /// Bytes of all contents.
    num_bytes: usize,
}

impl Chat {
    /// Reads `messages` and the options of rendering.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let values = fields::list(fields.required("messages")?, "messages", MAX_MESSAGES)?;
        if values.is_empty() {
            return Err(ApiError::invalid("messages", "`messages` must not be empty"));
        }
        let read = |(index, value)| message(value, &format!("messages[{index}]"));
        let messages: Vec<_> =
            values.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let content_bytes = |message: &Value| message["content"].as_str().map_or(0, str::len);
        let num_bytes = messages.iter().map(content_bytes).sum();

        let continue_final_message = fields.boolean("continue_final_message", false)?;
        let add_generation_prompt = optional_boolean(fields, "add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let message =
                "`continue_final_message` and `add_generation_prompt` must not both be true";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let add_generation_prompt = add_generation_prompt.unwrap_or(!continue_final_message);
        let variables = variables(fields)?;
        Ok(Self { messages, add_generation_prompt, continue_final_message, variables, num_bytes })
    }

    /// The prompt as text.
    pub(crate) async fn render(self, state: &AppState) -> Result<String, ApiError> {
        let Some(template) = state.template().map(Arc::clone) else {
            let message = "this base model has no chat template; use /v1/completions";
            return Err(ApiError::invalid("messages", message));
        };
        let render = move || {
            template.render(&RenderInput {
                messages: &self.messages,
                add_generation_prompt: self.add_generation_prompt,
                continue_final_message: self.continue_final_message,
                tools: None,
                kwargs: self.variables,
            })
        };
        let rendered = state.offload().run(self.num_bytes, render).await?;
        rendered.map_err(|error| ApiError::invalid("messages", error.to_string()))
    }
}

fn variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let Some(variables) = fields.object("chat_template_kwargs")? else { return Ok(Map::new()) };
    let variables = variables.into_map();
    match RESERVED_VARIABLES.iter().find(|name| variables.contains_key(**name)) {
        None => Ok(variables),
        Some(name) => {
            let message = format!("`chat_template_kwargs` must not set `{name}`");
            Err(ApiError::invalid("chat_template_kwargs", message))
        }
    }
}

/// `{"role", "content", "name"?}`, the content one string.
fn message(value: Value, path: &str) -> Result<Value, ApiError> {
    let mut fields = Fields::of(value, path)?;
    let role = fields.required_string("role")?;
    for key in ["tool_calls", "function_call", "tool_call_id", "audio"] {
        refuse_unless_empty(&mut fields, key)?;
    }
    let content_path = fields.path("content");
    let content = match fields.required("content")? {
        Value::String(text) => text,
        Value::Array(parts) => join(parts, &content_path)?,
        other => {
            let kind = fields::kind(&other);
            let message = format!(
                "`{content_path}` must be a string or a list of text parts, but it is {kind}"
            );
            return Err(ApiError::invalid(content_path, message));
        }
    };
    Ok(match fields.string("name")? {
        Some(name) => json!({ "role": role, "content": content, "name": name }),
        None => json!({ "role": role, "content": content }),
    })
}

/// The texts of all parts, a line each: templates take strings.
fn join(parts: Vec<Value>, path: &str) -> Result<String, ApiError> {
    let parts = fields::list(Value::Array(parts), path, MAX_PARTS)?;
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, &format!("{path}[{index}]"))?;
        let kind_path = part.path("type");
        let kind = part.required_string("type")?;
        if kind != "text" {
            let message = format!("`{kind_path}` is `{kind}`, but this server takes `text` only");
            return Err(ApiError::unsupported(kind_path, message));
        }
        let text_path = part.path("text");
        texts.push(fields::string(part.required("text")?, &text_path)?);
    }
    Ok(texts.join("\n"))
}
