//! Leaves the last message open: a mark is put at its end before rendering, and everything from the
//! mark on is cut off after it. As transformers does it, with the same refusals.

use crate::error::TextError;
use serde_json::Value;

const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The messages with the mark, and the text that stands before it.
///
/// # Errors
/// When there is no text to continue, or the template never reads contents.
pub(super) fn mark(
    mut messages: Vec<Value>,
    source: &str,
) -> Result<(Vec<Value>, String), TextError> {
    let refuse = |reason| Err(TextError::Continue { reason });
    let Some(last) = messages.last_mut() else { return refuse("there are no messages") };
    if !source.contains("content") {
        return refuse("the chat template does not read the content of messages");
    }
    let text = match last.get_mut("content") {
        Some(Value::Array(blocks)) => {
            blocks.iter_mut().rev().find_map(|block| block.get_mut("text"))
        }
        Some(content) if !content.is_null() => Some(content),
        _ => return refuse("it has no content"),
    };
    let Some(Value::String(text)) = text else { return refuse("its content has no text") };
    let ending = text.clone();
    text.push_str(MARK);
    Ok((messages, ending))
}

/// The prompt up to the mark.
///
/// # Errors
/// When the template left out or changed the message.
pub(super) fn cut(rendered: String, ending: &str) -> Result<String, TextError> {
    let at = rendered.rfind(MARK.trim_end()).filter(|_| rendered.contains(ending.trim()));
    let Some((before, after)) = at.and_then(|at| rendered.split_at_checked(at)) else {
        let reason = "the chat template leaves out or changes a part of it";
        return Err(TextError::Continue { reason });
    };
    // If the template trims messages, it has cut the mark's space, and the message's end counts as
    // trimmed too.
    let before = if after.starts_with(MARK) { before } else { before.trim_end() };
    Ok(before.to_owned())
}
