//! OpenAI's routes. Each is a handler with two neighbours: `types` (the response as serialized)
//! and `convert` (fields to a typed request, and events to the response). What both routes share
//! lies beside them.

pub(crate) mod chat_completions;
pub(crate) mod completions;
pub(crate) mod models;

pub(crate) mod messages;
mod model_choice;
pub(crate) mod prompt;

mod logprobs;
mod params;
mod reply;
mod unsupported;
