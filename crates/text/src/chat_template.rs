//! x
use crate::error::TextError;
use serde_json::{Map, Value};
use std::path::Path;
use weft_gguf::GgufFile;

/// What a prompt is rendered from.
#[derive(Clone, Debug, Default)]
pub struct RenderInput<'a> {
    /// The conversation: objects with `role`, `content` and whatever else the template reads.
    pub messages: &'a [Value],
    /// Whether the prompt ends with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// Whether the last message is left open, for the model to continue it.
    pub continue_final_message: bool,
    /// Descriptions of tools, if any.
    pub tools: Option<&'a [Value]>,
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
}
/// t
#[derive(Debug, Clone)]
pub struct ChatTemplate;
impl ChatTemplate {
    /// x
    pub fn render(&self, _input: &RenderInput<'_>) -> Result<String, TextError> {
        Err(TextError::Refused { message: String::new() })
    }
    /// x
    pub fn from_gguf(_file: &GgufFile) -> Result<Option<Self>, TextError> {
        Ok(None)
    }
    /// x
    pub fn from_hf_dir(_dir: &Path) -> Result<Option<Self>, TextError> {
        Ok(None)
    }
}
