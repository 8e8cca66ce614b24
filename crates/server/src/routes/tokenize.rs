//! `/tokenize` and `/detokenize`, with vLLM's bodies: text or a chat to token ids, and back.

use super::openai::messages::Chat;
use super::openai::prompt::PromptInput;
use crate::error::ApiError;
use crate::fields;
use crate::json::JsonBody;
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use weft_types::TokenId;

/// More tokens than any context has.
const MAX_TOKENS: usize = 4 << 20;

#[derive(Debug, Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Detokenized {
    prompt: String,
}

pub(crate) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Tokenized>, ApiError> {
    require_model(&state, fields.string("model")?.as_deref()).await?;
    let with_strings = fields.boolean("return_token_strs", false)?;
    let prompt = fields.any("prompt");
    // The template writes the special tokens itself.
    let add_special_tokens = fields.boolean("add_special_tokens", prompt.is_some())?;
    let text = match prompt {
        Some(prompt) => fields::string(prompt, "prompt")?,
        None => Chat::read(&mut fields)?.render(&state).await?,
    };
    let tokens = PromptInput::Text(text).tokenize(&state, add_special_tokens).await?.tokens;
    let strings = |tokens: &[TokenId]| {
        tokens.iter().map(|token| state.tokenizer().token_text(*token)).collect()
    };
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: state.max_model_len(),
        token_strs: with_strings.then(|| strings(&tokens)),
        tokens: tokens.to_vec(),
    }))
}

pub(crate) async fn detokenize(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Detokenized>, ApiError> {
    require_model(&state, fields.string("model")?.as_deref()).await?;
    let tokens = fields.token_ids("tokens", MAX_TOKENS, state.tokenizer().vocab_size())?;
    let tokens = tokens.ok_or_else(|| ApiError::missing("tokens"))?;
    let tokenizer = state.tokenizer().clone();
    let decode = move || tokenizer.decode(&tokens, false);
    Ok(Json(Detokenized { prompt: state.offload().run_blocking(decode).await? }))
}

/// An adapter shares the base's tokenizer: its name is checked and nothing is loaded.
async fn require_model(state: &AppState, model: Option<&str>) -> Result<(), ApiError> {
    let Some(model) = model.filter(|model| !state.is_base(model)) else { return Ok(()) };
    let (registry, name) = (state.adapters().clone(), model.to_owned());
    let known = state.offload().run_blocking(move || registry.get(&name)).await?;
    known.map(|_| ()).ok_or_else(|| ApiError::unknown_model(model))
}
