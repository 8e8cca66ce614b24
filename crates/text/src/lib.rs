//! Text in and out of a model: messages to a prompt, text to tokens, tokens to text.
//!
//! * [`Tokenizer`]: text to tokens and back, from a GGUF file or a Hugging Face directory.
//! * [`ChatTemplate`]: messages to the prompt, as transformers renders them.
//! * [`IncrementalDetokenizer`]: a stream of tokens to a stream of whole characters.
//! * [`StopStrings`]: a stream of text, cut where a stop string begins.
//!
//! Knows no weights, no engine and no HTTP.

mod chat_template;
mod detokenizer;
mod error;
mod gguf_tokenizer;
mod hf_tokenizer;
mod pre_tokenizer;
mod special_tokens;
mod stop_strings;
mod token_bytes;
mod tokenizer;

pub use chat_template::{ChatTemplate, RenderInput};
pub use detokenizer::IncrementalDetokenizer;
pub use error::TextError;
pub use special_tokens::SpecialTokens;
pub use stop_strings::{StopOutcome, StopStrings};
pub use tokenizer::Tokenizer;
