//! The response of `/v1/completions`, as serialized.

use super::super::logprobs::CompletionLogprobs;
use super::super::reply::{Envelope, Usage};
use crate::generation::StopReason;
use serde::Serialize;
use serde_json::Value;
use weft_types::TokenId;

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Completion {
    #[serde(flatten)]
    pub(super) envelope: Envelope,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
}

/// One event of a streamed answer.
#[derive(Debug, Serialize)]
pub(super) struct CompletionChunk {
    #[serde(flatten)]
    pub(super) envelope: Envelope,
    /// One, or none in the chunk that carries the final usage.
    pub(super) choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
}

/// A choice, or what a chunk adds to it.
#[derive(Debug, Serialize)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<CompletionLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
    pub(super) stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<Vec<Value>>,
    /// In streams, in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<TokenId>>,
}
