//! The client's end of one request. In: nothing but patience. Out: its events, the last exactly
//! once. Dropping it cancels the request.

use futures::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use weft_types::{ExecuteError, SeqId, TokenEvent};

/// The events of one request. Reading slowly holds up nobody: the channel has room for all that
/// the request can cause. Dropping the stream cancels the request within one step.
#[derive(Debug)]
pub struct RequestStream {
    id: SeqId,
    events: mpsc::Receiver<TokenEvent>,
    has_ended: bool,
}

impl RequestStream {
    pub(crate) fn new(id: SeqId, events: mpsc::Receiver<TokenEvent>) -> Self {
        Self { id, events, has_ended: false }
    }

    /// The engine's name for the request.
    #[must_use]
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next event, blocking this thread. For callers outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<TokenEvent> {
        if self.has_ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    /// An engine that ended without a word still gives every request its last event.
    fn note(&mut self, event: Option<TokenEvent>) -> TokenEvent {
        let event = event.unwrap_or_else(|| {
            let message = "the server stopped before the request ended".to_owned();
            TokenEvent::Failed(ExecuteError { message })
        });
        self.has_ended = is_last(&event);
        event
    }
}

impl Stream for RequestStream {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(cx));
        Poll::Ready(Some(self.note(event)))
    }
}

/// Whether nothing follows `event`.
pub(crate) fn is_last(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_) | TokenEvent::Expired)
}
