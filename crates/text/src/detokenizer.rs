//! A stream of tokens in, a stream of whole characters out.
//!
//! A character may span tokens: its bytes wait until it is complete. The pieces together are what
//! [`Tokenizer::decode`] gives for all tokens at once. The cost of a token is its own bytes.

use crate::token_bytes::Leading;
use crate::tokenizer::Tokenizer;
use weft_types::TokenId;

/// Decodes one sequence as it grows.
#[derive(Clone, Debug)]
pub struct IncrementalDetokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    leading: Leading,
    /// An incomplete character: at most three bytes.
    pending: Vec<u8>,
}

impl IncrementalDetokenizer {
    /// For a text that begins with the first token pushed.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let leading = tokenizer.leading();
        Self { tokenizer, skip_special, leading, pending: Vec::new() }
    }

    /// For a text that continues a prompt: a space that the first token begins with is kept, also
    /// by tokenizers that drop it at the beginning of a text.
    #[must_use]
    pub fn after_prompt(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, leading: Leading::Keep, pending: Vec::new() }
    }

    /// The text that is certain with this token; often empty.
    pub fn push(&mut self, token: TokenId) -> String {
        if !(self.skip_special && self.tokenizer.is_special(token)) {
            let bytes = self.tokenizer.raw_bytes(token);
            self.leading.trim_into(bytes, &mut self.pending);
        }
        self.take_complete()
    }

    /// What is left of an incomplete character, as the replacement character.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Everything but an incomplete character at the end; what can never become one is replaced.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = invalid;
                    let Some(len) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(len..).unwrap_or_default();
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
