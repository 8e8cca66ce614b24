//! Names → generations. In: names and paths. Out: leases. A name is loaded once however many ask;
//! what is in host memory does not change, and what had to leave it is read again when it is asked
//! for. Knows no HTTP and no device.

use crate::composition::{Composition, Formula, is_unnamed};
use crate::config::RegistryConfig;
use crate::directory::AdapterDirectory;
use crate::error::AdapterError;
use crate::info::{AdapterInfo, AdapterTier, RegistryStats};
use crate::integrity;
use crate::lease::{AdapterLease, Generation, Hold};
use crate::loads::Shared;
use crate::names::check_adapter_name;
use crate::state::{Freed, Origin, State};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;
use tokio::time::Instant;

/// The adapters of one server. A cheap clone; all clones are the same registry.
#[derive(Clone, Debug)]
pub struct AdapterRegistry {
    pub(crate) shared: Arc<Shared>,
}

/// What to do about a name whose source failed a moment ago.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    Remember,
    TryAgain,
}

impl AdapterRegistry {
    /// An empty registry.
    ///
    /// # Errors
    /// [`AdapterError::Directory`] if `adapter_dir` is no directory.
    pub fn new(config: RegistryConfig) -> Result<Self, AdapterError> {
        let directory = config.adapter_dir.as_deref().map(AdapterDirectory::open).transpose()?;
        Ok(Self { shared: Arc::new(Shared::new(config, directory)) })
    }

    /// Another clone.
    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Whom to ask whether requests of others than a tenant run: then loads for that tenant take only
    /// a small share of the processors. The first one told counts.
    pub fn set_is_busy(&self, is_busy: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.shared.pacer.set_is_busy(Box::new(is_busy));
    }

    /// [`Self::load`] for the start of a server: blocks, and needs no runtime.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn add_static(&self, name: &str, path: &Path) -> Result<AdapterInfo, AdapterError> {
        block_on(name, self.load(name, path, false))
    }

    /// [`Self::pin`] for the start of a server: blocks, and needs no runtime.
    ///
    /// # Errors
    /// Those of [`Self::pin`].
    pub fn pin_static(&self, name: &str) -> Result<AdapterInfo, AdapterError> {
        block_on(name, self.pin(name))
    }

    /// The generation that `name` stands for now, leased; a name that no adapter has may be the formula
    /// of a composition, like `a+0.5*b` (see [`Self::resolve_composition`]). What is not in host memory
    /// is read: from where it was loaded last, from the adapter directory, or from where a resolver rule
    /// says; rules are not asked about a name that is a formula. Goes on loading even if the caller
    /// goes away.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] for an unknown or unloaded name, [`AdapterError::Composition`] or
    /// [`AdapterError::MissingPart`] for a formula that cannot be, else why its load failed. After a
    /// failure of the source the answer comes from memory for a while, 100 ms at first, and says so.
    pub async fn resolve(&self, name: &str) -> Result<AdapterLease, AdapterError> {
        self.resolve_for(name, &self.shared.no_tenant).await
    }

    /// [`Self::resolve`] for a request of a tenant: how fast it loads depends on who else is served.
    ///
    /// # Errors
    /// Those of [`Self::resolve`].
    pub async fn resolve_for(
        &self,
        name: &str,
        tenant: &Arc<str>,
    ) -> Result<AdapterLease, AdapterError> {
        if Formula::of(name).is_some() && self.first_existing(vec![name.to_owned()]).await.is_none()
        {
            let composition = self.read(name).await?;
            return self.resolve_composition(composition, tenant).await;
        }
        self.lease(name, None, tenant).await
    }

    /// Of a name, or of the key of a composition.
    pub(crate) async fn lease(
        &self,
        name: &str,
        composition: Option<&Arc<Composition>>,
        tenant: &Arc<str>,
    ) -> Result<AdapterLease, AdapterError> {
        let (generation, hold) =
            self.acquire(name, composition, tenant, AfterFailure::Remember).await?;
        self.shared.state.lock().hit(name, SystemTime::now());
        Ok(AdapterLease::new(generation, hold))
    }

    /// Keeps an adapter in host memory until it is unpinned or unloaded; loads it if need be. A
    /// replacement of that name is pinned, too.
    ///
    /// # Errors
    /// Those of [`Self::resolve`], none of them from memory.
    pub async fn pin(&self, name: &str) -> Result<AdapterInfo, AdapterError> {
        let (_generation, _hold) =
            self.acquire(name, None, &self.shared.no_tenant, AfterFailure::TryAgain).await?;
        // Held, so it can be gone only because it was unloaded meanwhile.
        let pinned = self.shared.state.lock().set_pinned(name, true);
        pinned.ok_or_else(|| not_found(name))
    }

    /// Lets an adapter be evicted again.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if the name was never loaded.
    pub fn unpin(&self, name: &str) -> Result<AdapterInfo, AdapterError> {
        check_named(name)?;
        let unpinned = self.shared.state.lock().set_pinned(name, false);
        self.shared.room.notify_waiters();
        unpinned.ok_or_else(|| not_found(name))
    }

    /// Loads the PEFT directory `path`, or the URI that it is the text of, as `name`, or composes what
    /// stands there after `compose:` (`compose:a+0.5*b`). With `in_place` a loaded adapter of that name is
    /// replaced at once when the new one is ready: leases keep the old generation, and it stays if
    /// the load fails.
    ///
    /// # Errors
    /// Everything in [`AdapterError`] but [`AdapterError::Directory`]; [`AdapterError::NotFound`] if
    /// the name was unloaded meanwhile.
    pub async fn load(
        &self,
        name: &str,
        path: &Path,
        in_place: bool,
    ) -> Result<AdapterInfo, AdapterError> {
        self.load_from(name, Origin::Path(path.to_owned()), in_place).await
    }

    /// [`Self::load`] for a request: only from where requests may load. Compositions are made of what
    /// requests may name anyway.
    ///
    /// # Errors
    /// Those of [`Self::load`], and [`AdapterError::NotAllowed`].
    pub async fn load_requested(
        &self,
        name: &str,
        given: &str,
        in_place: bool,
    ) -> Result<AdapterInfo, AdapterError> {
        self.load_from(name, Origin::Requested(given.to_owned()), in_place).await
    }

    async fn load_from(
        &self,
        name: &str,
        given: Origin,
        in_place: bool,
    ) -> Result<AdapterInfo, AdapterError> {
        self.check_free(name)?;
        let formula = match &given {
            Origin::Path(path) => Composition::formula_in(path),
            Origin::Requested(text) => Composition::formula_in(Path::new(text)),
            _ => None,
        };
        let origin = match formula {
            Some(text) => Origin::Composed(Arc::new(self.read(text).await?)),
            None => given,
        };
        let (loading, ticket) = loop {
            let other = {
                let mut state = self.shared.state.lock();
                match state.loading.get(name) {
                    Some(other) => other.clone(),
                    None if state.names.contains_key(name) && !in_place => {
                        return Err(AdapterError::AlreadyLoaded { name: name.to_owned() });
                    }
                    None => {
                        let (origin, tenant) = (origin.clone(), &self.shared.no_tenant);
                        break self.shared.register_load(&mut state, name, tenant, origin, true);
                    }
                }
            };
            // Ours comes after the one in flight, whatever becomes of that.
            let _ = self.shared.wait(name, other).await;
        };
        ticket.spawn();
        let (_generation, _hold) = self.shared.wait(name, loading).await?;
        // Held, so it can be gone only because it was unloaded meanwhile.
        let info = self.shared.state.lock().names.get(name).map(|known| known.info(name));
        info.ok_or_else(|| not_found(name))
    }

    /// Revokes a name at once. Running leases finish; the memory is freed with the last of them. An
    /// adapter of the adapter directory or of a resolver rule stays revoked until it is loaded by path.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if there is nothing to revoke.
    pub async fn unload(&self, name: &str) -> Result<(), AdapterError> {
        check_named(name)?;
        let shared = Arc::clone(&self.shared);
        let owned = name.to_owned();
        let look = move || shared.directory.as_ref().is_some_and(|dir| dir.has(&owned));
        let in_directory = tokio::task::spawn_blocking(look).await.unwrap_or(false);
        let mut freed = Freed::default();
        let was_there = {
            let mut state = self.shared.state.lock();
            let was_known = state.forget(name, &mut freed);
            let loading = state.loading.remove(name);
            if let Some(loading) = &loading {
                loading.cancelled.notify_one();
            }
            let has_rule = was_known && self.has_rule(name);
            let revoked = (in_directory || has_rule) && state.revoked.insert(name.to_owned());
            was_known || revoked || loading.is_some_and(|loading| loading.explicit)
        };
        freed.drop_elsewhere().await;
        self.shared.room.notify_waiters();
        if was_there { Ok(()) } else { Err(not_found(name)) }
    }

    /// All adapters that were loaded, and those of the adapter directory that were not yet, by name.
    /// Reads the adapter directory.
    #[must_use]
    pub fn list(&self) -> Vec<AdapterInfo> {
        let names = self.shared.directory.as_ref().map_or_else(Vec::new, AdapterDirectory::names);
        let (mut infos, names) = {
            let state = self.shared.state.lock();
            let named = state.names.iter().filter(|(name, _)| !is_unnamed(name));
            let infos: Vec<_> = named.map(|(name, known)| known.info(name)).collect();
            let is_new = |name: &String| {
                !state.names.contains_key(name.as_str()) && !state.revoked.contains(name)
            };
            (infos, names.into_iter().filter(is_new).collect::<Vec<_>>())
        };
        infos.extend(names.iter().filter_map(|name| self.unread(name)));
        infos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        infos
    }

    /// The adapter of that name. Looks into the adapter directory if it was never loaded.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<AdapterInfo> {
        check_named(name).ok()?;
        {
            let state = self.shared.state.lock();
            if let Some(known) = state.names.get(name) {
                return Some(known.info(name));
            }
            if state.revoked.contains(name) {
                return None;
            }
        }
        self.unread(name)
    }

    /// Memory and counters.
    #[must_use]
    pub fn stats(&self) -> RegistryStats {
        self.shared.state.lock().stats()
    }

    /// Checks that what is counted is what is there. For tests and for the curious; takes time in
    /// proportion to all that is known.
    ///
    /// # Errors
    /// A sentence for each thing that is wrong.
    pub fn check_integrity(&self) -> Result<(), String> {
        integrity::check(&self.shared.state.lock())
    }

    /// `composition` is what `name` is the key of, if it is one.
    pub(crate) async fn acquire(
        &self,
        name: &str,
        composition: Option<&Arc<Composition>>,
        tenant: &Arc<str>,
        after_failure: AfterFailure,
    ) -> Result<(Arc<Generation>, Hold), AdapterError> {
        if composition.is_none() {
            check_named(name)?;
        }
        let mut failure_of_other = None;
        loop {
            let (loading, ticket) = {
                let mut state = self.shared.state.lock();
                if let Some((generation, resident)) = state.resident(name) {
                    let hold = Hold::new_locked(resident, Arc::clone(&self.shared));
                    return Ok((generation, hold));
                }
                if let Some(loading) = state.loading.get(name) {
                    (loading.clone(), None)
                } else {
                    let composed = composition.map(|one| Origin::Composed(Arc::clone(one)));
                    let Some(origin) = composed.or_else(|| self.origin(&state, name)) else {
                        return Err(failure_of_other.unwrap_or_else(|| not_found(name)));
                    };
                    if after_failure == AfterFailure::Remember
                        && let Some(error) = state.backoffs.remembered(name, Instant::now())
                    {
                        return Err(error);
                    }
                    let (loading, ticket) =
                        self.shared.register_load(&mut state, name, tenant, origin, false);
                    (loading, Some(ticket))
                }
            };
            if let Some(ticket) = ticket {
                ticket.spawn();
            }
            let explicit = loading.explicit;
            match self.shared.wait(name, loading).await {
                Ok(loaded) => return Ok(loaded),
                // Another path failed than the one that this name has.
                Err(error) if explicit && failure_of_other.is_none() => {
                    failure_of_other = Some(error);
                }
                Err(AdapterError::NotFound { name }) => {
                    return Err(failure_of_other.unwrap_or(AdapterError::NotFound { name }));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where a name is read from that is not in memory.
    fn origin(&self, state: &State, name: &str) -> Option<Origin> {
        if let Some(known) = state.names.get(name) {
            return Some(known.origin.clone());
        }
        let may_be_there = !state.revoked.contains(name)
            && self.check_free(name).is_ok()
            && (self.shared.directory.is_some() || self.has_rule(name));
        may_be_there.then_some(Origin::Directory)
    }

    fn has_rule(&self, name: &str) -> bool {
        !self.shared.config.remote.candidates(name).is_empty()
    }

    /// The adapter of the adapter directory of that name, never loaded.
    fn unread(&self, name: &str) -> Option<AdapterInfo> {
        self.check_free(name).ok()?;
        let path = self.shared.directory.as_ref()?.find(name).ok()?;
        Some(AdapterInfo {
            name: name.to_owned(),
            path,
            tier: AdapterTier::Source,
            rank: None,
            num_bytes: 0,
            content_hash: None,
            num_leases: 0,
            pinned: false,
            hits: 0,
            last_used: None,
        })
    }

    fn check_free(&self, name: &str) -> Result<(), AdapterError> {
        check_adapter_name(name)?;
        if self.shared.config.base_names.iter().any(|base| base == name) {
            return Err(AdapterError::NameIsBase { name: name.to_owned() });
        }
        Ok(())
    }
}

/// Compositions without a name are nobody's to name.
fn check_named(name: &str) -> Result<(), AdapterError> {
    if is_unnamed(name) { Err(not_found(name)) } else { Ok(()) }
}

fn not_found(name: &str) -> AdapterError {
    AdapterError::NotFound { name: name.to_owned() }
}

/// Runs a future to its end on a thread of its own: this one may belong to a runtime, where blocking
/// on another is refused.
fn block_on<T: Send>(
    name: &str,
    future: impl Future<Output = Result<T, AdapterError>> + Send,
) -> Result<T, AdapterError> {
    let interrupted = || AdapterError::Interrupted { name: name.to_owned() };
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|_| interrupted())?.block_on(future)
        });
        thread.join().unwrap_or_else(|_| Err(interrupted()))
    })
}
