//! What a registry knows, behind one lock: names, loads in flight, weights in host memory. Every
//! method leaves it whole. What has to be freed is handed out, to be dropped where no lock is held:
//! it may be gigabytes.

use crate::backoff::Backoffs;
use crate::composition::{Composition, is_unnamed};
use crate::error::AdapterError;
use crate::host_cache::{Evicted, HostCache, NoRoom, Resident, Share};
use crate::info::{AdapterInfo, AdapterTier, RegistryStats};
use crate::lease::Generation;
use crate::loads::Loading;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use weft_types::{ContentHash, PackedAdapter};

/// Compositions without a name that are remembered. Composing one again takes about as long as copying
/// its weights.
pub(crate) const MAX_UNNAMED: usize = 256;

/// Where an adapter is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The adapter directory, under its name; for a name that was never loaded, else a resolver rule.
    Directory,
    /// A local directory, or a URI, that the operator named.
    Path(PathBuf),
    /// Other adapters.
    Composed(Arc<Composition>),
    /// A path or URI that a request named: whether it may is asked again whenever it is read.
    Requested(String),
    /// A URI that a resolver rule gave.
    Rule(String),
}

/// A name that was loaded once.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) origin: Origin,
    /// Path of the last load, as it was given.
    pub(crate) path: PathBuf,
    /// Where its fetched files are. They are read again as long as they are there: only a load
    /// replaces what a name stands for.
    pub(crate) fetched: Option<PathBuf>,
    /// `None` after an eviction.
    pub(crate) generation: Option<Arc<Generation>>,
    /// The rest is of the last load.
    pub(crate) content_hash: ContentHash,
    pub(crate) rank: usize,
    pub(crate) num_bytes: usize,
    pub(crate) hits: u64,
    pub(crate) last_used: Option<SystemTime>,
    /// Implies a generation.
    pub(crate) pinned: bool,
    /// What it was composed of, if it was: once a part's name stands for another content, it is stale.
    pub(crate) parts: Vec<(Arc<str>, ContentHash)>,
}

impl Known {
    pub(crate) fn share(&self, name: &Arc<str>) -> Share {
        Share { name: Arc::clone(name), hits: self.hits, pinned: self.pinned }
    }

    pub(crate) fn info(&self, name: &str) -> AdapterInfo {
        let generation = self.generation.as_ref();
        AdapterInfo {
            name: name.to_owned(),
            path: self.path.clone(),
            tier: generation.map_or(AdapterTier::Source, |_| AdapterTier::Host),
            rank: Some(self.rank),
            num_bytes: self.num_bytes,
            content_hash: Some(self.content_hash),
            num_leases: generation.map_or(0, |generation| generation.num_leases()),
            pinned: self.pinned,
            hits: self.hits,
            last_used: self.last_used,
        }
    }
}

/// A finished load, to be made what its name stands for.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) origin: Origin,
    pub(crate) path: PathBuf,
    pub(crate) fetched: Option<PathBuf>,
    /// Without weights, those of this hash are in memory and held.
    pub(crate) content_hash: ContentHash,
    pub(crate) weights: Option<PackedAdapter>,
    /// See [`Known::parts`].
    pub(crate) parts: Vec<(Arc<str>, ContentHash)>,
    /// Seconds of reading and converting.
    pub(crate) seconds: f64,
}

/// To be dropped where no lock is held, and better not on a thread that others wait for.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub(crate) evicted: Vec<Evicted>,
    pub(crate) residents: Vec<Arc<Resident>>,
    pub(crate) packed: Option<PackedAdapter>,
}

impl Freed {
    /// Drops it on a blocking thread. Only on a runtime.
    pub(crate) async fn drop_elsewhere(self) {
        if self.evicted.is_empty() && self.residents.is_empty() && self.packed.is_none() {
            return;
        }
        // An error means that the runtime ends; it is dropped then, too.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) names: BTreeMap<Arc<str>, Known>,
    /// At most one load a name.
    pub(crate) loading: HashMap<Arc<str>, Loading>,
    /// Loads whose task lives; also those that nobody wants any more.
    pub(crate) running: HashSet<u64>,
    /// Names in the adapter directory, or covered by a resolver rule, that were unloaded: not found
    /// again until loaded by path.
    pub(crate) revoked: HashSet<String>,
    pub(crate) backoffs: Backoffs,
    pub(crate) host: HostCache,
    pub(crate) num_loads: u64,
    /// Only the counters.
    pub(crate) counters: RegistryStats,
}

impl State {
    pub(crate) fn new(host_memory_bytes: Option<usize>) -> Self {
        Self {
            names: BTreeMap::new(),
            loading: HashMap::new(),
            running: HashSet::new(),
            revoked: HashSet::new(),
            backoffs: Backoffs::default(),
            host: HostCache::new(host_memory_bytes),
            num_loads: 0,
            counters: RegistryStats::default(),
        }
    }

    /// What `name` stands for, if that is in memory.
    pub(crate) fn resident(&self, name: &str) -> Option<(Arc<Generation>, Arc<Resident>)> {
        let known = self.names.get(name)?;
        let is_current = |(part, content_hash): &(Arc<str>, ContentHash)| {
            self.names.get(part).is_some_and(|part| part.content_hash == *content_hash)
        };
        if !known.parts.iter().all(is_current) {
            return None;
        }
        let generation = known.generation.as_ref()?;
        Some((Arc::clone(generation), Arc::clone(self.host.get(&known.content_hash)?)))
    }

    /// Counts a request for `name`.
    pub(crate) fn hit(&mut self, name: &str, now: SystemTime) {
        let Some(known) = self.names.get_mut(name) else { return };
        known.hits += 1;
        known.last_used = Some(now);
        if known.generation.is_some() {
            self.host.hit(&known.content_hash);
        }
    }

    /// Sets aside host memory for the load `id`.
    pub(crate) fn reserve(
        &mut self,
        id: u64,
        num_bytes: usize,
        freed: &mut Freed,
    ) -> Result<(), NoRoom> {
        let first = freed.evicted.len();
        let reserved = self.host.reserve(id, num_bytes, &mut freed.evicted);
        for evicted in &freed.evicted[first..] {
            for name in &evicted.names {
                if is_unnamed(name) {
                    self.names.remove(name);
                } else if let Some(known) = self.names.get_mut(name) {
                    known.generation = None;
                }
            }
        }
        reserved
    }

    /// Makes a name stand for what was loaded. If memory is short of a few bytes, gives the load
    /// back.
    pub(crate) fn insert(
        &mut self,
        mut loaded: Loaded,
        freed: &mut Freed,
    ) -> Result<(Arc<Generation>, Arc<Resident>), NoRoom> {
        let hash = loaded.content_hash;
        let resident = match (self.host.get(&hash), loaded.weights.take()) {
            // Two loads of equal files may have run side by side: the first one published is kept.
            (Some(resident), duplicate) => {
                freed.packed = duplicate;
                self.counters.dedup_hits += 1;
                Arc::clone(resident)
            }
            (None, Some(weights)) => {
                if let Err(no_room) = self.reserve(loaded.id, weights.num_bytes, freed) {
                    freed.packed = Some(weights);
                    return Err(no_room);
                }
                self.host.insert(loaded.id, weights, loaded.seconds)
            }
            (None, None) => return Err(NoRoom::Now),
        };
        self.counters.loads_ok += 1;
        self.counters.load_seconds += loaded.seconds;
        let Loaded { name, origin, path, fetched, parts, .. } = loaded;
        let label = match &origin {
            Origin::Composed(composition) if is_unnamed(&name) => composition.to_string().into(),
            _ => Arc::clone(&name),
        };
        let old = self.names.remove(&name);
        let mut known = Known {
            origin,
            path,
            fetched,
            generation: None,
            content_hash: hash,
            rank: resident.weights.max_rank(),
            num_bytes: resident.weights.num_bytes,
            hits: old.as_ref().map_or(0, |old| old.hits),
            last_used: old.as_ref().and_then(|old| old.last_used),
            pinned: old.as_ref().is_some_and(|old| old.pinned),
            parts,
        };
        let is_attached = |old: &Known| old.generation.is_some() && old.content_hash == hash;
        // Else it might be swept in between.
        if !old.as_ref().is_some_and(is_attached) {
            if let Some(old) = &old {
                self.detach(&name, old, freed);
            }
            self.host.attach(&hash, known.share(&name));
        }
        let generation = Arc::new(Generation::new(label));
        known.generation = Some(Arc::clone(&generation));
        self.backoffs.clear(&name);
        self.revoked.remove(&*name);
        if is_unnamed(&name) {
            self.trim_unnamed(freed);
        }
        self.names.insert(name, known);
        Ok((generation, resident))
    }

    /// Makes room for one more composition without a name. What is held stays in memory as long.
    fn trim_unnamed(&mut self, freed: &mut Freed) {
        let unnamed = self.names.iter().filter(|(name, _)| is_unnamed(name));
        let oldest = unnamed.clone().min_by_key(|(_, known)| known.last_used);
        if unnamed.count() >= MAX_UNNAMED
            && let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name))
        {
            self.forget(&oldest, freed);
        }
    }

    /// Forgets a name; whether it was known.
    pub(crate) fn forget(&mut self, name: &str, freed: &mut Freed) -> bool {
        self.backoffs.clear(name);
        let Some((name, known)) = self.names.remove_entry(name) else { return false };
        self.detach(&name, &known, freed);
        true
    }

    fn detach(&mut self, name: &Arc<str>, known: &Known, freed: &mut Freed) {
        if known.generation.is_some() {
            freed.residents.extend(self.host.detach(&known.content_hash, &known.share(name)));
        }
    }

    /// Pins or unpins what is in memory; `None` if it is not.
    pub(crate) fn set_pinned(&mut self, name: &str, pinned: bool) -> Option<AdapterInfo> {
        let known = self.names.get_mut(name)?;
        if known.generation.is_none() && pinned {
            return None;
        }
        if known.pinned != pinned {
            known.pinned = pinned;
            self.host.set_pinned(&known.content_hash, pinned);
        }
        Some(known.info(name))
    }

    /// Ends the load `id`: its memory is given back, its name may be loaded again. Returns whether it
    /// was still the one that its name waits for.
    pub(crate) fn end_load(&mut self, name: &str, id: u64) -> bool {
        self.host.release(id);
        self.running.remove(&id);
        let current = self.loading.get(name).is_some_and(|loading| loading.id == id);
        if current {
            self.loading.remove(name);
        }
        current
    }

    /// Of a load that failed: what to remember of it.
    pub(crate) fn note_failure(
        &mut self,
        name: &Arc<str>,
        explicit: bool,
        error: &AdapterError,
        now: tokio::time::Instant,
    ) {
        let known = self.names.get(name);
        // The names' own source failed only if it was asked, and not some path of a `load`.
        if explicit || known.is_some_and(|known| known.generation.is_some()) {
            return;
        }
        self.backoffs.failed(name, error, now);
        // Nothing is kept of a name that vanished from the adapter directory.
        let in_directory = known.is_some_and(|known| known.origin == Origin::Directory);
        if in_directory && matches!(error, AdapterError::NotFound { .. }) {
            self.names.remove(name);
            self.backoffs.clear(name);
        }
    }

    pub(crate) fn stats(&self) -> RegistryStats {
        let named = || self.names.iter().filter(|(name, _)| !is_unnamed(name));
        RegistryStats {
            host_bytes: self.host.used_bytes,
            reserved_bytes: self.host.reserved_bytes(),
            host_budget_bytes: self.host.budget,
            num_known: named().count(),
            num_in_host: named().filter(|(_, known)| known.generation.is_some()).count(),
            num_loading: self.running.len(),
            evictions: self.host.num_evictions,
            ..self.counters
        }
    }
}
