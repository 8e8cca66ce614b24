//! Loads in flight. A load is registered under the lock and runs as a task: find and measure the files,
//! wait for room, read, convert, publish. Reading and converting have bounds of their own, so slow
//! storage keeps nobody from the processor; nothing is held while waiting for room, so loads cannot
//! wait for each other in a circle.

use crate::base_weights::ForBase;
use crate::buffers::Buffers;
use crate::composition::is_unnamed;
use crate::config::RegistryConfig;
use crate::directory::AdapterDirectory;
use crate::dtype::convert;
use crate::error::{AdapterError, Refusal};
use crate::host_cache::{NoRoom, Resident};
use crate::lease::{Generation, Hold};
use crate::locate::Located;
use crate::lower::{Update, lower_each};
use crate::pace::Pacer;
use crate::polite::{politely, thread_cpu_time};
use crate::read::{AdapterFiles, LoadLimits, ReadFrom, changing};
use crate::state::{Freed, Loaded, Origin, State};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::spawn_blocking;
use weft_types::{ContentHash, PackedAdapter, Packer, RowTooLarge};

/// Files that change, or that turn out larger, are loaded again so often.
pub(crate) const MAX_ATTEMPTS: usize = 5;

/// Looks into the adapter directory at once.
const MAX_CONCURRENT_LOOKS: usize = 32;

/// What all clones of a registry share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RegistryConfig,
    pub(crate) directory: Option<AdapterDirectory>,
    pub(crate) state: Mutex<State>,
    /// Told whenever host memory may have become free.
    pub(crate) room: Notify,
    pub(crate) looks: Semaphore,
    pub(crate) fetches: Semaphore,
    reads: Semaphore,
    pub(crate) lowerings: Semaphore,
    /// For whom loads are that no tenant asked for.
    pub(crate) no_tenant: Arc<str>,
    pub(crate) pacer: Pacer,
    buffers: Buffers,
}

pub(crate) type Outcome = Result<(Arc<Generation>, Hold), AdapterError>;

/// A load in flight. Whoever waits keeps a clone.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    pub(crate) id: u64,
    /// Somebody named the path: unloading this name is not an error even if nothing is loaded yet,
    /// and its failure is none of the name's own source.
    pub(crate) explicit: bool,
    /// Told when nobody wants it any more.
    pub(crate) cancelled: Arc<Notify>,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// A load that is registered: what runs it. Dropped early, it is as if it had never been.
pub(crate) struct Ticket {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: Arc<str>,
    /// Who asked first.
    pub(crate) tenant: Arc<str>,
    id: u64,
    pub(crate) origin: Origin,
    /// What an earlier load of this name fetched.
    pub(crate) fetched: Option<PathBuf>,
    explicit: bool,
    pub(crate) cancelled: Arc<Notify>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.running.contains(&self.id) {
            state.end_load(&self.name, self.id);
            drop(state);
            self.shared.room.notify_waiters();
        }
    }
}

impl Ticket {
    /// Runs the load, which goes on even if nobody waits. Never under the lock of the state.
    pub(crate) fn spawn(self) {
        tokio::spawn(async move {
            let outcome = match self.load().await {
                Ok(loaded) => Ok(loaded),
                Err(error) => Err(self.fail(error)),
            };
            self.outcome.send_replace(Some(outcome));
        });
    }

    async fn load(&self) -> Outcome {
        if let Origin::Composed(composition) = &self.origin {
            return self.compose(composition).await;
        }
        let located = self.locate().await?;
        let path = located.path.clone();
        let mut num_bytes = 0;
        let mut failure = changing().of(&self.name);
        for _ in 0..MAX_ATTEMPTS {
            let began = Instant::now();
            let size = self.measure(&path).await?;
            let mut seconds = began.elapsed().as_secs_f64();
            num_bytes = num_bytes.max(size);
            self.shared.pacer.turn(&self.tenant).await;
            self.reserve(num_bytes).await?;

            let reading = self.shared.reads.acquire().await.map_err(|_| self.interrupted())?;
            let began = Instant::now();
            // Larger than it was a moment ago: measured again.
            let Some((files, read_time)) = self.read(&path, num_bytes).await? else { continue };
            seconds += began.elapsed().as_secs_f64();
            let lowering = self.shared.lowerings.acquire().await.map_err(|_| self.interrupted())?;
            // Not before: what is read and not yet converted is bounded, too.
            drop(reading);
            let began = Instant::now();
            let stamps = files.stamps;
            let lowered = self.lower(files, read_time).await?;
            drop(lowering);
            seconds += began.elapsed().as_secs_f64();
            let lowered = match lowered {
                Ok(lowered) => lowered,
                Err(refusal) => {
                    failure = refusal.of(&self.name);
                    // Perhaps somebody is still writing.
                    if self.is_unchanged(&path, stamps).await? {
                        return Err(failure);
                    }
                    continue;
                }
            };
            let mut freed = Freed::default();
            let published = self.publish(located.clone(), lowered, Vec::new(), seconds, &mut freed);
            freed.drop_elsewhere().await;
            match published {
                Ok(published) => return published,
                Err(packed_bytes) => {
                    num_bytes = packed_bytes;
                    failure = self.memory_full(packed_bytes);
                }
            }
        }
        Err(failure)
    }

    async fn measure(&self, path: &Path) -> Result<usize, AdapterError> {
        let _reading = self.shared.reads.acquire().await.map_err(|_| self.interrupted())?;
        let path = path.to_owned();
        let size =
            self.blocking(move |shared, name| shared.reader(name, &path).measure()).await??;
        Ok(usize::try_from(size).unwrap_or(usize::MAX))
    }

    async fn read(
        &self,
        path: &Path,
        max_bytes: usize,
    ) -> Result<Option<(AdapterFiles, Duration)>, AdapterError> {
        let path = path.to_owned();
        let read = move |shared: &Arc<Shared>, name: &str| {
            let files = shared.reader(name, &path).read(max_bytes as u64)?;
            let num_bytes = files.as_ref().map_or(0, |f| f.config.len() + f.tensors.len());
            shared.state.lock().counters.bytes_read += num_bytes as u64;
            Ok(files.map(|files| (files, thread_cpu_time())))
        };
        self.blocking(read).await?
    }

    async fn is_unchanged(
        &self,
        path: &Path,
        stamps: crate::read::Stamps,
    ) -> Result<bool, AdapterError> {
        let _reading = self.shared.reads.acquire().await.map_err(|_| self.interrupted())?;
        let path = path.to_owned();
        self.blocking(move |shared, name| shared.reader(name, &path).is_unchanged(&stamps)).await
    }

    /// `read_time` is the processor time that reading took.
    async fn lower(
        &self,
        files: AdapterFiles,
        read_time: Duration,
    ) -> Result<Result<Lowered, Refusal>, AdapterError> {
        let lower = |shared: &Arc<Shared>, _: &str| (shared.lower(files), thread_cpu_time());
        let (lowered, lower_time) = self.blocking(lower).await?;
        self.shared.pacer.spent(read_time + lower_time);
        Ok(lowered)
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>, &str) -> T + Send + 'static,
    ) -> Result<T, AdapterError> {
        let (shared, name) = (Arc::clone(&self.shared), Arc::clone(&self.name));
        let work = move || politely(|| work(&shared, &name));
        spawn_blocking(work).await.map_err(|_| self.interrupted())
    }

    /// Waits until `num_bytes` can be set aside.
    pub(crate) async fn reserve(&self, num_bytes: usize) -> Result<(), AdapterError> {
        let shared = &*self.shared;
        // What an earlier attempt had: who waits for room holds none.
        if shared.state.lock().host.release(self.id) {
            shared.room.notify_waiters();
        }
        let deadline = tokio::time::Instant::now() + shared.config.room_timeout;
        loop {
            let mut room = std::pin::pin!(shared.room.notified());
            // Before looking, so that nothing is missed in between.
            room.as_mut().enable();
            let mut freed = Freed::default();
            let reserved = shared.state.lock().reserve(self.id, num_bytes, &mut freed);
            freed.drop_elsewhere().await;
            match reserved {
                Ok(()) => return Ok(()),
                Err(NoRoom::Ever) => return Err(self.memory_too_small(num_bytes)),
                Err(NoRoom::Now) => {}
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(self.memory_full(num_bytes));
            }
        }
    }

    /// Makes the name stand for what was loaded. The error is the size of what found no room: it is
    /// a little more than its files were.
    pub(crate) fn publish(
        &self,
        located: Located,
        lowered: Lowered,
        parts: Vec<(Arc<str>, ContentHash)>,
        seconds: f64,
        freed: &mut Freed,
    ) -> Result<Outcome, usize> {
        let (content_hash, weights, _held) = match lowered {
            Lowered::Packed(packed) => (packed.content_hash, Some(packed), None),
            Lowered::InMemory(hold) => (hold.resident.weights.content_hash, None, Some(hold)),
        };
        let num_bytes = weights.as_ref().map_or(0, |weights| weights.num_bytes);
        let (id, name) = (self.id, Arc::clone(&self.name));
        let Located { origin, shown: path, fetched, .. } = located;
        let loaded =
            Loaded { id, name, origin, path, fetched, content_hash, weights, parts, seconds };
        let mut state = self.shared.state.lock();
        let is_wanted = state.loading.get(&self.name).is_some_and(|loading| loading.id == id);
        if !is_wanted {
            drop(state);
            let name = self.name.to_string();
            return Ok(Err(AdapterError::NotFound { name }));
        }
        let published = match state.insert(loaded, freed) {
            Ok((generation, resident)) => {
                Ok((generation, Hold::new_locked(resident, Arc::clone(&self.shared))))
            }
            Err(NoRoom::Ever) => Err(self.memory_too_small(num_bytes)),
            Err(NoRoom::Now) => return Err(num_bytes),
        };
        if published.is_ok() {
            state.end_load(&self.name, id);
        }
        drop(state);
        self.shared.room.notify_waiters();
        Ok(published)
    }

    /// Ends a load that failed; returns what those who wait are told.
    fn fail(&self, error: AdapterError) -> AdapterError {
        let mut state = self.shared.state.lock();
        state.counters.loads_failed += 1;
        if !state.end_load(&self.name, self.id) {
            // Unloaded while it was loading.
            return AdapterError::NotFound { name: self.name.to_string() };
        }
        // A composition's parts are remembered themselves.
        if !matches!(self.origin, Origin::Composed(_)) {
            state.note_failure(&self.name, self.explicit, &error, tokio::time::Instant::now());
        }
        drop(state);
        self.shared.room.notify_waiters();
        error
    }

    /// As people know it.
    pub(crate) fn label(&self) -> String {
        match &self.origin {
            Origin::Composed(composition) if is_unnamed(&self.name) => composition.to_string(),
            _ => self.name.to_string(),
        }
    }

    pub(crate) fn interrupted(&self) -> AdapterError {
        AdapterError::Interrupted { name: self.label() }
    }

    pub(crate) fn memory_full(&self, needed: usize) -> AdapterError {
        let (name, config) = (self.label(), &self.shared.config);
        let budget = config.host_memory_bytes.unwrap_or(usize::MAX);
        AdapterError::HostMemoryFull { name, needed, budget, waited: config.room_timeout }
    }

    pub(crate) fn memory_too_small(&self, needed: usize) -> AdapterError {
        let budget = self.shared.config.host_memory_bytes.unwrap_or(usize::MAX);
        AdapterError::HostMemoryTooSmall { name: self.label(), needed, budget }
    }
}

/// What became of an adapter's files.
pub(crate) enum Lowered {
    Packed(PackedAdapter),
    /// Equal files are in memory.
    InMemory(Hold),
}

impl Shared {
    pub(crate) fn new(config: RegistryConfig, directory: Option<AdapterDirectory>) -> Self {
        Self {
            directory,
            state: Mutex::new(State::new(config.host_memory_bytes)),
            room: Notify::new(),
            looks: Semaphore::new(MAX_CONCURRENT_LOOKS),
            fetches: Semaphore::new(config.max_concurrent_fetches.max(1)),
            reads: Semaphore::new(config.max_concurrent_reads.max(1)),
            lowerings: Semaphore::new(config.max_concurrent_lowerings.max(1)),
            no_tenant: Arc::from(""),
            pacer: Pacer::new(),
            buffers: Buffers::default(),
            config,
        }
    }

    /// Registers a load; it runs once its ticket is spawned. There must be none for `name`.
    pub(crate) fn register_load(
        self: &Arc<Self>,
        state: &mut State,
        name: &str,
        tenant: &Arc<str>,
        origin: Origin,
        explicit: bool,
    ) -> (Loading, Ticket) {
        let (sender, receiver) = watch::channel(None);
        state.num_loads += 1;
        let (id, name) = (state.num_loads, Arc::from(name));
        let cancelled = Arc::new(Notify::new());
        let loading =
            Loading { id, explicit, cancelled: Arc::clone(&cancelled), outcome: receiver };
        // Who names a source wants what it has now.
        let known = state.names.get(&name).filter(|_| !explicit);
        let fetched = known.and_then(|known| known.fetched.clone());
        state.loading.insert(Arc::clone(&name), loading.clone());
        state.running.insert(id);
        let (shared, tenant) = (Arc::clone(self), Arc::clone(tenant));
        let outcome = sender;
        (
            loading,
            Ticket { shared, name, tenant, id, origin, fetched, explicit, cancelled, outcome },
        )
    }

    /// Waits for the end of a load.
    pub(crate) async fn wait(&self, name: &str, mut loading: Loading) -> Outcome {
        if let Ok(outcome) = loading.outcome.wait_for(Option::is_some).await
            && let Some(outcome) = outcome.as_ref()
        {
            return outcome.clone();
        }
        // Its task was dropped with its runtime.
        Err(AdapterError::Interrupted { name: name.to_owned() })
    }

    /// The end of a hold that may be the last.
    pub(crate) fn drop_last_hold(&self, resident: &Resident) {
        let mut state = self.state.lock();
        if resident.num_holds.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) != 1 {
            return;
        }
        let swept = state.host.sweep(&resident.weights.content_hash);
        drop(state);
        drop(swept);
        self.room.notify_waiters();
    }

    fn limits(&self) -> LoadLimits {
        LoadLimits { max_lora_rank: self.config.max_lora_rank }
    }

    fn reader<'a>(&'a self, name: &'a str, path: &'a Path) -> ReadFrom<'a> {
        let (storage, base) = (&*self.config.storage, &self.config.base);
        ReadFrom { storage, name, path, base, limits: self.limits(), buffers: &self.buffers }
    }

    pub(crate) fn in_memory(self: &Arc<Self>, content_hash: &ContentHash) -> Option<Hold> {
        let state = self.state.lock();
        let resident = Arc::clone(state.host.get(content_hash)?);
        Some(Hold::new_locked(resident, Arc::clone(self)))
    }

    fn lower(self: &Arc<Self>, files: AdapterFiles) -> Result<Lowered, Refusal> {
        let content_hash = files.content_hash();
        if let Some(hold) = self.in_memory(&content_hash) {
            self.buffers.give_back(files.tensors);
            return Ok(Lowered::InMemory(hold));
        }
        let AdapterFiles { config, tensors, .. } = files;
        let weights = self.config.base_weights.as_deref();
        let base = ForBase { spec: &self.config.base, weights };
        let chunk_bytes = self.config.chunk_bytes;
        let too_large = |error: RowTooLarge| Refusal::new(error.to_string());
        let mut packer = Packer::in_pages_of(Arc::clone(&self.config.pages), chunk_bytes);
        lower_each(&config, &tensors, base, &self.limits(), |mut update| {
            convert(&mut update, self.config.dtype, chunk_bytes)?;
            match &update {
                Update::LowRank(update) => packer.push(update),
                Update::Embedding(update) => packer.push_embedding(update),
                Update::Vectors(vectors) => packer.push_vectors(vectors),
                Update::Bottleneck(bottleneck) => packer.push_bottleneck(bottleneck),
                Update::TokenRows(rows) => packer.push_token_rows(rows),
                Update::KvPrefix(prefix) => packer.push_kv_prefix(prefix),
                Update::VirtualTokens(num) => {
                    packer.set_num_virtual_tokens(*num);
                    Ok(())
                }
                Update::InvocationTokens(tokens) => {
                    packer.set_invocation_tokens(Some(tokens.clone()));
                    Ok(())
                }
            }
            .map_err(too_large)
        })?;
        self.buffers.give_back(tensors);
        Ok(Lowered::Packed(packer.finish(content_hash)))
    }
}
