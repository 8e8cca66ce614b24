//! In: prompts as tokens and how to continue them. Out: streams of text, one per sequence.
//!
//! Submits sequences to the engine, turns their tokens into text and finds stop strings. Dropping
//! a sequence cancels it. Knows no route and no JSON.

use crate::error::ApiError;
use crate::metrics::SequenceTimer;
use crate::state::AppState;
use crate::trace_recorder::Recording;
use futures::stream::{self, Stream, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use weft_adapters::AdapterLease;
use weft_engine::RequestStream;
use weft_text::{IncrementalDetokenizer, StopStrings};
use weft_types::{
    FinishReason, GenerateRequest, Queueing, SamplingParams, StopConditions, TokenEvent, TokenId,
    TokenLogprobs,
};

/// How text, as opposed to tokens, ends a sequence and is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TextOptions {
    /// Strings that end the text.
    pub(crate) stop_strings: Vec<String>,
    /// Whether the stop string or stop token is part of the text.
    pub(crate) include_stop: bool,
    /// Whether special tokens have no text.
    pub(crate) skip_special_tokens: bool,
    /// The client's stop tokens, which `stop_reason` names; those of the model it does not.
    pub(crate) named_stop_token_ids: Vec<TokenId>,
}

/// One sequence to start.
#[derive(Clone, Debug)]
pub(crate) struct SequenceInput {
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopConditions,
    pub(crate) text: TextOptions,
    pub(crate) cache_salt: Option<Arc<str>>,
    pub(crate) queueing: Queueing,
}

/// What the client is told about the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finish {
    pub(crate) reason: &'static str,
    pub(crate) stop: Option<StopReason>,
}

/// What stopped the sequence, if the client had named it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    Token(TokenId),
    Text(String),
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: TokenId,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// One event of a sequence. The last is `Finished` or `Failed`, exactly once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TextEvent {
    /// Of further prompt tokens, before the first `Delta`.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// Text that can no longer change, perhaps none, and the token that was drawn, if any.
    Delta { text: String, drawn: Option<Drawn> },
    /// The sequence ended well.
    Finished { finish: Finish, cached_tokens: Option<usize> },
    /// The sequence failed.
    Failed(ApiError),
}

/// A running sequence. Dropping it cancels it.
pub(crate) struct TextSequence {
    /// `None` once the sequence ended.
    stream: Option<RequestStream>,
    detokenizer: IncrementalDetokenizer,
    stop_strings: StopStrings,
    options: TextOptions,
    stop: StopConditions,
    num_tokens: u32,
    pending: VecDeque<TextEvent>,
    timer: SequenceTimer,
    /// Writes its line when it is dropped: at the end of the sequence.
    recording: Option<Recording>,
}

/// Starts all of `inputs`, or none. `prompt_param` is the field that errors about prompts name.
pub(crate) fn submit(
    state: &AppState,
    lease: Option<&AdapterLease>,
    inputs: Vec<SequenceInput>,
    prompt_param: &'static str,
) -> Result<Vec<TextSequence>, ApiError> {
    // An early return drops, and so cancels, those already started.
    inputs
        .into_iter()
        .map(|input| TextSequence::start(state, lease.cloned(), input))
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::from_submit(&error, prompt_param))
}

/// The events of all sequences as they come, each with its sequence's index.
pub(crate) fn merge(
    sequences: Vec<TextSequence>,
) -> impl Stream<Item = (usize, TextEvent)> + Send + 'static {
    let streams = sequences.into_iter().enumerate().map(|(index, sequence)| {
        let events = stream::unfold(sequence, move |mut sequence| async move {
            sequence.next().await.map(|event| ((index, event), sequence))
        });
        events.boxed()
    });
    stream::select_all(streams)
}

impl TextSequence {
    fn start(
        state: &AppState,
        lease: Option<AdapterLease>,
        input: SequenceInput,
    ) -> Result<Self, weft_engine::SubmitError> {
        let SequenceInput { prompt, sampling, stop, text: options, cache_salt, queueing } = input;
        let detokenizer = IncrementalDetokenizer::after_prompt(
            state.tokenizer().clone(),
            options.skip_special_tokens,
        );
        let stop_strings = StopStrings::new(options.stop_strings.clone(), options.include_stop);
        let timer = state.metrics().start_sequence();
        let adapter = lease.as_ref().map(|lease| (lease.shared_name(), lease.weights().max_rank()));
        let (tenant, num_prompt) = (Arc::clone(&queueing.tenant), prompt.len());
        let request =
            GenerateRequest { prompt, sampling, stop: stop.clone(), cache_salt, queueing };
        let stream = Some(state.engine().submit(request, lease)?);
        let recorder = state.config().trace_recorder.as_ref();
        Ok(Self {
            stream,
            detokenizer,
            stop_strings,
            options,
            stop,
            num_tokens: 0,
            pending: VecDeque::new(),
            timer,
            recording: recorder.map(|recorder| recorder.begin(adapter, tenant, num_prompt)),
        })
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<TextEvent> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        let event = self.stream.as_mut()?.next().await;
        match event {
            Some(TokenEvent::PromptLogprobs(logprobs)) => Some(TextEvent::PromptLogprobs(logprobs)),
            Some(TokenEvent::Token { token, logprobs }) => {
                Some(self.on_token(Drawn { token, logprobs }))
            }
            Some(TokenEvent::Finished { reason, usage }) => {
                self.flush();
                self.finish(self.finish_of(reason), Some(usage.cached_tokens));
                self.pending.pop_front()
            }
            Some(TokenEvent::Failed(error)) => {
                Some(self.fail(ApiError::internal(error.to_string())))
            }
            Some(TokenEvent::Expired) => Some(self.fail(ApiError::expired())),
            None => {
                let message = "the server stopped before the request ended";
                Some(self.fail(ApiError::internal(message)))
            }
        }
    }

    fn on_token(&mut self, drawn: Drawn) -> TextEvent {
        self.timer.token();
        if let Some(recording) = &mut self.recording {
            recording.token();
        }
        self.num_tokens += 1;
        // Stop tokens are not drawn earlier, so that one of them always ends the sequence.
        let ends = self.stop.stop_token_ids.contains(&drawn.token);
        if ends && !self.options.include_stop {
            return TextEvent::Delta { text: String::new(), drawn: Some(drawn) };
        }
        let piece = self.detokenizer.push(drawn.token);
        let text = self.push_text(&piece);
        TextEvent::Delta { text, drawn: Some(drawn) }
    }

    /// What of `piece` can be shown. Ends the sequence when a stop string is complete.
    fn push_text(&mut self, piece: &str) -> String {
        if self.num_tokens <= self.stop.min_tokens {
            return piece.to_owned();
        }
        let outcome = self.stop_strings.push(piece);
        if let Some(index) = outcome.stopped {
            let text = self.options.stop_strings.get(index).cloned();
            self.finish(Finish { reason: "stop", stop: text.map(StopReason::Text) }, None);
        }
        outcome.text
    }

    fn finish_of(&self, reason: FinishReason) -> Finish {
        match reason {
            FinishReason::Length => Finish { reason: "length", stop: None },
            FinishReason::Stop(token) => {
                let named = self.options.named_stop_token_ids.contains(&token);
                Finish { reason: "stop", stop: named.then_some(StopReason::Token(token)) }
            }
        }
    }

    /// Cancels what still runs, and queues the last event.
    fn finish(&mut self, finish: Finish, cached_tokens: Option<usize>) {
        self.stream = None;
        self.recording = None;
        self.timer.finish(finish.reason);
        self.pending.push_back(TextEvent::Finished { finish, cached_tokens });
    }

    /// Text that was held back in case it became a stop string or a longer character.
    fn flush(&mut self) {
        let piece = self.detokenizer.finish();
        let outcome = self.stop_strings.push(&piece);
        let mut text = outcome.text;
        if outcome.stopped.is_none() {
            text.push_str(&self.stop_strings.finish());
        }
        if !text.is_empty() {
            self.pending.push_back(TextEvent::Delta { text, drawn: None });
        }
    }

    fn fail(&mut self, error: ApiError) -> TextEvent {
        self.stream = None;
        self.recording = None;
        self.timer.finish("error");
        TextEvent::Failed(error)
    }
}

/// A sequence that ended well, as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Completed {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    pub(crate) finish: Finish,
    pub(crate) cached_tokens: Option<usize>,
}

/// Waits for all sequences; the first failure ends the others.
pub(crate) async fn collect(sequences: Vec<TextSequence>) -> Result<Vec<Completed>, ApiError> {
    let unfinished = Completed {
        text: String::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        prompt_logprobs: Vec::new(),
        finish: Finish { reason: "length", stop: None },
        cached_tokens: None,
    };
    let mut completed = vec![unfinished; sequences.len()];
    let mut events = merge(sequences);
    while let Some((index, event)) = events.next().await {
        let sequence = &mut completed[index];
        match event {
            TextEvent::PromptLogprobs(logprobs) => sequence.prompt_logprobs.extend(logprobs),
            TextEvent::Delta { text, drawn } => {
                sequence.text.push_str(&text);
                if let Some(drawn) = drawn {
                    sequence.tokens.push(drawn.token);
                    sequence.logprobs.extend(drawn.logprobs);
                }
            }
            TextEvent::Finished { finish, cached_tokens } => {
                sequence.finish = finish;
                sequence.cached_tokens = cached_tokens;
            }
            TextEvent::Failed(error) => return Err(error),
        }
    }
    Ok(completed)
}
