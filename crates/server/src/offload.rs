//! In: work that takes its time. Out: its result, computed off the reactor when it is much.
//!
//! Short work runs where it is: a thread hop costs more than it. Long work waits for one of a few
//! places, so that a flood of large prompts cannot occupy every blocking thread.

use crate::error::ApiError;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Inputs of up to this many bytes are handled at once.
const MAX_INLINE_BYTES: usize = 8 << 10;

/// The bound on concurrent work.
#[derive(Debug)]
pub(crate) struct Offload {
    places: Arc<Semaphore>,
}

impl Offload {
    /// As many places as there are cores.
    pub(crate) fn new() -> Self {
        let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { places: Arc::new(Semaphore::new(num_cores)) }
    }

    /// Runs `work`, whose cost is that of `input_bytes` of text.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        input_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if input_bytes <= MAX_INLINE_BYTES {
            return Ok(work());
        }
        self.run_blocking(work).await
    }

    /// Runs `work` off the reactor, whatever its input.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let places = Arc::clone(&self.places);
        let place = places.acquire_owned().await.expect("the semaphore is never closed");
        // The work goes on when its client is gone: it keeps its place to the end.
        let work = move || {
            let result = work();
            drop(place);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| ApiError::internal("the server met a bug while handling this request"))
    }
}
