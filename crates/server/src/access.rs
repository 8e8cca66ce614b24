//! In: every request. Out: the same with an id, counted, logged, and its response marked with the id.
//!
//! Logs methods, routes, statuses and times, never prompts.

use crate::random::random_u64;
use crate::state::AppState;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument as _;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_BYTES: usize = 128;

/// The client's `x-request-id`, or one made here: visible ASCII, at most 128 bytes.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

impl RequestId {
    fn of(request: &Request) -> Self {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let usable = |id: &&str| {
            (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match given.filter(usable) {
            Some(id) => Self(id.into()),
            None => Self(format!("{:016x}{:016x}", random_u64(), random_u64()).into()),
        }
    }
}

/// The outermost layer.
pub(crate) async fn observe(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    // An unknown path is the client's text: it would make metrics and logs grow without bound.
    let route = matched.as_ref().map_or("unknown", MatchedPath::as_str);
    let span = tracing::info_span!("request", id = %id.0);

    let mut response = next.run(request).instrument(span.clone()).await;

    let status = response.status().as_u16();
    state.metrics().response(route, status);
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    let quiet = matches!(route, "/health" | "/ping" | "/metrics");
    span.in_scope(|| {
        if quiet {
            tracing::debug!(%method, route, status, milliseconds, "answered");
        } else {
            tracing::info!(%method, route, status, milliseconds, "answered");
        }
    });
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
