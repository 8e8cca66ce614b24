//! Whether a request is acceptable, before it costs anything. In: a request and the limits. Out: a
//! refusal that says what to change.

use weft_scheduler::{AddError, PromptLength, check_fits};
use weft_types::{ExecutorLimits, GenerateRequest, TokenId};

/// Why a request was not accepted. None of its work was begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait already. It may be sent again later.
    #[error("{max} requests wait already: try again later")]
    QueueFull {
        /// How many may wait.
        max: usize,
    },
    /// One tenant has as many requests as it may, for the sake of the others.
    #[error("this tenant has {max} unfinished requests already: try again when some have ended")]
    TenantQueueFull {
        /// How many it may have.
        max: usize,
    },
    /// The request would not begin to run in the time that it may wait.
    #[error("the request would wait for about {wait_s} s, longer than it may: try again later")]
    TooLate {
        /// Seconds that it would wait.
        wait_s: u64,
    },
    /// It could not run even alone.
    #[error(transparent)]
    DoesNotFit(#[from] AddError),
    /// The model has no such token.
    #[error("token {token} is out of range: the vocabulary has {vocab_size} tokens")]
    TokenOutOfRange {
        /// The first one that is too large.
        token: TokenId,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// The engine is shutting down, or has ended.
    #[error("the server is shutting down")]
    Stopped,
}

pub(crate) fn check_request(
    request: &GenerateRequest,
    num_virtual: usize,
    limits: &ExecutorLimits,
    vocab_size: usize,
    adapter_chunks: usize,
) -> Result<(), SubmitError> {
    let prompt = PromptLength { given: request.prompt.len(), num_virtual };
    check_fits(limits, prompt, &request.stop, adapter_chunks)?;
    let too_large = |token: &&TokenId| **token as usize >= vocab_size;
    match request.prompt.iter().find(too_large) {
        Some(&token) => Err(SubmitError::TokenOutOfRange { token, vocab_size }),
        None => Ok(()),
    }
}

/// The most events that a request can cause: a chunk of prompt log probabilities has at least one
/// entry, and one event ends it.
pub(crate) fn max_events(request: &GenerateRequest, limits: &ExecutorLimits) -> usize {
    let num_prompt_tokens = request.prompt.len();
    let room = limits.max_model_len.saturating_sub(num_prompt_tokens);
    let prompt_events = request.sampling.prompt_logprobs.map_or(0, |_| num_prompt_tokens);
    prompt_events + room.min(request.stop.max_tokens as usize) + 2
}
