//! Copies adapters to the device on a thread of its own, so that no step waits for one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use weft_types::{AdapterId, ExecuteError, PackedAdapter};

/// The thread `weft-copy`. Dropping this ends it after the copy that it is at.
#[derive(Debug)]
pub(crate) struct Copier<C, A> {
    /// `None` from the beginning of the drop.
    channels: Option<Channels<C, A>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Channels<C, A> {
    loads: Sender<Load<C>>,
    placed: Receiver<Placed<A>>,
}

/// `None`: the device failed.
type Placed<A> = (AdapterId, Option<A>);

/// Copies an adapter to its chunks.
pub(crate) type Place<C, A> = fn(&PackedAdapter, C) -> Result<A, ExecuteError>;

#[derive(Debug)]
struct Load<C> {
    adapter: AdapterId,
    packed: Arc<PackedAdapter>,
    chunks: C,
}

impl<C: Send + 'static, A: Send + 'static> Copier<C, A> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn start(place: Place<C, A>) -> std::io::Result<Self> {
        let (loads, requests) = channel::<Load<C>>();
        let (placed, finished) = channel();
        let thread = std::thread::Builder::new().name("weft-copy".into()).spawn(move || {
            for Load { adapter, packed, chunks } in requests {
                let copy = place(&packed, chunks).ok();
                if placed.send((adapter, copy)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { channels: Some(Channels { loads, placed: finished }), thread: Some(thread) })
    }

    /// Asks for a copy. [`Self::next_placed`] will give it.
    pub(crate) fn load(&self, adapter: AdapterId, packed: Arc<PackedAdapter>, chunks: C) {
        if let Some(channels) = &self.channels {
            // The thread ends only with this, or by a panic that it has told.
            let _ = channels.loads.send(Load { adapter, packed, chunks });
        }
    }

    /// A copy that has ended and was not asked about yet.
    pub(crate) fn next_placed(&self) -> Option<Placed<A>> {
        self.channels.as_ref()?.placed.try_recv().ok()
    }
}

impl<C, A> Drop for Copier<C, A> {
    fn drop(&mut self) {
        self.channels = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
