//! In: log probabilities of tokens. Out: the three shapes in which the API shows them.

use super::params::TokenOptions;
use serde::Serialize;
use serde_json::{Map, Value, json};
use weft_text::Tokenizer;
use weft_types::{TokenId, TokenLogprob, TokenLogprobs};

/// What JSON shows for an impossible token: it has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// Names tokens as the client asked.
#[derive(Clone)]
pub(super) struct TokenNames {
    tokenizer: Tokenizer,
    as_ids: bool,
}

impl TokenNames {
    pub(super) fn new(tokenizer: Tokenizer, options: TokenOptions) -> Self {
        Self { tokenizer, as_ids: options.as_ids }
    }

    /// The token's text, or `token_id:7`.
    pub(super) fn name(&self, token: TokenId) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.tokenizer.token_text(token) }
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST_LOGPROB } else { logprob.max(LEAST_LOGPROB) }
}

/// A token in `choices[].logprobs.content`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatTokenLogprobs {
    #[serde(flatten)]
    token: ChatTokenLogprob,
    top_logprobs: Vec<ChatTokenLogprob>,
}

#[derive(Clone, Debug, Serialize)]
struct ChatTokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// `choices[].logprobs` of a chat.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatTokenLogprobs>,
}

impl ChatLogprobs {
    pub(super) fn of(names: &TokenNames, logprobs: &[TokenLogprobs]) -> Self {
        let one = |entry: &TokenLogprob| ChatTokenLogprob {
            token: names.name(entry.token),
            logprob: finite(entry.logprob),
            bytes: names.tokenizer.token_bytes(entry.token),
        };
        let content = logprobs.iter().map(|entry| ChatTokenLogprobs {
            token: one(&entry.chosen),
            top_logprobs: entry.top.iter().map(one).collect(),
        });
        Self { content: content.collect() }
    }
}

/// `choices[].logprobs` of a completion: parallel lists, one entry per token.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    /// Where each token's text begins, in characters.
    pub(super) text_offset: Vec<usize>,
    pub(super) token_logprobs: Vec<Option<f32>>,
    pub(super) tokens: Vec<String>,
    pub(super) top_logprobs: Vec<Option<Map<String, Value>>>,
    #[serde(skip)]
    next_offset: usize,
}

impl CompletionLogprobs {
    /// An empty list whose first token begins at `next_offset`.
    pub(super) fn starting_at(next_offset: usize) -> Self {
        Self { next_offset, ..Self::default() }
    }

    /// Where the token after the last begins.
    pub(super) fn next_offset(&self) -> usize {
        self.next_offset
    }

    /// Adds a token without log probabilities: the first of a prompt.
    pub(super) fn push_first(&mut self, names: &TokenNames, token: TokenId) {
        self.push_name(names.name(token));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Adds a token. Its alternatives include itself.
    pub(super) fn push(&mut self, names: &TokenNames, entry: &TokenLogprobs) {
        self.push_name(names.name(entry.chosen.token));
        self.token_logprobs.push(Some(finite(entry.chosen.logprob)));
        let mut top = Map::new();
        for one in entry.top.iter().chain([&entry.chosen]) {
            // Two tokens may have one text: the likelier keeps it.
            top.entry(names.name(one.token)).or_insert_with(|| json!(finite(one.logprob)));
        }
        self.top_logprobs.push(Some(top));
    }

    fn push_name(&mut self, name: String) {
        self.text_offset.push(self.next_offset);
        self.next_offset += name.chars().count();
        self.tokens.push(name);
    }
}

/// `prompt_logprobs`: `null` for the first token, then an object by token id for each.
pub(super) fn prompt_logprobs(tokenizer: &Tokenizer, logprobs: &[TokenLogprobs]) -> Vec<Value> {
    let entry = |entry: &TokenLogprobs| {
        let rank = |token| entry.top.iter().position(|one| one.token == token).map(|at| at + 1);
        let all = entry.top.iter().chain([&entry.chosen]);
        let shown = all.map(|one| {
            let shown = json!({
                "logprob": finite(one.logprob),
                // Known only among the likeliest.
                "rank": rank(one.token),
                "decoded_token": tokenizer.token_text(one.token),
            });
            (one.token.to_string(), shown)
        });
        Value::Object(shown.collect())
    };
    std::iter::once(Value::Null).chain(logprobs.iter().map(entry)).collect()
}
