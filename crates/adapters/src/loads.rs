//! The registry's state and the loads in flight. A load is registered under the lock, runs on a
//! blocking thread, and publishes under the lock if it was not revoked meanwhile.

use crate::directory::AdapterDirectory;
use crate::error::AdapterError;
use crate::lease::Generation;
use crate::lower::lower_peft_bytes;
use crate::read::{LoadLimits, read_files};
use crate::registry::RegistryConfig;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use weft_types::{ContentHash, LoweredAdapter};

/// What all clones of a registry share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RegistryConfig,
    pub(crate) directory: Option<AdapterDirectory>,
    pub(crate) state: Mutex<State>,
    /// Bounds the loads that run at once.
    running: Semaphore,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) loaded: BTreeMap<Arc<str>, Arc<Generation>>,
    pub(crate) loading: HashMap<Arc<str>, Loading>,
    /// Names in the adapter directory that were unloaded: not found again until loaded by path.
    pub(crate) revoked: HashSet<String>,
    /// Equal files are held once, under however many names.
    by_hash: HashMap<ContentHash, Weak<LoweredAdapter>>,
    num_loads: u64,
}

pub(crate) type Outcome = Result<Arc<Generation>, AdapterError>;

/// A load in flight. Whoever waits keeps a clone.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    id: u64,
    /// Somebody named the path: unloading this name is not an error even if nothing is loaded yet.
    pub(crate) explicit: bool,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Where a load takes its files from.
#[derive(Debug)]
pub(crate) enum Source {
    Directory,
    Path(PathBuf),
}

impl Shared {
    pub(crate) fn new(config: RegistryConfig, directory: Option<AdapterDirectory>) -> Self {
        let running = Semaphore::new(config.max_concurrent_loads.max(1));
        Self { config, directory, state: Mutex::default(), running }
    }

    /// Starts a load that goes on even if nobody waits. There must be none in flight for `name`.
    pub(crate) fn start_load(
        self: &Arc<Self>,
        state: &mut State,
        name: &str,
        source: Source,
    ) -> Loading {
        let (sender, outcome) = watch::channel(None);
        state.num_loads += 1;
        let id = state.num_loads;
        let loading = Loading { id, explicit: matches!(source, Source::Path(_)), outcome };
        let name: Arc<str> = Arc::from(name);
        state.loading.insert(Arc::clone(&name), loading.clone());
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let loaded = shared.load(&name, source).await;
            sender.send_replace(Some(shared.publish(&name, id, loaded)));
        });
        loading
    }

    /// Waits for the end of a load.
    pub(crate) async fn wait(&self, name: &str, mut loading: Loading) -> Outcome {
        if let Ok(outcome) = loading.outcome.wait_for(Option::is_some).await
            && let Some(outcome) = outcome.as_ref()
        {
            return outcome.clone();
        }
        // Its task was dropped with its runtime: make room for another try.
        self.state.lock().take_loading(name, loading.id);
        Err(AdapterError::Interrupted { name: name.to_owned() })
    }

    async fn load(
        self: &Arc<Self>,
        name: &Arc<str>,
        source: Source,
    ) -> Result<(PathBuf, Arc<LoweredAdapter>), AdapterError> {
        let interrupted = || AdapterError::Interrupted { name: name.to_string() };
        let path = match source {
            Source::Path(path) => path,
            // Before the semaphore: a name that does not exist is not kept waiting by loads.
            Source::Directory => {
                let (shared, name) = (Arc::clone(self), Arc::clone(name));
                let find = move || match &shared.directory {
                    Some(directory) => directory.find(&name),
                    None => Err(AdapterError::NotFound { name: name.to_string() }),
                };
                spawn_blocking(find).await.map_err(|_| interrupted())??
            }
        };
        let _permit = self.running.acquire().await.map_err(|_| interrupted())?;
        let (shared, name) = (Arc::clone(self), Arc::clone(name));
        let read = move || shared.read(&name, &path).map(|weights| (path, weights));
        spawn_blocking(read).await.map_err(|_| interrupted())?
    }

    /// Reads and lowers the adapter at `path`, or takes what is loaded from equal files.
    pub(crate) fn read(
        &self,
        name: &str,
        path: &Path,
    ) -> Result<Arc<LoweredAdapter>, AdapterError> {
        let limits = LoadLimits { max_lora_rank: self.config.max_lora_rank };
        let files = read_files(name, path, &self.config.base, &limits)?;
        let known = self.state.lock().by_hash.get(&files.content_hash()).and_then(Weak::upgrade);
        if let Some(weights) = known {
            return Ok(weights);
        }
        lower_peft_bytes(&files.config, &files.tensors, &self.config.base, &limits)
            .map(Arc::new)
            .map_err(|refusal| refusal.of(name))
    }

    fn publish(
        &self,
        name: &Arc<str>,
        id: u64,
        loaded: Result<(PathBuf, Arc<LoweredAdapter>), AdapterError>,
    ) -> Outcome {
        let mut state = self.state.lock();
        if !state.take_loading(name, id) {
            // Unloaded while it was loading.
            return Err(AdapterError::NotFound { name: name.to_string() });
        }
        let (path, weights) = loaded?;
        let (generation, replaced) = state.insert(name, path, weights);
        drop(state);
        // Here and not under the lock: it may free gigabytes.
        drop(replaced);
        Ok(generation)
    }
}

impl State {
    /// Forgets the load `id` of `name`; false if it is no longer the one in flight.
    fn take_loading(&mut self, name: &str, id: u64) -> bool {
        let current = self.loading.get(name).is_some_and(|loading| loading.id == id);
        if current {
            self.loading.remove(name);
        }
        current
    }

    /// Makes `name` stand for `weights`; returns the new generation and the one it replaces.
    pub(crate) fn insert(
        &mut self,
        name: &str,
        path: PathBuf,
        weights: Arc<LoweredAdapter>,
    ) -> (Arc<Generation>, Option<Arc<Generation>>) {
        // Two loads of equal files may have run side by side: the first one published is kept.
        let hash = weights.content_hash;
        let known = self.by_hash.get(&hash).and_then(Weak::upgrade);
        let weights = known.unwrap_or(weights);
        self.by_hash.retain(|_, weights| weights.strong_count() > 0);
        self.by_hash.insert(hash, Arc::downgrade(&weights));
        self.revoked.remove(name);
        let name: Arc<str> = Arc::from(name);
        let generation = Arc::new(Generation::new(Arc::clone(&name), path, weights));
        let replaced = self.loaded.insert(name, Arc::clone(&generation));
        (generation, replaced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::peft::RandomAdapter;
    use weft_testkit::tiny_llama_spec;

    fn shared() -> Arc<Shared> {
        let config =
            RegistryConfig { max_concurrent_loads: 1, ..RegistryConfig::new(tiny_llama_spec()) };
        Arc::new(Shared::new(config, None))
    }

    fn adapter() -> (tempfile::TempDir, Source) {
        let dir = tempfile::tempdir().unwrap();
        RandomAdapter::default().write(&tiny_llama_spec(), dir.path()).unwrap();
        let source = Source::Path(dir.path().to_owned());
        (dir, source)
    }

    #[tokio::test]
    async fn a_name_that_is_unloaded_while_it_loads_stays_unloaded() {
        let (shared, (_dir, source)) = (shared(), adapter());
        let busy = shared.running.acquire().await.unwrap();
        let loading = shared.start_load(&mut shared.state.lock(), "a", source);
        shared.state.lock().loading.remove("a");
        drop(busy);
        let outcome = shared.wait("a", loading).await;
        assert_eq!(outcome.unwrap_err(), AdapterError::NotFound { name: "a".into() });
        assert!(shared.state.lock().loaded.is_empty());
    }

    #[test]
    fn a_load_whose_runtime_ended_is_told_and_makes_room_for_another() {
        let (shared, (_dir, source)) = (shared(), adapter());
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let first = runtime();
        let loading =
            first.block_on(async { shared.start_load(&mut shared.state.lock(), "a", source) });
        drop(first);
        let outcome = runtime().block_on(shared.wait("a", loading));
        assert_eq!(outcome.unwrap_err(), AdapterError::Interrupted { name: "a".into() });
        assert!(shared.state.lock().loading.is_empty());
    }
}
