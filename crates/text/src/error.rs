//! What can go wrong with a tokenizer, a template or a text.

use std::path::PathBuf;

/// Why a tokenizer or template could not be loaded, or a text not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the variants and fields mean")]
pub enum TextError {
    #[error("the tokenizer of the GGUF file cannot be read: {0}")]
    Gguf(#[from] weft_gguf::GgufError),
    #[error(
        "tokenizer.ggml.model is \"{model}\", which Weft does not know; supported: gpt2, llama"
    )]
    UnknownTokenizerModel { model: String },
    #[error(
        "tokenizer.ggml.pre is \"{pre}\", which Weft does not know, and another rule would split \
         text wrongly; supported: {supported}"
    )]
    UnknownPreTokenizer { pre: String, supported: String },
    #[error("metadata key \"{key}\" {reason}")]
    BadKey { key: String, reason: String },
    #[error("{}: {reason}", path.display())]
    BadFile { path: PathBuf, reason: String },
    #[error("the tokenizer decodes with {decoder}, which Weft does not know")]
    UnknownDecoder { decoder: String },
    #[error("the tokenizer cannot be built: {reason}")]
    Build { reason: String },
    #[error("the text cannot be tokenized: {reason}")]
    Encode { reason: String },
    /// The template called `raise_exception`: its author refuses these messages.
    #[error("the chat template refuses the messages: {message}")]
    Refused { message: String },
    #[error("the chat template has an error: {message}")]
    BadTemplate { message: String },
    #[error("the chat template cannot render the messages: {message}")]
    Render { message: String },
    #[error("the chat template wrote more than {max_bytes} bytes")]
    RenderedTooLong { max_bytes: usize },
    #[error("the final message cannot be continued: {reason}")]
    Continue { reason: &'static str },
    #[error("chat_template_kwargs must not contain \"{key}\", which the server sets")]
    ReservedKwarg { key: String },
}
