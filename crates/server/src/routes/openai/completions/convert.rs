//! Fields to a [`CompletionRequest`]; finished sequences and events to the response's types.

use super::super::logprobs::{CompletionLogprobs, TokenNames, prompt_logprobs};
use super::super::model_choice::ModelChoice;
use super::super::params::{MAX_LOGPROBS, Params, StreamOptions};
use super::super::prompt::PromptInput;
use super::super::reply::{Envelope, Usage};
use super::super::unsupported;
use super::types::{Choice, Completion, CompletionChunk};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Completed, Drawn, Finish, TextEvent};
use std::sync::Arc;
use weft_text::Tokenizer;
use weft_types::{TokenId, TokenLogprobs};

/// A completion, as asked for.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    pub(super) choice: ModelChoice,
    pub(super) prompts: Vec<PromptInput>,
    pub(super) echo: bool,
    /// Whether the client asked for them; `echo` may need them too.
    pub(super) prompt_logprobs: bool,
    pub(super) params: Params,
}

impl CompletionRequest {
    pub(super) fn read(fields: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let choice = ModelChoice::read(fields)?;
        unsupported::refuse(fields)?;
        let mut params = Params::read(fields, vocab_size, 0)?;
        params.read_prompt_logprobs(fields)?;
        let asked_for = params.sampling.prompt_logprobs;
        params.sampling.logprobs = fields.count("logprobs", 0..=MAX_LOGPROBS)?;
        let echo = fields.boolean("echo", false)?;
        if echo {
            // An absent count is less than any.
            params.sampling.prompt_logprobs = asked_for.max(params.sampling.logprobs);
        }
        let prompts = PromptInput::read_all(fields.required("prompt")?, vocab_size)?;
        Ok(Self { choice, prompts, echo, prompt_logprobs: asked_for.is_some(), params })
    }
}

/// What the response shows of a prompt.
#[derive(Clone)]
pub(super) struct PromptShape {
    /// Empty unless `echo`.
    pub(super) echoed: String,
    pub(super) tokens: Arc<[TokenId]>,
}

/// What the response shows beside text.
#[derive(Clone)]
pub(super) struct Shape {
    pub(super) envelope: Envelope,
    pub(super) names: TokenNames,
    pub(super) tokenizer: Tokenizer,
    pub(super) prompts: Vec<PromptShape>,
    /// Choices of each prompt.
    pub(super) num_choices: usize,
    pub(super) echo: bool,
    pub(super) logprobs: bool,
    pub(super) prompt_logprobs: bool,
    pub(super) token_ids: bool,
}

impl Shape {
    fn prompt(&self, index: usize) -> &PromptShape {
        &self.prompts[index / self.num_choices]
    }

    fn num_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }

    /// The prompt's tokens at the head of the logprobs of an echoed choice.
    fn push_prompt(&self, index: usize, logprobs: &[TokenLogprobs], to: &mut CompletionLogprobs) {
        if let Some(first) = self.prompt(index).tokens.first() {
            to.push_first(&self.names, *first);
        }
        logprobs.iter().for_each(|entry| to.push(&self.names, entry));
    }

    /// The whole answer.
    pub(super) fn body(self, completed: Vec<Completed>) -> Completion {
        let num_drawn = completed.iter().map(|choice| choice.tokens.len()).sum();
        let firsts = completed.iter().step_by(self.num_choices);
        let cached_tokens = firsts.map(|choice| choice.cached_tokens).sum();
        let usage = Usage::new(self.num_prompt_tokens(), num_drawn, cached_tokens);
        let choices = completed.into_iter().enumerate();
        let choices = choices.map(|(index, completed)| self.choice(index, completed)).collect();
        Completion { envelope: self.envelope, choices, usage }
    }

    fn choice(&self, index: usize, completed: Completed) -> Choice {
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            if self.echo {
                self.push_prompt(index, &completed.prompt_logprobs, &mut logprobs);
            }
            completed.logprobs.iter().for_each(|entry| logprobs.push(&self.names, entry));
            logprobs
        });
        let prompt = self.prompt(index);
        let shown = || prompt_logprobs(&self.tokenizer, &completed.prompt_logprobs);
        Choice {
            index,
            text: format!("{}{}", prompt.echoed, completed.text),
            logprobs,
            finish_reason: Some(completed.finish.reason),
            prompt_logprobs: self.prompt_logprobs.then(shown),
            stop_reason: completed.finish.stop,
            token_ids: self.token_ids.then_some(completed.tokens),
            prompt_token_ids: self.token_ids.then(|| prompt.tokens.to_vec()),
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
    /// Of the prompt, until the choice starts.
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Where the next token's text begins, in characters.
    next_offset: usize,
}

impl ChunkWriter {
    pub(super) fn new(shape: Shape, options: StreamOptions, num_sequences: usize) -> Self {
        let choices = vec![ChoiceProgress::default(); num_sequences];
        Self { shape, options, choices, num_running: num_sequences, cached_tokens: Some(0) }
    }

    /// The chunks that an event of choice `index` gives; an error is the last thing to send.
    pub(super) fn chunks(
        &mut self,
        index: usize,
        event: TextEvent,
    ) -> Vec<Result<CompletionChunk, ApiError>> {
        let mut chunks = Vec::new();
        match event {
            TextEvent::PromptLogprobs(logprobs) => {
                self.choices[index].prompt_logprobs.extend(logprobs);
            }
            TextEvent::Delta { text, drawn } => {
                chunks.extend(self.start(index));
                chunks.extend(self.delta(index, text, drawn));
            }
            TextEvent::Finished { finish, cached_tokens } => {
                chunks.extend(self.start(index));
                chunks.push(self.finish(index, finish));
                if index.is_multiple_of(self.shape.num_choices) {
                    self.cached_tokens =
                        self.cached_tokens.zip(cached_tokens).map(|(all, new)| all + new);
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

    /// The echoed prompt and its tokens, if asked for, once.
    fn start(&mut self, index: usize) -> Option<CompletionChunk> {
        if std::mem::replace(&mut self.choices[index].started, true)
            || !(self.shape.echo || self.shape.token_ids)
        {
            return None;
        }
        let mut choice = choice(index, self.shape.prompt(index).echoed.clone());
        if self.shape.token_ids {
            choice.prompt_token_ids = Some(self.shape.prompt(index).tokens.to_vec());
        }
        let prompt_logprobs = std::mem::take(&mut self.choices[index].prompt_logprobs);
        if self.shape.echo && self.shape.logprobs {
            let mut logprobs = CompletionLogprobs::default();
            self.shape.push_prompt(index, &prompt_logprobs, &mut logprobs);
            self.choices[index].next_offset = logprobs.next_offset();
            choice.logprobs = Some(logprobs);
        }
        Some(self.chunk(choice))
    }

    /// None if there is nothing to say: text may be held back.
    fn delta(
        &mut self,
        index: usize,
        text: String,
        drawn: Option<Drawn>,
    ) -> Option<CompletionChunk> {
        let progress = &mut self.choices[index];
        progress.num_tokens += usize::from(drawn.is_some());
        let shows_token = drawn.is_some() && (self.shape.logprobs || self.shape.token_ids);
        if text.is_empty() && !shows_token {
            return None;
        }
        let mut choice = choice(index, text);
        if let Some(drawn) = drawn {
            choice.token_ids = self.shape.token_ids.then(|| vec![drawn.token]);
            choice.logprobs = drawn.logprobs.filter(|_| self.shape.logprobs).map(|entry| {
                let mut logprobs = CompletionLogprobs::starting_at(progress.next_offset);
                logprobs.push(&self.shape.names, &entry);
                progress.next_offset = logprobs.next_offset();
                logprobs
            });
        }
        Some(self.chunk(choice))
    }

    fn finish(&self, index: usize, finish: Finish) -> CompletionChunk {
        let mut choice = choice(index, String::new());
        choice.finish_reason = Some(finish.reason);
        choice.stop_reason = finish.stop;
        self.chunk(choice)
    }

    fn final_usage(&self) -> CompletionChunk {
        let num_drawn = self.choices.iter().map(|choice| choice.num_tokens).sum();
        let usage = Usage::new(self.shape.num_prompt_tokens(), num_drawn, self.cached_tokens);
        let envelope = self.shape.envelope.clone();
        CompletionChunk { envelope, choices: Vec::new(), usage: Some(usage) }
    }

    fn chunk(&self, choice: Choice) -> CompletionChunk {
        let num_prompt = self.shape.prompt(choice.index).tokens.len();
        let num_drawn = self.choices[choice.index].num_tokens;
        let continuous = self.options.continuous_usage;
        let usage = continuous.then(|| Usage::new(num_prompt, num_drawn, None));
        CompletionChunk { envelope: self.shape.envelope.clone(), choices: vec![choice], usage }
    }
}

fn choice(index: usize, text: String) -> Choice {
    Choice {
        index,
        text,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
        prompt_logprobs: None,
        prompt_token_ids: None,
    }
}
