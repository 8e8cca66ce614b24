//! In: a stream of chunks. Out: a `text/event-stream` response that ends with `data: [DONE]`.
//!
//! A failure in mid-stream is one `{"error": …}` event before the end. Dropping the response, as
//! happens when the client goes away, drops the chunks' stream. Knows no route.

use crate::error::ApiError;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;

/// Answers with `chunks`; a silent stream sends a comment every `keep_alive`.
pub(crate) fn respond<S, T>(chunks: S, keep_alive: Duration) -> Response
where
    S: Stream<Item = Result<T, ApiError>> + Send + 'static,
    T: Serialize + 'static,
{
    let keep_alive = KeepAlive::new().interval(keep_alive).text("ping");
    let mut response = Sse::new(events(chunks)).keep_alive(keep_alive).into_response();
    // Tells nginx and its kin not to collect the events.
    let name = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(name, HeaderValue::from_static("no"));
    response
}

/// What is still to be sent.
enum Rest<S> {
    Chunks(S),
    Done,
    Nothing,
}

fn events<S, T>(chunks: S) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static
where
    S: Stream<Item = Result<T, ApiError>> + Send + 'static,
    T: Serialize + 'static,
{
    stream::unfold(Rest::Chunks(Box::pin(chunks)), |rest| async move {
        let (data, rest) = match rest {
            Rest::Chunks(mut chunks) => match chunks.next().await {
                Some(Ok(chunk)) => (json(&chunk), Rest::Chunks(chunks)),
                Some(Err(error)) => (json(&error.envelope()), Rest::Done),
                None => ("[DONE]".to_owned(), Rest::Nothing),
            },
            Rest::Done => ("[DONE]".to_owned(), Rest::Nothing),
            Rest::Nothing => return None,
        };
        Some((Ok(Event::default().data(data)), rest))
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("chunks have string keys, so that they serialize")
}
