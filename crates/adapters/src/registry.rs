//! Names → generations. In: names and paths. Out: leases. Loads run on blocking threads, one per
//! name however many ask; a failed load is told to those who waited and then forgotten. Knows no
//! HTTP, no device, and never reads a file twice: a loaded generation does not change.

use crate::directory::AdapterDirectory;
use crate::error::AdapterError;
use crate::lease::{AdapterLease, Generation};
use crate::loads::{Shared, Source};
use crate::names::check_adapter_name;
use crate::read::DEFAULT_MAX_LORA_RANK;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_types::{BaseModelSpec, ContentHash};

/// What a registry serves.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The model that adapters must fit.
    pub base: BaseModelSpec,
    /// Its names: no adapter may have one of them.
    pub base_names: Vec<String>,
    /// The largest rank that is accepted.
    pub max_lora_rank: usize,
    /// Every sub-directory with an `adapter_config.json` is an adapter, found when first asked for.
    pub adapter_dir: Option<PathBuf>,
    /// Loads that run at once; more wait. Bounds the memory and threads that strangers can claim.
    pub max_concurrent_loads: usize,
}

impl RegistryConfig {
    /// No directory, no reserved names, ranks up to 512, two loads at once.
    #[must_use]
    pub fn new(base: BaseModelSpec) -> Self {
        Self {
            base,
            base_names: Vec::new(),
            max_lora_rank: DEFAULT_MAX_LORA_RANK,
            adapter_dir: None,
            max_concurrent_loads: 2,
        }
    }
}

/// Whether an adapter's weights are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterState {
    /// In memory.
    Loaded,
    /// In the adapter directory; loaded when first asked for.
    Known,
}

/// What there is to say about an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Its directory, as it was given.
    pub path: PathBuf,
    /// Whether it is in memory.
    pub state: AdapterState,
    /// The largest rank of any module, if loaded.
    pub rank: Option<usize>,
    /// Bytes of its weights; 0 if not loaded.
    pub num_bytes: usize,
    /// If loaded.
    pub content_hash: Option<ContentHash>,
    /// Leases of the generation that the name resolves to now.
    pub num_leases: usize,
}

/// The adapters of one server. A cheap clone; all clones are the same registry.
#[derive(Clone, Debug)]
pub struct AdapterRegistry {
    shared: Arc<Shared>,
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

    /// Loads an adapter on this thread: for the start of a server, before requests come.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn add_static(&self, name: &str, path: &Path) -> Result<AdapterInfo, AdapterError> {
        self.check_free(name)?;
        if self.shared.state.lock().loaded.contains_key(name) {
            return Err(AdapterError::AlreadyLoaded { name: name.to_owned() });
        }
        let weights = self.shared.read(name, path)?;
        let (generation, _) = self.shared.state.lock().insert(name, path.to_owned(), weights);
        Ok(info(&generation))
    }

    /// The generation that `name` stands for now, pinned. An adapter of the adapter directory is
    /// loaded when first asked for. Goes on loading even if the caller goes away.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] for an unknown or unloaded name, else why its load failed.
    pub async fn resolve(&self, name: &str) -> Result<AdapterLease, AdapterError> {
        let loading = {
            let mut state = self.shared.state.lock();
            if let Some(generation) = state.loaded.get(name) {
                return Ok(AdapterLease::pin(Arc::clone(generation)));
            }
            match state.loading.get(name) {
                Some(loading) => loading.clone(),
                None if self.shared.directory.is_none()
                    || state.revoked.contains(name)
                    || self.check_free(name).is_err() =>
                {
                    return Err(AdapterError::NotFound { name: name.to_owned() });
                }
                None => self.shared.start_load(&mut state, name, Source::Directory),
            }
        };
        Ok(AdapterLease::pin(self.shared.wait(name, loading).await?))
    }

    /// Loads the PEFT directory `path` as `name`. With `in_place` a loaded adapter of that name is
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
        self.check_free(name)?;
        let loading = loop {
            let other = {
                let mut state = self.shared.state.lock();
                match state.loading.get(name) {
                    Some(other) => other.clone(),
                    None if state.loaded.contains_key(name) && !in_place => {
                        return Err(AdapterError::AlreadyLoaded { name: name.to_owned() });
                    }
                    None => {
                        let source = Source::Path(path.to_owned());
                        break self.shared.start_load(&mut state, name, source);
                    }
                }
            };
            // Ours comes after the one in flight, whatever becomes of that.
            let _ = self.shared.wait(name, other).await;
        };
        let generation = self.shared.wait(name, loading).await?;
        Ok(info(&generation))
    }

    /// Revokes a name at once. Running leases finish; the memory is freed with the last of them. An
    /// adapter of the adapter directory stays revoked until it is loaded by path.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if there is nothing to revoke.
    pub async fn unload(&self, name: &str) -> Result<(), AdapterError> {
        let shared = Arc::clone(&self.shared);
        let owned = name.to_owned();
        let look = move || shared.directory.as_ref().is_some_and(|dir| dir.has(&owned));
        let in_directory = tokio::task::spawn_blocking(look).await.unwrap_or(false);
        let generation = {
            let mut state = self.shared.state.lock();
            let generation = state.loaded.remove(name);
            let loading = state.loading.remove(name);
            let revoked = in_directory && state.revoked.insert(name.to_owned());
            if generation.is_none() && !loading.is_some_and(|load| load.explicit) && !revoked {
                return Err(AdapterError::NotFound { name: name.to_owned() });
            }
            generation
        };
        // Here and not under the lock: it may free gigabytes.
        drop(generation);
        Ok(())
    }

    /// All loaded adapters, and those of the adapter directory that are not loaded yet, by name.
    /// Reads the adapter directory.
    #[must_use]
    pub fn list(&self) -> Vec<AdapterInfo> {
        let names = self.shared.directory.as_ref().map_or_else(Vec::new, AdapterDirectory::names);
        let state = self.shared.state.lock();
        let mut infos: Vec<_> = state.loaded.values().map(|loaded| info(loaded)).collect();
        for name in names {
            if !state.loaded.contains_key(name.as_str()) && !state.revoked.contains(&name) {
                infos.extend(self.known(&name));
            }
        }
        infos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        infos
    }

    /// The adapter of that name, loaded or known. Looks into the adapter directory if not loaded.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<AdapterInfo> {
        {
            let state = self.shared.state.lock();
            if let Some(generation) = state.loaded.get(name) {
                return Some(info(generation));
            }
            if state.revoked.contains(name) {
                return None;
            }
        }
        self.known(name)
    }

    /// The adapter of the adapter directory of that name.
    fn known(&self, name: &str) -> Option<AdapterInfo> {
        self.check_free(name).ok()?;
        let path = self.shared.directory.as_ref()?.find(name).ok()?;
        Some(AdapterInfo {
            name: name.to_owned(),
            path,
            state: AdapterState::Known,
            rank: None,
            num_bytes: 0,
            content_hash: None,
            num_leases: 0,
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

fn info(generation: &Generation) -> AdapterInfo {
    AdapterInfo {
        name: generation.name.to_string(),
        path: generation.path.clone(),
        state: AdapterState::Loaded,
        rank: Some(generation.weights.max_rank()),
        num_bytes: generation.weights.num_bytes(),
        content_hash: Some(generation.weights.content_hash),
        num_leases: generation.num_leases(),
    }
}
