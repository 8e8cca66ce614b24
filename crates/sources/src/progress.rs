//! Who is told how a fetch goes on.

use std::fmt;

/// Told how fetches for the operator go on.
pub trait FetchProgress: fmt::Debug + Send + Sync {
    /// `num_bytes` of `what` will come.
    fn begin(&self, what: &str, num_bytes: u64);
    /// `done` of them have.
    fn fetched(&self, done: u64);
    /// No more come, for better or worse.
    fn end(&self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl FetchProgress for Quiet {
    fn begin(&self, _: &str, _: u64) {}
    fn fetched(&self, _: u64) {}
    fn end(&self) {}
}
