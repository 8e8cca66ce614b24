//! Which adapters are on the device, who uses them, and which of the unused ones leaves first.
//!
//! In: sequences that name an adapter, copies that end. Out: ids, chunks, victims. An adapter is
//! *absent*, *loading* or *resident*; a resident one that no running sequence holds and that is not
//! pinned is *idle* and may be evicted. Knows no sequences and no KV blocks.

use crate::cost::CostModel;
use crate::eviction::{AdapterFacts, EvictionPolicy};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use weft_types::{AdapterId, BlockId, ContentHash};

/// An adapter, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterSpec {
    /// Names it.
    pub hash: ContentHash,
    /// Chunks that it takes on the device.
    pub num_chunks: usize,
    /// Its largest rank: what it adds to the cost of a step.
    pub rank: usize,
}

/// Where an adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Absent,
    /// Its chunks are being written.
    Loading(Box<[BlockId]>),
    Resident(Box<[BlockId]>),
}

pub(crate) struct Entry {
    pub(crate) spec: AdapterSpec,
    pub(crate) place: Place,
    /// Running sequences that use it.
    pub(crate) num_running: u32,
    /// Waiting sequences that will.
    pub(crate) num_waiting: u32,
    pub(crate) is_pinned: bool,
    pub(crate) num_uses: u64,
    /// The last step that it was part of.
    last_step: u64,
    /// Set exactly while it is in `idle`.
    idle_as: Option<IdleKey>,
}

/// Those that nobody waits for leave first, then by value. Values are positive, and the bits of
/// positive floats are in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct IdleKey {
    is_wanted: bool,
    value_bits: u64,
    id: AdapterId,
}

/// What happened since the start. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidencyCounters {
    /// Sequences whose adapter was on the device when they came.
    pub hits: u64,
    /// Sequences that had to wait for a load.
    pub misses: u64,
    /// Loads that were begun.
    pub loads: u64,
    /// Chunks of those.
    pub loaded_chunks: u64,
    /// Adapters that left the device.
    pub evictions: u64,
}

/// An adapter that the scheduler knows, for those who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentAdapter {
    /// Names it.
    pub hash: ContentHash,
    /// Chunks that it takes.
    pub num_chunks: usize,
    /// Whether it is on the device; else it is on its way there, or waits for room.
    pub is_resident: bool,
    /// Whether it may leave.
    pub is_pinned: bool,
    /// Running sequences that use it.
    pub num_running: u32,
    /// Waiting sequences that will.
    pub num_waiting: u32,
    /// Sequences that have used it since the scheduler knows it.
    pub num_uses: u64,
}

/// See the module.
pub(crate) struct Residency {
    entries: Vec<Option<Entry>>,
    free_ids: Vec<AdapterId>,
    by_hash: FxHashMap<ContentHash, AdapterId>,
    idle: BTreeSet<IdleKey>,
    /// Pins of adapters that may not be known yet.
    pinned: BTreeSet<ContentHash>,
    num_idle_chunks: usize,
    num_unwanted_chunks: usize,
    num_resident_chunks: usize,
    num_loading_chunks: usize,
    pub(crate) counters: ResidencyCounters,
}

impl Residency {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free_ids: Vec::new(),
            by_hash: FxHashMap::default(),
            idle: BTreeSet::new(),
            pinned: BTreeSet::new(),
            num_idle_chunks: 0,
            num_unwanted_chunks: 0,
            num_resident_chunks: 0,
            num_loading_chunks: 0,
            counters: ResidencyCounters::default(),
        }
    }

    /// Chunks of adapters that may be evicted.
    pub(crate) fn num_idle_chunks(&self) -> usize {
        self.num_idle_chunks
    }

    /// Of those, the chunks of adapters that nobody waits for.
    pub(crate) fn num_unwanted_chunks(&self) -> usize {
        self.num_unwanted_chunks
    }

    /// Chunks of all adapters on the device, the idle ones included.
    pub(crate) fn num_resident_chunks(&self) -> usize {
        self.num_resident_chunks
    }

    /// Chunks that are being written.
    pub(crate) fn num_loading_chunks(&self) -> usize {
        self.num_loading_chunks
    }

    pub(crate) fn entry(&self, id: AdapterId) -> &Entry {
        match &self.entries[id.0 as usize] {
            Some(entry) => entry,
            None => unreachable!("{id:?} is held by whoever asks"),
        }
    }

    fn entry_mut(&mut self, id: AdapterId) -> &mut Entry {
        match &mut self.entries[id.0 as usize] {
            Some(entry) => entry,
            None => unreachable!("{id:?} is held by whoever asks"),
        }
    }

    pub(crate) fn is_resident(&self, id: AdapterId) -> bool {
        matches!(self.entry(id).place, Place::Resident(_))
    }

    pub(crate) fn is_absent(&self, id: AdapterId) -> bool {
        self.entry(id).place == Place::Absent
    }

    /// Its rank, for the first sequence of this step that uses it.
    pub(crate) fn join_step(&mut self, id: AdapterId, step: u64) -> Option<usize> {
        let entry = self.entry_mut(id);
        let before = std::mem::replace(&mut entry.last_step, step);
        (before != step).then_some(entry.spec.rank)
    }

    pub(crate) fn is_idle(&self, id: AdapterId) -> bool {
        self.entry(id).idle_as.is_some()
    }

    /// One more waiting sequence that names the adapter.
    pub(crate) fn add_waiting(&mut self, spec: AdapterSpec) -> AdapterId {
        let id = match self.by_hash.get(&spec.hash) {
            Some(&id) => id,
            None => self.insert(spec),
        };
        self.entry_mut(id).num_waiting += 1;
        self.refresh_idle(id);
        id
    }

    fn insert(&mut self, spec: AdapterSpec) -> AdapterId {
        let entry = Entry {
            spec,
            place: Place::Absent,
            num_running: 0,
            num_waiting: 0,
            is_pinned: self.pinned.contains(&spec.hash),
            num_uses: 0,
            last_step: 0,
            idle_as: None,
        };
        let id = self.free_ids.pop().unwrap_or(AdapterId(self.entries.len() as u32));
        let index = id.0 as usize;
        if index == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[index] = Some(entry);
        self.by_hash.insert(spec.hash, id);
        id
    }

    /// A waiting sequence begins to run. The adapter is resident.
    pub(crate) fn begin_use(&mut self, id: AdapterId) {
        debug_assert!(self.is_resident(id));
        self.remove_idle(id);
        let entry = self.entry_mut(id);
        entry.num_waiting -= 1;
        entry.num_running += 1;
        entry.num_uses += 1;
    }

    /// A running sequence ended, or waits again if `waits_again`.
    pub(crate) fn end_use(
        &mut self,
        id: AdapterId,
        waits_again: bool,
        policy: &mut dyn EvictionPolicy,
        costs: &CostModel,
        now: u64,
    ) {
        let entry = self.entry_mut(id);
        entry.num_running -= 1;
        entry.num_waiting += u32::from(waits_again);
        self.make_idle(id, policy, costs, now);
    }

    /// A waiting sequence went away.
    pub(crate) fn remove_waiting(&mut self, id: AdapterId) {
        self.entry_mut(id).num_waiting -= 1;
        self.refresh_idle(id);
        self.forget_if_unused(id);
    }

    /// Its chunks are being written from now on.
    pub(crate) fn begin_load(&mut self, id: AdapterId, chunks: Box<[BlockId]>) {
        debug_assert_eq!(self.entry(id).place, Place::Absent);
        self.counters.loads += 1;
        self.counters.loaded_chunks += chunks.len() as u64;
        self.num_loading_chunks += chunks.len();
        self.entry_mut(id).place = Place::Loading(chunks);
    }

    /// Its chunks are written.
    pub(crate) fn end_load(
        &mut self,
        id: AdapterId,
        policy: &mut dyn EvictionPolicy,
        costs: &CostModel,
        now: u64,
    ) {
        let Some(chunks) = self.take_loading(id) else { return };
        self.num_resident_chunks += chunks.len();
        self.entry_mut(id).place = Place::Resident(chunks);
        self.make_idle(id, policy, costs, now);
    }

    /// Its chunks will not be written.
    pub(crate) fn undo_load(&mut self, id: AdapterId) -> Box<[BlockId]> {
        let Some(chunks) = self.take_loading(id) else { return Box::default() };
        self.forget_if_unused(id);
        chunks
    }

    /// Leaves a loading adapter absent.
    fn take_loading(&mut self, id: AdapterId) -> Option<Box<[BlockId]>> {
        let entry = self.entries.get_mut(id.0 as usize)?.as_mut()?;
        let Place::Loading(chunks) = std::mem::replace(&mut entry.place, Place::Absent) else {
            debug_assert!(false, "{id:?} was not loading");
            return None;
        };
        self.num_loading_chunks -= chunks.len();
        Some(chunks)
    }

    /// Pins or unpins whatever has this content, now and later.
    pub(crate) fn set_pinned(
        &mut self,
        hash: ContentHash,
        is_pinned: bool,
        policy: &mut dyn EvictionPolicy,
        costs: &CostModel,
        now: u64,
    ) {
        if is_pinned {
            self.pinned.insert(hash);
        } else {
            self.pinned.remove(&hash);
        }
        let Some(&id) = self.by_hash.get(&hash) else { return };
        self.entry_mut(id).is_pinned = is_pinned;
        if is_pinned {
            self.remove_idle(id);
        } else {
            self.make_idle(id, policy, costs, now);
            self.forget_if_unused(id);
        }
    }

    /// The least valuable idle adapter that nobody waits for, or with `even_wanted` one that
    /// somebody does, and its value.
    pub(crate) fn least_valuable(&self, even_wanted: bool) -> Option<(AdapterId, f64)> {
        let key = self.idle.first()?;
        (even_wanted || !key.is_wanted).then(|| (key.id, f64::from_bits(key.value_bits)))
    }

    /// A pinned adapter that no running sequence uses, other than `but`: the last resort.
    pub(crate) fn unused_pinned(&self, but: Option<AdapterId>) -> Option<AdapterId> {
        let entries = self.entries.iter().enumerate();
        let mut unused = entries.filter_map(|(index, entry)| {
            let entry = entry.as_ref()?;
            let id = AdapterId(index as u32);
            let is_unused = entry.is_pinned && entry.num_running == 0 && but != Some(id);
            (is_unused && matches!(entry.place, Place::Resident(_))).then_some(id)
        });
        unused.next()
    }

    /// The idle adapter with this content that no sequence waits for.
    pub(crate) fn unnamed(&self, hash: ContentHash) -> Option<AdapterId> {
        let id = *self.by_hash.get(&hash)?;
        self.entry(id).idle_as.filter(|key| !key.is_wanted).map(|_| id)
    }

    /// Takes a resident adapter that no running sequence uses off the device.
    pub(crate) fn evict(&mut self, id: AdapterId) -> Box<[BlockId]> {
        debug_assert_eq!(self.entry(id).num_running, 0);
        self.remove_idle(id);
        let Place::Resident(chunks) =
            std::mem::replace(&mut self.entry_mut(id).place, Place::Absent)
        else {
            unreachable!("only resident adapters are evicted");
        };
        self.num_resident_chunks -= chunks.len();
        self.counters.evictions += 1;
        self.forget_if_unused(id);
        chunks
    }

    /// All that are known.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (AdapterId, &Entry)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| Some((AdapterId(index as u32), entry.as_ref()?)))
    }

    fn make_idle(
        &mut self,
        id: AdapterId,
        policy: &mut dyn EvictionPolicy,
        costs: &CostModel,
        now: u64,
    ) {
        let entry = self.entry(id);
        let is_resident = matches!(entry.place, Place::Resident(_));
        if !is_resident || entry.is_pinned || entry.num_running > 0 || entry.idle_as.is_some() {
            return;
        }
        let num_chunks = entry.spec.num_chunks;
        let load_s = costs.load(num_chunks);
        let facts = AdapterFacts { num_chunks, num_uses: entry.num_uses, load_s };
        let value_bits = policy.adapter_value(&facts, now).max(0.0).to_bits();
        let key = IdleKey { is_wanted: entry.num_waiting > 0, value_bits, id };
        self.idle.insert(key);
        self.num_idle_chunks += num_chunks;
        self.num_unwanted_chunks += if key.is_wanted { 0 } else { num_chunks };
        self.entry_mut(id).idle_as = Some(key);
    }

    fn remove_idle(&mut self, id: AdapterId) {
        if let Some(key) = self.entry_mut(id).idle_as.take() {
            self.idle.remove(&key);
            let num_chunks = self.entry(id).spec.num_chunks;
            self.num_idle_chunks -= num_chunks;
            self.num_unwanted_chunks -= if key.is_wanted { 0 } else { num_chunks };
        }
    }

    /// Whether somebody waits for it may have changed.
    fn refresh_idle(&mut self, id: AdapterId) {
        let entry = self.entry(id);
        let is_wanted = entry.num_waiting > 0;
        if let Some(key) = entry.idle_as
            && key.is_wanted != is_wanted
        {
            let num_chunks = entry.spec.num_chunks;
            let new = IdleKey { is_wanted, ..key };
            if is_wanted {
                self.num_unwanted_chunks -= num_chunks;
            } else {
                self.num_unwanted_chunks += num_chunks;
            }
            self.idle.remove(&key);
            self.idle.insert(new);
            self.entry_mut(id).idle_as = Some(new);
        }
    }

    fn forget_if_unused(&mut self, id: AdapterId) {
        let entry = self.entry(id);
        if entry.place == Place::Absent && entry.num_running == 0 && entry.num_waiting == 0 {
            let hash = entry.spec.hash;
            self.by_hash.remove(&hash);
            self.entries[id.0 as usize] = None;
            self.free_ids.push(id);
        }
    }

    /// Compares the counts with the entries.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let (mut idle, mut unwanted, mut resident, mut loading) = (0, 0, 0, 0);
        for (id, entry) in self.iter() {
            let (name, chunks) = (entry.spec.hash, entry.spec.num_chunks);
            if self.by_hash.get(&name) != Some(&id) {
                return Err(format!("adapter {name} is not found under its hash"));
            }
            let is_used = entry.num_running > 0;
            let mut should_idle = false;
            match &entry.place {
                Place::Absent if is_used => return Err(format!("{name} runs and is absent")),
                Place::Absent if entry.num_waiting == 0 => {
                    return Err(format!("{name} is absent, unused and remembered"));
                }
                Place::Absent => {}
                Place::Loading(held) => {
                    if is_used || held.len() != chunks {
                        return Err(format!("{name} runs while it loads, or lacks chunks"));
                    }
                    loading += chunks;
                }
                Place::Resident(held) => {
                    if held.len() != chunks {
                        return Err(format!("{name} lacks chunks"));
                    }
                    resident += chunks;
                    should_idle = !is_used && !entry.is_pinned;
                }
            }
            let is_listed = entry.idle_as.is_some_and(|key| {
                key.is_wanted == (entry.num_waiting > 0) && self.idle.contains(&key)
            });
            if should_idle != is_listed || entry.idle_as.is_some() != is_listed {
                return Err(format!("{name} is idle and not listed so, or the reverse"));
            }
            idle += if should_idle { chunks } else { 0 };
            unwanted += if should_idle && entry.num_waiting == 0 { chunks } else { 0 };
        }
        let Self { num_idle_chunks, num_unwanted_chunks, .. } = *self;
        let counted = [num_idle_chunks, num_unwanted_chunks, self.num_resident_chunks];
        if counted != [idle, unwanted, resident] || self.num_loading_chunks != loading {
            return Err(format!("counts {counted:?} for {:?}", [idle, unwanted, resident]));
        }
        let num_listed = self.iter().filter(|(_, entry)| entry.idle_as.is_some()).count();
        if num_listed != self.idle.len() || self.by_hash.len() != self.iter().count() {
            return Err("an adapter is listed and not known".to_owned());
        }
        Ok(())
    }
}
