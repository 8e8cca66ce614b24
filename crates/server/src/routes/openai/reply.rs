//! What the responses of both completion routes share: identity, usage, and the header that names
//! the parameters we did not know.

use crate::access::RequestId;
use crate::fields::Fields;
use crate::state::unix_seconds;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde::Serialize;
use std::sync::Arc;

const UNKNOWN_PARAMS: HeaderName = HeaderName::from_static("x-weft-unknown-params");
const MAX_UNKNOWN: usize = 32;
const MAX_UNKNOWN_BYTES: usize = 64;

/// What every chunk of a response repeats.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Envelope {
    pub(super) id: Arc<str>,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: Arc<str>,
}

impl Envelope {
    /// `prefix` is `chatcmpl` or `cmpl`; the rest of the id is that of the request.
    pub(super) fn new(
        prefix: &str,
        request: &RequestId,
        object: &'static str,
        model: Arc<str>,
    ) -> Self {
        let id = format!("{prefix}-{}", request.0).into();
        Self { id, object, created: unix_seconds(), model }
    }
}

/// Tokens of a request, or of what of it has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) completion_tokens: usize,
    /// Unknown while the prompt is computed, and after a stop string cut the sequence short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Where the prompt's tokens came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: usize,
}

impl Usage {
    pub(super) fn new(
        prompt_tokens: usize,
        completion_tokens: usize,
        cached_tokens: Option<usize>,
    ) -> Self {
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: cached_tokens
                .map(|cached_tokens| PromptTokensDetails { cached_tokens }),
        }
    }
}

/// The names of parameters that nobody read, as a header's value.
#[derive(Clone, Debug)]
pub(super) struct UnknownParams(Option<HeaderValue>);

impl UnknownParams {
    pub(super) fn of(fields: &Fields) -> Self {
        let shown = |name: String| -> String {
            let visible = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
            name.chars().take(MAX_UNKNOWN_BYTES).map(visible).collect()
        };
        let names: Vec<_> = fields.unknown().into_iter().take(MAX_UNKNOWN).map(shown).collect();
        let value = (!names.is_empty()).then(|| HeaderValue::from_str(&names.join(",")).ok());
        Self(value.flatten())
    }

    pub(super) fn mark(self, mut response: Response) -> Response {
        if let Some(value) = self.0 {
            response.headers_mut().insert(UNKNOWN_PARAMS, value);
        }
        response
    }
}
