//! What the engine tells the stream of one request.

use crate::executor::ExecuteError;
use crate::id::TokenId;
use serde::{Deserialize, Serialize};

/// Natural log of a token's probability, before temperature, penalties and truncation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// ln p
    pub logprob: f32,
}

/// The log probability of a token and of the most likely ones at its position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token that was drawn (or that stands in the prompt).
    pub chosen: TokenLogprob,
    /// As many as were asked for, most likely first.
    pub top: Vec<TokenLogprob>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FinishReason {
    /// A stop token was drawn; it is the last token sent, and named here.
    Stop(TokenId),
    /// `max_tokens` or the model's context was reached.
    Length,
}

/// Counts for the response's `usage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt as the client sent it: virtual tokens are never counted.
    pub prompt_tokens: usize,
    /// Of those, how many were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens drawn.
    pub completion_tokens: usize,
}

/// One event of a request's stream. The last is `Finished`, `Failed` or `Expired`,
/// exactly once.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// Log probabilities of further prompt tokens, in order, before the first `Token`.
    /// The prompt's first token has none and is not counted.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// A drawn token. A stop token is sent too, and followed by `Finished`.
    Token {
        /// The token.
        token: TokenId,
        /// If asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The sequence ended well.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The counts.
        usage: Usage,
    },
    /// The step that computed this sequence failed; others go on.
    Failed(ExecuteError),
    /// The sequence's deadline came before it ran: nothing of it was computed.
    Expired,
}
