//! In: a prompt as the client wrote it. Out: its tokens, known to fit the context.

use crate::error::ApiError;
use crate::fields;
use crate::state::AppState;
use serde_json::Value;
use std::sync::Arc;
use weft_types::TokenId;

const MAX_PROMPTS: usize = 64;
/// Lists of token ids are cut at no context that we know of; this only bounds the work of reading.
const MAX_PROMPT_TOKENS: usize = 4 << 20;

/// A prompt as the client wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptInput {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// A prompt ready to be submitted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    /// As text, if it was text.
    pub(crate) text: Option<String>,
    pub(crate) tokens: Arc<[TokenId]>,
}

impl PromptInput {
    /// A text, a list of texts, token ids, or a list of lists of token ids.
    pub(crate) fn read_all(value: Value, vocab_size: usize) -> Result<Vec<Self>, ApiError> {
        let items = match value {
            Value::String(text) => return Ok(vec![Self::Text(text)]),
            Value::Array(items) => items,
            other => return Err(wrong_type("prompt", &other)),
        };
        match items.first() {
            None => Err(ApiError::invalid("prompt", "`prompt` must not be empty")),
            Some(Value::Number(_)) => {
                let items = fields::list(Value::Array(items), "prompt", MAX_PROMPT_TOKENS)?;
                Ok(vec![Self::Tokens(fields::token_ids(&items, "prompt", vocab_size)?)])
            }
            Some(_) => {
                let items = fields::list(Value::Array(items), "prompt", MAX_PROMPTS)?;
                let read =
                    |(index, item)| Self::item(item, &format!("prompt[{index}]"), vocab_size);
                items.into_iter().enumerate().map(read).collect()
            }
        }
    }

    fn item(value: Value, path: &str, vocab_size: usize) -> Result<Self, ApiError> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(_) => {
                let items = fields::list(value, path, MAX_PROMPT_TOKENS)?;
                Ok(Self::Tokens(fields::token_ids(&items, path, vocab_size)?))
            }
            other => Err(wrong_type(path, &other)),
        }
    }

    /// The tokens; texts get the model's first token if `add_special_tokens`.
    pub(crate) async fn tokenize(
        self,
        state: &AppState,
        add_special_tokens: bool,
    ) -> Result<Prompt, ApiError> {
        match self {
            Self::Tokens(tokens) => Ok(Prompt { text: None, tokens: tokens.into() }),
            Self::Text(text) => {
                let (tokenizer, num_bytes) = (state.tokenizer().clone(), text.len());
                let encode = move || {
                    let tokens = tokenizer.encode(&text, add_special_tokens);
                    tokens.map(|tokens| Prompt { text: Some(text), tokens: tokens.into() })
                };
                Ok(state.offload().run(num_bytes, encode).await??)
            }
        }
    }
}

fn wrong_type(path: &str, found: &Value) -> ApiError {
    let kind = fields::kind(found);
    let message = format!(
        "`{path}` must be a string, a list of strings, a list of token ids or a list of such lists, but it is {kind}"
    );
    ApiError::invalid(path, message)
}

/// What prompt and output must fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) max_model_len: usize,
    /// Tokens that the adapter puts before the prompt.
    pub(crate) num_virtual: usize,
}

impl Prompt {
    /// The number of tokens that may be drawn: what was asked for, else `default`, and never more
    /// than the context leaves. `param` is the field that holds the prompt.
    pub(crate) fn room(
        &self,
        asked: Option<u32>,
        default: u32,
        context: Context,
        param: &'static str,
    ) -> Result<u32, ApiError> {
        let Context { max_model_len, num_virtual } = context;
        let num_tokens = self.tokens.len();
        if num_tokens == 0 {
            return Err(ApiError::invalid(param, format!("`{param}` has no tokens")));
        }
        let all_tokens = num_tokens + num_virtual;
        let left = max_model_len.saturating_sub(all_tokens);
        let left_tokens = u32::try_from(left).unwrap_or(u32::MAX);
        let prompt_fits = all_tokens <= max_model_len && (left > 0 || asked == Some(0));
        let beside = match num_virtual {
            0 => String::new(),
            _ => format!(" and its adapter puts {num_virtual} virtual tokens before it"),
        };
        if !prompt_fits {
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens. However, your prompt has {num_tokens} tokens{beside}."
            );
            return Err(ApiError::context_exceeded(param, message));
        }
        match asked {
            Some(asked) if asked > left_tokens => {
                let message = format!(
                    "This model's maximum context length is {max_model_len} tokens. However, you asked for {asked} tokens after a prompt of {num_tokens}{beside}."
                );
                Err(ApiError::context_exceeded("max_tokens", message))
            }
            Some(asked) => Ok(asked),
            None => Ok(default.min(left_tokens)),
        }
    }
}
