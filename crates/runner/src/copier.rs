//! Copies adapters to the device on a thread of its own, so that no step waits for one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use weft_kernels::{LentChunks, PlacedAdapter};
use weft_types::{AdapterId, PackedAdapter};

/// The thread `weft-copy`. Dropping this ends it after the copy that it is at.
#[derive(Debug)]
pub(crate) struct Copier {
    /// `None` from the beginning of the drop.
    channels: Option<(Sender<Load>, Receiver<Placed>)>,
    thread: Option<JoinHandle<()>>,
}

type Placed = (AdapterId, PlacedAdapter);

struct Load {
    adapter: AdapterId,
    packed: Arc<PackedAdapter>,
    chunks: LentChunks,
}

impl Copier {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (loads, requests) = channel::<Load>();
        let (placed, finished) = channel();
        let thread = std::thread::Builder::new().name("weft-copy".into()).spawn(move || {
            for Load { adapter, packed, chunks } in requests {
                if placed.send((adapter, PlacedAdapter::copy(&packed, chunks))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { channels: Some((loads, finished)), thread: Some(thread) })
    }

    /// Asks for a copy. [`Self::next_placed`] will give it.
    pub(crate) fn load(&self, adapter: AdapterId, packed: Arc<PackedAdapter>, chunks: LentChunks) {
        if let Some((loads, _)) = &self.channels {
            // The thread ends only with this, or by a panic that it has told.
            let _ = loads.send(Load { adapter, packed, chunks });
        }
    }

    /// A copy that has ended and was not asked about yet.
    pub(crate) fn next_placed(&self) -> Option<Placed> {
        self.channels.as_ref()?.1.try_recv().ok()
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.channels = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
