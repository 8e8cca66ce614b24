//! `/v1/completions`.

mod convert;
mod types;

use self::convert::{ChunkWriter, CompletionRequest, PromptShape, Shape};
use super::logprobs::TokenNames;
use super::prompt::Context;
use super::reply::{Envelope, UnknownParams};
use crate::access::RequestId;
use crate::error::ApiError;
use crate::generation::{SequenceInput, collect, merge, submit};
use crate::json::JsonBody;
use crate::sse;
use crate::state::AppState;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use futures::stream::{self, StreamExt as _};

/// OpenAI's default of `max_tokens` on this route.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    JsonBody(mut fields): JsonBody,
) -> Result<Response, ApiError> {
    let mut request = CompletionRequest::read(&mut fields, state.tokenizer().vocab_size())?;
    request.params.set_key_tenant(&headers);
    let unknown = UnknownParams::of(&fields);
    let lease = request.choice.resolve(&state, &request.params.queueing.tenant).await?;

    let context = state.context(lease.as_ref());
    let (inputs, prompts) = prepare(&state, context, &mut request).await?;
    let sequences = submit(&state, lease.as_ref(), inputs, "prompt")?;

    let params = &request.params;
    let shape = Shape {
        envelope: Envelope::new(
            "cmpl",
            &request_id,
            "text_completion",
            request.choice.model.into(),
        ),
        names: TokenNames::new(state.tokenizer().clone(), params.tokens),
        tokenizer: state.tokenizer().clone(),
        prompts,
        num_choices: params.num_choices,
        echo: request.echo,
        logprobs: params.sampling.logprobs.is_some(),
        prompt_logprobs: request.prompt_logprobs,
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

/// The sequences of all prompts, `n` of each in a row, and what the response shows of the prompts.
async fn prepare(
    state: &AppState,
    context: Context,
    request: &mut CompletionRequest,
) -> Result<(Vec<SequenceInput>, Vec<PromptShape>), ApiError> {
    let (params, tokenizer) = (&request.params, state.tokenizer());
    let add_special_tokens = params.add_special_tokens.unwrap_or(true);
    let (mut inputs, mut prompts) = (Vec::new(), Vec::new());
    for input in std::mem::take(&mut request.prompts) {
        let prompt = input.tokenize(state, add_special_tokens).await?;
        let room = prompt.room(params.max_tokens, DEFAULT_MAX_TOKENS, context, "prompt")?;
        inputs.extend(params.sequences(&prompt.tokens, room, tokenizer.eos_token_ids()));
        let tokens = prompt.tokens;
        let echoed = request.echo.then(|| match prompt.text {
            Some(text) => text,
            None => tokenizer.decode(&tokens, params.tokens.skip_special),
        });
        prompts.push(PromptShape { echoed: echoed.unwrap_or_default(), tokens });
    }
    Ok((inputs, prompts))
}
