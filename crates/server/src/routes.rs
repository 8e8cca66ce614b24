//! One module per family of routes: a handler reads fields, asks the state, writes a response.

pub(crate) mod adapters;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod openai;
pub(crate) mod tokenize;
