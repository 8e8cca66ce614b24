//! All sources together. In: a path or URI, and who named it. Out: a local directory. Asks the allow
//! list before anybody else.

use crate::cache::{Entry, Fetch};
use crate::config::SourcesConfig;
use crate::contained::{Escape, contain};
use crate::error::SourceError;
use crate::hub::{Hub, HubPlace};
use crate::location::Location;
use crate::objects::{self, ObjectsPlace};
use crate::progress::{FetchProgress, Quiet};
use crate::web::{Reach, Web};
use crate::web_directory;
use std::path::PathBuf;
use std::sync::OnceLock;
use weft_adapters::{Admitted, Asker, FetchError, Fetching, RemoteSources};

/// Files that change while they are fetched are fetched again so often.
const MAX_CHANGES: usize = 3;

/// Brings adapters to this machine.
#[derive(Debug)]
pub struct Sources {
    config: SourcesConfig,
    /// Made when something is fetched for the first time.
    web: OnceLock<Web>,
    hub: Hub,
}

impl Sources {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// A sentence about a setting that cannot be used.
    pub fn new(config: SourcesConfig) -> Result<Self, String> {
        let hub = Hub::new(config.hub.clone())?;
        Ok(Self { config, web: OnceLock::new(), hub })
    }

    fn web(&self, place: &str) -> Result<&Web, SourceError> {
        if let Some(web) = self.web.get() {
            return Ok(web);
        }
        let web = Web::new(self.config.patience);
        let web =
            web.map_err(|reason| SourceError::unfit(place, format!("needs TLS: {reason}")))?;
        Ok(self.web.get_or_init(|| web))
    }

    /// A directory with the adapter of `location`, fetched unless this very version is here. Dropped,
    /// it stops; the next fetch goes on where this one was.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn fetch_to_cache(
        &self,
        location: &Location,
        asker: Asker,
    ) -> Result<PathBuf, SourceError> {
        let place = location.to_string();
        if asker == Asker::Request && location.is_remote() && !self.config.allow.covers(location) {
            return Err(self.not_covered(&place));
        }
        for _ in 1..MAX_CHANGES {
            match self.fetch_once(location, &place, asker).await {
                Err(SourceError::Changed { .. }) => {}
                done => return done,
            }
        }
        self.fetch_once(location, &place, asker).await
    }

    async fn fetch_once(
        &self,
        location: &Location,
        place: &str,
        asker: Asker,
    ) -> Result<PathBuf, SourceError> {
        let config = &self.config;
        let progress: &dyn FetchProgress = match asker {
            Asker::Operator => &*config.progress,
            Asker::Request => &Quiet,
        };
        let fetch =
            Fetch { place, patience: &config.patience, max_bytes: config.max_bytes, progress };
        let entry = || Entry::of(&config.cache_dir, location);
        match location {
            Location::Local(path) => Ok(path.clone()),
            Location::Hub { repo, revision, folder } => {
                let at = HubPlace { repo, revision: revision.as_deref(), folder };
                self.hub.fetch(self.web(place)?, at, &fetch).await
            }
            Location::Objects { store, bucket, prefix } => {
                let settings = &config.store_settings;
                let at = ObjectsPlace { store: *store, bucket, prefix, settings };
                objects::fetch(self.web(place)?, at, &entry(), &fetch).await
            }
            Location::Web(url) => {
                let named = config.allow.names_host(location);
                let reach = match asker {
                    Asker::Operator => Reach::Anywhere,
                    Asker::Request => Reach::Public { and: named.then(|| url.origin()) },
                };
                web_directory::fetch(self.web(place)?, url, &reach, &entry(), &fetch).await
            }
        }
    }

    fn not_covered(&self, place: &str) -> SourceError {
        let reason = if self.config.allow.is_empty() {
            "may not be named by a request: start the server with --adapter-source-allow and a \
             pattern such as 'hf://acme/*' or 's3://bucket/adapters/*'"
        } else {
            "is not covered by any --adapter-source-allow of this server"
        };
        SourceError::not_allowed(place, reason)
    }

    /// What a request that names `given` may have. Blocks.
    fn admitted(&self, given: &str) -> Result<Admitted, SourceError> {
        let allow = &self.config.allow;
        let location = Location::parse(given)?;
        let place = location.to_string();
        let Location::Local(path) = location else {
            let is_covered = allow.covers(&location);
            return if is_covered {
                Ok(Admitted::Remote(place))
            } else {
                Err(self.not_covered(&place))
            };
        };
        if allow.is_empty() {
            return Ok(Admitted::Local(path));
        }
        contain(&path, allow).map(Admitted::Local).map_err(|escape| match escape {
            Escape::NotCovered => self.not_covered(&place),
            Escape::Upwards => {
                SourceError::not_allowed(&place, "has a part `..`: name the directory without it")
            }
            Escape::Link(file) => SourceError::not_allowed(
                &place,
                format!(
                    "holds {file}, a link that leads out of what --adapter-source-allow covers; copy \
                     the file"
                ),
            ),
            Escape::Io(reason) => SourceError::Io { path, reason },
        })
    }
}

impl RemoteSources for Sources {
    fn fetch<'a>(&'a self, uri: &'a str, asker: Asker) -> Fetching<'a> {
        Box::pin(async move {
            let location = Location::parse(uri).map_err(SourceError::from)?;
            Ok(self.fetch_to_cache(&location, asker).await?)
        })
    }

    fn candidates(&self, name: &str) -> Vec<String> {
        self.config.rules.iter().filter_map(|rule| rule.resolve(name)).collect()
    }

    fn admit(&self, given: &str) -> Result<Admitted, FetchError> {
        Ok(self.admitted(given)?)
    }
}
