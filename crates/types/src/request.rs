//! What a client wants generated, after parsing and validation.

use crate::id::TokenId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How the next token is drawn from the logits.
///
/// Applied in this order: logit bias, repetition / presence / frequency penalties, temperature,
/// top-k, top-p, min-p. `temperature == 0` is greedy: the arg max after bias and penalties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens with at least this probability mass; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of output tokens once per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The draw of output token `i` depends on `(seed, i)` only, never on the batch.
    pub seed: u64,
    /// Return the log probability of each output token, and of this many most likely ones.
    pub logprobs: Option<u32>,
    /// The same for the tokens of the prompt (the first has none).
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// When a sequence ends, as far as tokens can tell. Stop strings are found after detokenization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopConditions {
    /// At most this many output tokens. 0 is allowed: the prompt is computed and nothing is drawn.
    pub max_tokens: u32,
    /// Stop tokens are not drawn before this many output tokens.
    pub min_tokens: u32,
    /// Tokens that end the sequence: the model's end-of-sequence ids (unless `ignore_eos`)
    /// and the client's `stop_token_ids`.
    pub stop_token_ids: Vec<TokenId>,
}

/// One sequence to generate. `n > 1` is several of these, made by the server.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// At least one token, each below the vocabulary size: without the virtual tokens of an adapter.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// When the sequence ends.
    pub stop: StopConditions,
    /// Cached KV blocks are shared only between requests of equal salt.
    pub cache_salt: Option<Arc<str>>,
    /// Who asks, and how urgently.
    pub queueing: Queueing,
}

/// How a request waits for its turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Queueing {
    /// Service is shared out evenly among tenants.
    pub tenant: Arc<str>,
    /// Lower ones run first, whoever asks.
    pub priority: i32,
    /// If it has not begun to run after so long, it is not wanted any more.
    pub timeout: Option<Duration>,
}

impl Default for Queueing {
    /// A tenant without a name, no urgency.
    fn default() -> Self {
        Self { tenant: Arc::from(""), priority: 0, timeout: None }
    }
}
