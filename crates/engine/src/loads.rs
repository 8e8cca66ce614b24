//! Copies to the device that are under way, and those that a bug of the executor lost. In: what the
//! executor was asked and what it said. Out: which adapters have come, and for which nobody should
//! wait.

use weft_types::{AdapterId, ExecuteError};

#[derive(Default)]
pub(crate) struct Loads {
    in_flight: Vec<AdapterId>,
    /// Of those in flight when the executor panicked. They may still come.
    doubtful: Vec<AdapterId>,
    doubt: Option<ExecuteError>,
}

impl Loads {
    pub(crate) fn begin(&mut self, id: AdapterId) {
        self.in_flight.push(id);
    }

    /// Whether an adapter has come that was on its way.
    pub(crate) fn end(&mut self, id: AdapterId) -> bool {
        take(&mut self.doubtful, id);
        take(&mut self.in_flight, id)
    }

    /// The executor could not say what has come, and may never say it again.
    pub(crate) fn lose(&mut self, error: ExecuteError) {
        self.doubtful.clone_from(&self.in_flight);
        self.doubt = Some(error);
    }

    pub(crate) fn has_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Why nobody should wait for this adapter, if so.
    pub(crate) fn doubt(&self, id: AdapterId) -> Option<&ExecuteError> {
        self.doubt.as_ref().filter(|_| self.doubtful.contains(&id))
    }
}

fn take(ids: &mut Vec<AdapterId>, id: AdapterId) -> bool {
    let found = ids.iter().position(|other| *other == id);
    found.map(|index| ids.swap_remove(index)).is_some()
}
