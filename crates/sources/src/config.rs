//! What fetching is told at start. Secrets do not show in `Debug`.

use crate::allow::AllowList;
use crate::progress::{FetchProgress, Quiet};
use crate::resolver::ResolverRule;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where adapters may come from, and how.
#[derive(Clone)]
pub struct SourcesConfig {
    /// Where files of object stores and web servers are kept.
    pub cache_dir: PathBuf,
    /// The Hugging Face Hub.
    pub hub: HubConfig,
    /// Settings of object stores, as the environment variables of the same names: `AWS_…`,
    /// `GOOGLE_…`, `AZURE_…`.
    pub store_settings: Vec<(String, String)>,
    /// What requests may name.
    pub allow: AllowList,
    /// Where unknown names are looked for.
    pub rules: Vec<ResolverRule>,
    /// Larger adapters are not fetched.
    pub max_bytes: u64,
    /// How long to try.
    pub patience: Patience,
    /// Who is told of fetches for the operator.
    pub progress: Arc<dyn FetchProgress>,
}

impl SourcesConfig {
    /// The public hub, no settings of stores, nothing allowed to requests, no rules, adapters up to
    /// 2 GiB.
    #[must_use]
    pub fn new(cache_dir: PathBuf, hub_cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            hub: HubConfig::new(hub_cache_dir),
            store_settings: Vec::new(),
            allow: AllowList::default(),
            rules: Vec::new(),
            max_bytes: 2 << 30,
            patience: Patience::default(),
            progress: Arc::new(Quiet),
        }
    }
}

impl fmt::Debug for SourcesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourcesConfig")
            .field("cache_dir", &self.cache_dir)
            .field("hub", &self.hub)
            .field("allow", &self.allow)
            .field("rules", &self.rules)
            .field("max_bytes", &self.max_bytes)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// The Hugging Face Hub, or what speaks like it.
#[derive(Clone)]
pub struct HubConfig {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<String>,
    /// The cache that `huggingface_hub` uses, too: `models--org--name` are in it.
    pub cache_dir: PathBuf,
    /// Only what is in the cache.
    pub is_offline: bool,
}

impl HubConfig {
    /// The public hub, without a token.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        let endpoint = "https://huggingface.co".to_owned();
        Self { endpoint, token: None, cache_dir, is_offline: false }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("cache_dir", &self.cache_dir)
            .field("is_offline", &self.is_offline)
            .finish()
    }
}

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// To connect.
    pub connect: Duration,
    /// Between two signs of life of a server.
    pub silence: Duration,
    /// Failures in a row, without a byte between them, that are tried again.
    pub max_retries: u32,
    /// Before the first retry; twice as long before each further one, up to 8 s.
    pub first_delay: Duration,
}

impl Default for Patience {
    /// 10 s to connect, 30 s of silence, four retries from 250 ms on.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            max_retries: 4,
            first_delay: Duration::from_millis(250),
        }
    }
}

impl Patience {
    /// The wait before a retry, the first being 0.
    pub(crate) fn delay(&self, retry: u32) -> Duration {
        self.first_delay.saturating_mul(1 << retry.min(16)).min(Duration::from_secs(8))
    }
}
