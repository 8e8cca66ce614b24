//! Fields to a [`ChatRequest`]; finished sequences and events to the response's types.

use super::super::logprobs::{ChatLogprobs, TokenNames, prompt_logprobs};
use super::super::messages::Chat;
use super::super::model_choice::ModelChoice;
use super::super::params::{MAX_LOGPROBS, Params, StreamOptions};
use super::super::reply::{Envelope, Usage};
use super::super::unsupported;
use super::types::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, Delta,
};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Completed, Drawn, Finish, TextEvent};
use std::sync::Arc;
use weft_types::{TokenId, TokenLogprobs};

/// A chat completion, as asked for.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) choice: ModelChoice,
    pub(super) chat: Chat,
    pub(super) params: Params,
}

impl ChatRequest {
    pub(super) fn read(fields: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let choice = ModelChoice::read(fields)?;
        unsupported::refuse(fields)?;
        if fields.boolean("echo", false)? {
            let message = "`echo` is not supported for chats; /v1/completions supports it";
            return Err(ApiError::unsupported("echo", message));
        }
        let mut params = Params::read(fields, vocab_size, 1)?;
        params.sampling.logprobs = logprobs(fields)?;
        params.read_prompt_logprobs(fields)?;
        Ok(Self { choice, chat: Chat::read(fields)?, params })
    }
}

/// `logprobs` switches, `top_logprobs` counts.
fn logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs", false)?;
    match fields.count("top_logprobs", 0..=MAX_LOGPROBS)? {
        Some(count) if !wanted && count > 0 => Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` can only be set when `logprobs` is true",
        )),
        count => Ok(wanted.then_some(count.unwrap_or(0))),
    }
}

/// What the response shows beside text.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) envelope: Envelope,
    pub(super) names: TokenNames,
    pub(super) tokenizer: weft_text::Tokenizer,
    pub(super) prompt: Arc<[TokenId]>,
    pub(super) logprobs: bool,
    pub(super) prompt_logprobs: bool,
    pub(super) token_ids: bool,
}

impl Shape {
    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::of(&self.names, logprobs))
    }

    fn prompt_token_ids(&self) -> Option<Vec<TokenId>> {
        self.token_ids.then(|| self.prompt.to_vec())
    }

    /// The whole answer.
    pub(super) fn body(self, completed: Vec<Completed>) -> ChatCompletion {
        let num_drawn = completed.iter().map(|choice| choice.tokens.len()).sum();
        let first = completed.first();
        let cached_tokens = first.and_then(|choice| choice.cached_tokens);
        let prompt_logprobs = first
            .filter(|_| self.prompt_logprobs)
            .map(|choice| prompt_logprobs(&self.tokenizer, &choice.prompt_logprobs));
        let choice = |(index, choice): (usize, Completed)| ChatChoice {
            index,
            logprobs: self.logprobs(&choice.logprobs),
            message: AssistantMessage { role: "assistant", content: choice.text },
            finish_reason: choice.finish.reason,
            stop_reason: choice.finish.stop,
            token_ids: self.token_ids.then_some(choice.tokens),
        };
        ChatCompletion {
            choices: completed.into_iter().enumerate().map(choice).collect(),
            usage: Usage::new(self.prompt.len(), num_drawn, cached_tokens),
            prompt_logprobs,
            prompt_token_ids: self.prompt_token_ids(),
            envelope: self.envelope,
        }
    }
}

/// Turns events into chunks.
pub(super) struct ChunkWriter {
    shape: Shape,
    options: StreamOptions,
    choices: Vec<ChoiceProgress>,
    num_running: usize,
    cached_tokens: Option<usize>,
}

#[derive(Clone, Default)]
struct ChoiceProgress {
    started: bool,
    num_tokens: usize,
}

impl ChunkWriter {
    pub(super) fn new(shape: Shape, options: StreamOptions, num_choices: usize) -> Self {
        let choices = vec![ChoiceProgress::default(); num_choices];
        Self { shape, options, choices, num_running: num_choices, cached_tokens: None }
    }

    /// The chunks that an event of choice `index` gives; an error is the last thing to send.
    pub(super) fn chunks(
        &mut self,
        index: usize,
        event: TextEvent,
    ) -> Vec<Result<ChatChunk, ApiError>> {
        let mut chunks = Vec::new();
        match event {
            // Not sent in streams.
            TextEvent::PromptLogprobs(_) => {}
            TextEvent::Delta { text, drawn } => {
                self.start(index, &mut chunks);
                chunks.extend(self.delta(index, text, drawn));
            }
            TextEvent::Finished { finish, cached_tokens } => {
                self.start(index, &mut chunks);
                chunks.push(self.finish(index, finish));
                if index == 0 {
                    self.cached_tokens = cached_tokens;
                }
                self.num_running -= 1;
                if self.num_running == 0 && self.options.include_usage {
                    chunks.push(self.final_usage());
                }
            }
            TextEvent::Failed(error) => return vec![Err(error)],
        }
        chunks.into_iter().map(Ok).collect()
    }

    /// The role comes first, once, when the first token is there: a client that measures the time
    /// to the first chunk measures the time to the first token.
    fn start(&mut self, index: usize, chunks: &mut Vec<ChatChunk>) {
        if std::mem::replace(&mut self.choices[index].started, true) {
            return;
        }
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        let mut chunk = self.chunk(choice(index, delta));
        chunk.prompt_token_ids = self.shape.prompt_token_ids();
        chunks.push(chunk);
    }

    /// None if there is nothing to say: text may be held back.
    fn delta(&mut self, index: usize, text: String, drawn: Option<Drawn>) -> Option<ChatChunk> {
        self.choices[index].num_tokens += usize::from(drawn.is_some());
        let shows_token = drawn.is_some() && (self.shape.logprobs || self.shape.token_ids);
        if text.is_empty() && !shows_token {
            return None;
        }
        let mut choice = choice(index, Delta { role: None, content: Some(text) });
        if let Some(drawn) = drawn {
            choice.logprobs = self.shape.logprobs(drawn.logprobs.as_slice());
            choice.token_ids = self.shape.token_ids.then(|| vec![drawn.token]);
        }
        Some(self.chunk(choice))
    }

    fn finish(&self, index: usize, finish: Finish) -> ChatChunk {
        let mut choice = choice(index, Delta::default());
        choice.finish_reason = Some(finish.reason);
        choice.stop_reason = finish.stop;
        self.chunk(choice)
    }

    fn final_usage(&self) -> ChatChunk {
        let num_drawn = self.choices.iter().map(|choice| choice.num_tokens).sum();
        let usage = Usage::new(self.shape.prompt.len(), num_drawn, self.cached_tokens);
        let envelope = self.shape.envelope.clone();
        ChatChunk { envelope, choices: Vec::new(), usage: Some(usage), prompt_token_ids: None }
    }

    fn chunk(&self, choice: ChatChunkChoice) -> ChatChunk {
        let num_drawn = self.choices[choice.index].num_tokens;
        let continuous = self.options.continuous_usage;
        let usage = continuous.then(|| Usage::new(self.shape.prompt.len(), num_drawn, None));
        let envelope = self.shape.envelope.clone();
        ChatChunk { envelope, choices: vec![choice], usage, prompt_token_ids: None }
    }
}

fn choice(index: usize, delta: Delta) -> ChatChunkChoice {
    ChatChunkChoice {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}
