//! What handles tell the loop.

use crate::adapted_prompt::AdaptedPrompt;
use crate::shared::LiveSlot;
use tokio::sync::mpsc;
use weft_adapters::AdapterLease;
use weft_types::{AdapterId, ContentHash, GenerateRequest, SeqId, TokenEvent};

/// A message to the loop. Cancelling needs none: a closed stream is seen by the loop itself.
pub(crate) enum Command {
    /// A request that was found acceptable.
    Submit(Box<Submission>),
    /// Whether what has this content stays on the device once it is there.
    Pin(ContentHash, bool),
    /// Nobody will ask for what has this content: it may leave the device.
    Discard(ContentHash),
    /// Nothing but a reason to look at [`crate::shared::Phase`].
    Wake,
}

pub(crate) struct Submission {
    pub(crate) id: SeqId,
    pub(crate) request: GenerateRequest,
    /// The prompt of the request as it is computed.
    pub(crate) prompt: AdaptedPrompt,
    /// When it is not wanted any more if it has not begun to run. Counts from the moment at which it
    /// was sent, not from that at which the loop had time to read it.
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) outlet: Outlet,
}

/// The loop's end of a stream, and what lives as long as it.
pub(crate) struct Outlet {
    /// Has room for every event that the request can cause.
    pub(crate) events: mpsc::Sender<TokenEvent>,
    pub(crate) lease: Option<AdapterLease>,
    /// What the scheduler calls the lease's adapter.
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) slot: LiveSlot,
}

impl Outlet {
    /// Sends the last event, after all that the request held is given back: who has seen the end
    /// finds the adapter unpinned and the request uncounted.
    pub(crate) fn end(self, event: TokenEvent) {
        drop(self.lease);
        drop(self.slot);
        // A client that went away misses nothing.
        let _ = self.events.try_send(event);
    }
}
