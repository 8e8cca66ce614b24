//! Where adapters come from: paths and URIs in, local directories out.
//!
//! * [`Location`] is what a path or URI says: this machine, the Hugging Face Hub, an object store, an
//!   HTTPS directory.
//! * [`AllowList`] says which of them requests may name, [`ResolverRule`] where a name that nobody
//!   loaded is looked for.
//! * [`Sources`] fetches: measures first, takes only the files that make the adapter, goes on where a
//!   download broke off, verifies what came, and keeps it in a cache that the next start finds.
//!
//! Knows no adapter's mathematics, no environment and no flags.

mod allow;
mod cache;
mod checksum;
mod config;
mod contained;
mod download;
mod error;
mod fetch;
mod guard;
mod hub;
mod hub_cache;
mod location;
mod lock;
mod objects;
mod progress;
mod ranges;
mod resolver;
mod web;
mod web_directory;

pub use allow::{AllowList, PatternError};
pub use config::{HubConfig, Patience, SourcesConfig};
pub use error::SourceError;
pub use fetch::Sources;
pub use location::{Location, LocationError, Store};
pub use progress::{FetchProgress, Quiet};
pub use resolver::{ResolverRule, RuleError};
