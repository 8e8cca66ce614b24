//! `/v1/chat/completions`.

mod convert;
mod types;

use self::convert::{ChatRequest, ChunkWriter, Shape};
use super::logprobs::TokenNames;
use super::prompt::PromptInput;
use super::reply::{Envelope, UnknownParams};
use crate::access::RequestId;
use crate::error::ApiError;
use crate::generation::{collect, merge, submit};
use crate::json::JsonBody;
use crate::sse;
use crate::state::AppState;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use futures::stream::{self, StreamExt as _};
use std::sync::Arc;

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    let ChatRequest { choice, chat, mut params } =
        ChatRequest::read(&mut fields, state.tokenizer().vocab_size())?;
    params.set_key_tenant(&headers);
    let unknown = UnknownParams::of(&fields);
    let lease = choice.resolve(&state, &params.queueing.tenant).await?;
    let context = state.context(lease.as_ref());

    let text = PromptInput::Text(chat.render(&state).await?);
    // The template writes the special tokens itself.
    let prompt = text.tokenize(&state, params.add_special_tokens.unwrap_or(false)).await?;
    let max_tokens = prompt.room(params.max_tokens, u32::MAX, context, "messages")?;
    let inputs = params.sequences(&prompt.tokens, max_tokens, state.tokenizer().eos_token_ids());
    let sequences = submit(&state, lease.as_ref(), inputs, "messages")?;

    let object = if params.stream.is_some() { "chat.completion.chunk" } else { "chat.completion" };
    let shape = Shape {
        envelope: Envelope::new("chatcmpl", &request_id, object, choice.model.into()),
        names: TokenNames::new(state.tokenizer().clone(), params.tokens),
        tokenizer: state.tokenizer().clone(),
        prompt: Arc::clone(&prompt.tokens),
        logprobs: params.sampling.logprobs.is_some(),
        prompt_logprobs: params.sampling.prompt_logprobs.is_some(),
        token_ids: params.tokens.return_ids,
    };
    let response = match params.stream {
        None => Json(shape.body(collect(sequences).await?)).into_response(),
        Some(options) => {
            let mut writer = ChunkWriter::new(shape, options, sequences.len());
            let chunks = merge(sequences)
                .flat_map(move |(index, event)| stream::iter(writer.chunks(index, event)));
            sse::respond(chunks, state.config().keep_alive)
        }
    };
    Ok(unknown.mark(response))
}
