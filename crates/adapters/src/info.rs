//! What there is to say about adapters, for people and for metrics.

use std::path::PathBuf;
use std::time::SystemTime;
use weft_types::ContentHash;

/// The fastest tier that holds an adapter, as far as the registry goes: a device is the scheduler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterTier {
    /// In host memory.
    Host,
    /// Only where it is read from when it is asked for.
    Source,
}

/// What there is to say about an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Its directory, as it was given.
    pub path: PathBuf,
    /// Where it is.
    pub tier: AdapterTier,
    /// The largest rank of any module, if it was ever loaded.
    pub rank: Option<usize>,
    /// Bytes of its weights as packed; 0 if it was never loaded.
    pub num_bytes: usize,
    /// Of its files when they were last read, if ever.
    pub content_hash: Option<ContentHash>,
    /// Leases of the generation that the name resolves to now.
    pub num_leases: usize,
    /// Never evicted from host memory.
    pub pinned: bool,
    /// How often it was resolved.
    pub hits: u64,
    /// When it was last resolved, if ever.
    pub last_used: Option<SystemTime>,
}

/// A registry's memory and counters, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RegistryStats {
    /// Bytes of the packed adapters in host memory, each content once.
    pub host_bytes: usize,
    /// Bytes set aside for loads in flight.
    pub reserved_bytes: usize,
    /// Bytes that both may have together; `None` is unbounded.
    pub host_budget_bytes: Option<usize>,
    /// Names that were loaded and not unloaded since.
    pub num_known: usize,
    /// Of these, in host memory.
    pub num_in_host: usize,
    /// Loads in flight.
    pub num_loading: usize,
    /// Loads that ended well, since the start.
    pub loads_ok: u64,
    /// Loads that failed, since the start.
    pub loads_failed: u64,
    /// Seconds of reading and converting in all good loads; waiting for a turn or for room does not
    /// count.
    pub load_seconds: f64,
    /// Contents that left host memory to make room, since the start.
    pub evictions: u64,
    /// Loads that found their content in memory already, since the start.
    pub dedup_hits: u64,
    /// Bytes of files read, since the start.
    pub bytes_read: u64,
}
