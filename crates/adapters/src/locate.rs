//! The first part of a load: where the files are. In: where the name comes from. Out: a local
//! directory, to which a remote adapter has been brought. A name that nobody loaded is looked for in
//! the adapter directory, then where the resolver rules say. A composition lies nowhere: its parts do.

use crate::composition::{Composition, SCHEME};
use crate::error::{AdapterError, RetryHint};
use crate::loads::Ticket;
use crate::read::CONFIG_FILE;
use crate::remote::{Admitted, Asker, FetchError, is_uri};
use crate::state::Origin;
use std::path::PathBuf;

/// Where a load reads.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// The local directory.
    pub(crate) path: PathBuf,
    /// The path or URI for people.
    pub(crate) shown: PathBuf,
    /// `path`, if it was fetched to there.
    pub(crate) fetched: Option<PathBuf>,
    /// Where to look the next time.
    pub(crate) origin: Origin,
}

impl Ticket {
    pub(crate) async fn locate(&self) -> Result<Located, AdapterError> {
        if let Some(located) = self.locate_fetched().await? {
            return Ok(located);
        }
        match &self.origin {
            Origin::Path(path) => match path.to_str().filter(|text| is_uri(text)) {
                Some(uri) => self.fetch(uri, Asker::Operator).await,
                None => Ok(self.local(path.clone(), path.clone())),
            },
            Origin::Requested(given) => match self.admit(given).await? {
                Admitted::Local(path) => Ok(self.local(path, PathBuf::from(given))),
                Admitted::Remote(uri) => self.fetch(&uri, Asker::Request).await,
            },
            Origin::Rule(uri) => self.fetch(uri, Asker::Operator).await,
            Origin::Directory => match self.look_up().await {
                Ok(path) => Ok(self.local(path.clone(), path)),
                Err(AdapterError::NotFound { .. }) => self.follow_rules().await,
                Err(error) => Err(error),
            },
            Origin::Composed(composition) => Ok(self.nowhere(composition)),
        }
    }

    /// What is shown of a composition.
    pub(crate) fn nowhere(&self, composition: &Composition) -> Located {
        let path = PathBuf::from(format!("{SCHEME}{composition}"));
        self.local(path.clone(), path)
    }

    fn local(&self, path: PathBuf, shown: PathBuf) -> Located {
        Located { path, shown, fetched: None, origin: self.origin.clone() }
    }

    /// What an earlier load of this name fetched, if it is still there and still allowed.
    async fn locate_fetched(&self) -> Result<Option<Located>, AdapterError> {
        let Some(path) = self.fetched.clone() else { return Ok(None) };
        let shown = match &self.origin {
            Origin::Requested(given) => {
                self.admit(given).await?;
                given.into()
            }
            Origin::Rule(uri) => uri.into(),
            Origin::Path(path) => path.clone(),
            Origin::Directory | Origin::Composed(_) => return Ok(None),
        };
        let config = path.join(CONFIG_FILE);
        let is_there = move |shared: &std::sync::Arc<crate::loads::Shared>, _: &str| {
            shared.config.storage.stat(&config).is_ok()
        };
        let origin = self.origin.clone();
        let located = Located { fetched: Some(path.clone()), path, shown, origin };
        Ok(self.blocking(is_there).await?.then_some(located))
    }

    async fn look_up(&self) -> Result<PathBuf, AdapterError> {
        // Not one of the reads: a name that does not exist is not kept waiting by loads.
        let _look = self.shared.looks.acquire().await.map_err(|_| self.interrupted())?;
        self.blocking(|shared, name| match &shared.directory {
            Some(directory) => directory.find(name),
            None => Err(AdapterError::NotFound { name: name.to_owned() }),
        })
        .await?
    }

    /// The first rule whose source has the adapter.
    async fn follow_rules(&self) -> Result<Located, AdapterError> {
        let mut missed = AdapterError::NotFound { name: self.name.to_string() };
        for uri in self.shared.config.remote.candidates(&self.name) {
            match self.fetch(&uri, Asker::Operator).await {
                Err(error @ AdapterError::NotInSource { .. }) => missed = error,
                located => {
                    return located.map(|found| Located { origin: Origin::Rule(uri), ..found });
                }
            }
        }
        Err(missed)
    }

    async fn admit(&self, given: &str) -> Result<Admitted, AdapterError> {
        let _look = self.shared.looks.acquire().await.map_err(|_| self.interrupted())?;
        let given = given.to_owned();
        let admitted = self.blocking(move |shared, _| shared.config.remote.admit(&given)).await?;
        admitted.map_err(|error| self.fetch_error(error))
    }

    async fn fetch(&self, uri: &str, asker: Asker) -> Result<Located, AdapterError> {
        let fetched = async {
            let fetching = self.shared.fetches.acquire().await;
            let _fetching = fetching.map_err(|_| self.interrupted())?;
            let fetched = self.shared.config.remote.fetch(uri, asker).await;
            fetched.map_err(|error| self.fetch_error(error))
        };
        let path = tokio::select! {
            fetched = fetched => fetched?,
            () = self.cancelled.notified() => {
                return Err(AdapterError::NotFound { name: self.name.to_string() });
            }
        };
        let (shown, origin) = (PathBuf::from(uri), self.origin.clone());
        Ok(Located { fetched: Some(path.clone()), path, shown, origin })
    }

    fn fetch_error(&self, error: FetchError) -> AdapterError {
        let name = self.name.to_string();
        match error {
            FetchError::Missing(reason) => {
                AdapterError::NotInSource { name, reason, retry: RetryHint::default() }
            }
            FetchError::NotAllowed(reason) => AdapterError::NotAllowed { name, reason },
            FetchError::Refused(reason) => AdapterError::Fetch { name, reason, passes: false },
            FetchError::Unreachable(reason) => AdapterError::Fetch { name, reason, passes: true },
        }
    }
}
