//! Tokenizer and chat template of a model. In: its path. Out: both, as the server wants them.

use anyhow::{Context, Result};
use std::path::Path;
use weft_gguf::GgufFile;
use weft_text::{ChatTemplate, Tokenizer};

/// What turns text into tokens and back.
#[derive(Debug)]
pub struct TextSide {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt; a base that cannot chat has none.
    pub template: Option<ChatTemplate>,
}

/// Reads both from a GGUF file's metadata or a Hugging Face directory's files.
///
/// # Errors
/// A sentence about what is missing or malformed.
pub fn load(path: &Path) -> Result<TextSide> {
    let sides = || -> Result<TextSide> {
        if path.is_dir() {
            Ok(TextSide {
                tokenizer: Tokenizer::from_hf_dir(path)?,
                template: ChatTemplate::from_hf_dir(path)?,
            })
        } else {
            let file = GgufFile::open(path)?;
            Ok(TextSide {
                tokenizer: Tokenizer::from_gguf(&file)?,
                template: ChatTemplate::from_gguf(&file)?,
            })
        }
    };
    sides().with_context(|| format!("the tokenizer of {}", path.display()))
}
