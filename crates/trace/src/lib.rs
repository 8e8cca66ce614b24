//! Request traces: who asked what, when. One JSON object a line, a header first:
//!
//! ```text
//! {"weft_trace":1,"base":"llama","adapters":[{"name":"sql","rank":8,"bytes":4884480}]}
//! {"t":0.25,"model":"sql","tenant":"acme","in":128,"out":64}
//! {"t":0.5,"model":"llama","in":16,"out":4}
//! ```
//!
//! `t` is seconds from the start, to the microsecond; `model` is the base or an adapter, `out` the
//! tokens that were made. A server writes a line when a request ends, so lines need not be sorted
//! by `t`: see [`TraceReader::into_sorted`]. Holds no prompt and no answer.
//!
//! Needs only serde: neither a network nor a runtime.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{LineError, TraceError, TraceReader};
pub use write::{TraceWriter, UnknownIndex};

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The version that is written, and the only one that is read.
pub const TRACE_VERSION: u32 = 1;

/// One request, names replaced by indices: what a simulator runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceRequest {
    /// Seconds from the start: finite, not negative, a whole number of microseconds.
    pub arrival_s: f64,
    /// Index into [`TraceHeader::adapters`]; `None` is the base.
    pub adapter: Option<u32>,
    /// Index into [`TraceHeader::tenants`].
    pub tenant: u32,
    /// At least one.
    pub prompt_tokens: u32,
    /// How many were made; zero if the request failed or asked for none.
    pub output_tokens: u32,
    /// The adapter's rank, where the trace says it.
    pub rank: Option<u32>,
}

/// What a trace says of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAdapter {
    /// As requests name it.
    pub name: String,
    /// Largest rank of its updates. Unknown for adapters that were not loaded when the recording
    /// began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Bytes of its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The first line of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// [`TRACE_VERSION`]
    #[serde(rename = "weft_trace")]
    pub version: u32,
    /// The base's name.
    pub base: String,
    /// Known adapters. A later line may name another one, which is then appended by the reader.
    #[serde(default)]
    pub adapters: Vec<TraceAdapter>,
    /// Known tenants, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
}

impl TraceHeader {
    /// A header of the current version that knows no tenants.
    #[must_use]
    pub fn new(base: impl Into<String>, adapters: Vec<TraceAdapter>) -> Self {
        Self { version: TRACE_VERSION, base: base.into(), adapters, tenants: Vec::new() }
    }
}

/// A line after the header, with names: what a server writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceLine<'a> {
    /// Seconds from the start.
    pub t: f64,
    /// The base or an adapter.
    #[serde(borrow)]
    pub model: Cow<'a, str>,
    /// Whose request; empty if nobody said.
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    pub tenant: Cow<'a, str>,
    /// Prompt tokens.
    #[serde(rename = "in")]
    pub prompt_tokens: u32,
    /// Output tokens.
    #[serde(rename = "out")]
    pub output_tokens: u32,
    /// The adapter's rank, for one that the header does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
}

/// `seconds` to the microsecond: the decimals of such a number are few enough that it is read back
/// as it was written.
#[must_use]
pub fn to_microsecond(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}
