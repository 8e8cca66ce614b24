//! The weights in host memory, by content, within a budget of bytes. In: what is loaded, asked for,
//! held and pinned. Out: what has to go. Knows no files, no clocks and no threads.
//!
//! Whom to evict is GreedyDual-Size-Frequency (Cherkasova 1998): the least `L + hits * cost / bytes`
//! goes first, where `cost` is the seconds that loading it took and `L`, the *age*, is the value of
//! the last one that went. So what is cheap to read, large or seldom used goes first, and what was
//! often used long ago goes in the end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_types::{ContentHash, PackedAdapter};

/// Weights in memory, shared by everything that holds them.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) weights: Arc<PackedAdapter>,
    /// Rises from 0 and falls to 0 only under the lock of the state.
    pub(crate) num_holds: AtomicUsize,
}

impl Resident {
    fn is_held(&self) -> bool {
        self.num_holds.load(Ordering::Acquire) > 0
    }
}

/// What is known of a resident.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) resident: Arc<Resident>,
    pub(crate) num_bytes: usize,
    /// Names that stand for it. None: it was replaced or unloaded, and goes with its last hold.
    pub(crate) names: Vec<Arc<str>>,
    /// Of these, pinned.
    pub(crate) num_pinned: usize,
    /// Of these names together, ever.
    pub(crate) hits: u64,
    cost_seconds: f64,
    value: f64,
}

impl Entry {
    fn can_go(&self) -> bool {
        self.num_pinned == 0 && !self.resident.is_held()
    }
}

/// What a name adds to the entry that it stands for.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) name: Arc<str>,
    pub(crate) hits: u64,
    pub(crate) pinned: bool,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The budget is smaller.
    Ever,
    /// Too much is held, pinned or reserved.
    Now,
}

/// What had to go. To be dropped where no lock is held.
#[derive(Debug)]
pub(crate) struct Evicted {
    pub(crate) names: Vec<Arc<str>>,
    _resident: Arc<Resident>,
}

#[derive(Debug)]
pub(crate) struct HostCache {
    /// Bytes; `None` is unbounded.
    pub(crate) budget: Option<usize>,
    pub(crate) entries: HashMap<ContentHash, Entry>,
    /// Of the entries.
    pub(crate) used_bytes: usize,
    /// Bytes for loads in flight, by the load.
    pub(crate) reserved: HashMap<u64, usize>,
    pub(crate) num_evictions: u64,
    age: f64,
}

impl HostCache {
    pub(crate) fn new(budget: Option<usize>) -> Self {
        Self {
            budget,
            entries: HashMap::new(),
            used_bytes: 0,
            reserved: HashMap::new(),
            num_evictions: 0,
            age: 0.0,
        }
    }

    pub(crate) fn reserved_bytes(&self) -> usize {
        self.reserved.values().sum()
    }

    /// Sets aside `num_bytes` in all for the load `id`. What went to make room is added to `evicted`.
    pub(crate) fn reserve(
        &mut self,
        id: u64,
        num_bytes: usize,
        evicted: &mut Vec<Evicted>,
    ) -> Result<(), NoRoom> {
        let before = self.reserved.get(&id).copied().unwrap_or(0);
        if self.budget.is_some_and(|budget| num_bytes > budget) {
            return Err(NoRoom::Ever);
        }
        self.make_room(num_bytes.saturating_sub(before), evicted)?;
        self.reserved.insert(id, num_bytes);
        Ok(())
    }

    /// Gives back what was set aside; whether there was anything.
    pub(crate) fn release(&mut self, id: u64) -> bool {
        self.reserved.remove(&id).is_some()
    }

    /// Evicts until `num_bytes` are free, or nothing if that cannot be.
    fn make_room(&mut self, num_bytes: usize, evicted: &mut Vec<Evicted>) -> Result<(), NoRoom> {
        let Some(budget) = self.budget else { return Ok(()) };
        let wanted = self.used_bytes.saturating_add(self.reserved_bytes());
        let mut excess = wanted.saturating_add(num_bytes).saturating_sub(budget);
        if excess == 0 {
            return Ok(());
        }
        let can_go = self.entries.iter().filter(|(_, entry)| entry.can_go());
        let mut candidates: Vec<_> =
            can_go.map(|(hash, entry)| (entry.value, *hash, entry.num_bytes)).collect();
        if candidates.iter().map(|(_, _, num_bytes)| num_bytes).sum::<usize>() < excess {
            return Err(NoRoom::Now);
        }
        candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.0.cmp(&b.1.0)));
        for (value, hash, num_bytes) in candidates {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(num_bytes);
            self.age = self.age.max(value);
            self.num_evictions += 1;
            if let Some(entry) = self.remove(hash) {
                evicted.push(Evicted { names: entry.names, _resident: entry.resident });
            }
        }
        Ok(())
    }

    /// Turns the reservation of the load `id` into an entry that no name stands for yet, which holds
    /// nothing: attach one or hold it before the lock is let go. Room must have been made.
    pub(crate) fn insert(
        &mut self,
        id: u64,
        weights: PackedAdapter,
        cost_seconds: f64,
    ) -> Arc<Resident> {
        self.reserved.remove(&id);
        let (hash, num_bytes) = (weights.content_hash, weights.num_bytes);
        let resident =
            Arc::new(Resident { weights: Arc::new(weights), num_holds: AtomicUsize::new(0) });
        let entry = Entry {
            resident: Arc::clone(&resident),
            num_bytes,
            names: Vec::new(),
            num_pinned: 0,
            hits: 0,
            cost_seconds,
            value: self.age,
        };
        self.used_bytes += num_bytes;
        self.entries.insert(hash, entry);
        resident
    }

    pub(crate) fn get(&self, hash: &ContentHash) -> Option<&Arc<Resident>> {
        self.entries.get(hash).map(|entry| &entry.resident)
    }

    /// Makes a name stand for an entry.
    pub(crate) fn attach(&mut self, hash: &ContentHash, share: Share) {
        if let Some(entry) = self.entries.get_mut(hash) {
            entry.names.push(share.name);
            entry.hits += share.hits;
            entry.num_pinned += usize::from(share.pinned);
        }
        self.renew(hash);
    }

    /// Undoes [`Self::attach`]. The entry goes if nothing else keeps it; to be dropped where no lock
    /// is held.
    #[must_use]
    pub(crate) fn detach(&mut self, hash: &ContentHash, share: &Share) -> Option<Arc<Resident>> {
        if let Some(entry) = self.entries.get_mut(hash) {
            entry.names.retain(|name| *name != share.name);
            entry.hits -= share.hits;
            entry.num_pinned -= usize::from(share.pinned);
        }
        self.sweep(hash)
    }

    /// Counts a request.
    pub(crate) fn hit(&mut self, hash: &ContentHash) {
        if let Some(entry) = self.entries.get_mut(hash) {
            entry.hits += 1;
        }
        self.renew(hash);
    }

    pub(crate) fn set_pinned(&mut self, hash: &ContentHash, pinned: bool) {
        if let Some(entry) = self.entries.get_mut(hash) {
            match pinned {
                true => entry.num_pinned += 1,
                false => entry.num_pinned -= 1,
            }
        }
    }

    /// Removes an entry that no name stands for and nothing holds; to be dropped where no lock is
    /// held.
    #[must_use]
    pub(crate) fn sweep(&mut self, hash: &ContentHash) -> Option<Arc<Resident>> {
        let entry = self.entries.get(hash)?;
        if !entry.names.is_empty() || entry.resident.is_held() {
            return None;
        }
        self.remove(*hash).map(|entry| entry.resident)
    }

    fn remove(&mut self, hash: ContentHash) -> Option<Entry> {
        let entry = self.entries.remove(&hash)?;
        self.used_bytes -= entry.num_bytes;
        Some(entry)
    }

    fn renew(&mut self, hash: &ContentHash) {
        if let Some(entry) = self.entries.get_mut(hash) {
            let hits = entry.hits.max(1) as f64;
            entry.value = self.age + hits * entry.cost_seconds / entry.num_bytes.max(1) as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_types::{AdapterLayout, Page};

    /// Inserts an adapter of `num_bytes` that loads in `cost` seconds, after making room.
    fn insert(cache: &mut HostCache, key: u8, num_bytes: usize, cost: f64) -> Vec<u8> {
        let mut evicted = Vec::new();
        cache.reserve(u64::from(key), num_bytes, &mut evicted).unwrap();
        let layout = AdapterLayout {
            content_hash: ContentHash([key; 32]),
            num_chunks: 1,
            num_bytes,
            ..AdapterLayout::default()
        };
        let pages = [Page::from(vec![0; num_bytes])].into();
        let weights = PackedAdapter { layout: layout.into(), pages };
        cache.insert(u64::from(key), weights, cost);
        cache.attach(&ContentHash([key; 32]), share(key));
        evicted.iter().map(|gone| gone.names[0].parse().unwrap()).collect()
    }

    fn share(key: u8) -> Share {
        Share { name: key.to_string().into(), hits: 0, pinned: false }
    }

    fn hit(cache: &mut HostCache, key: u8, times: usize) {
        (0..times).for_each(|_| cache.hit(&ContentHash([key; 32])));
    }

    #[test]
    fn what_is_cheap_large_or_seldom_used_goes_first() {
        let mut cache = HostCache::new(Some(100));
        assert!(insert(&mut cache, 1, 40, 1.0).is_empty());
        assert!(insert(&mut cache, 2, 20, 1.0).is_empty());
        assert!(insert(&mut cache, 3, 20, 0.1).is_empty());
        assert!(insert(&mut cache, 4, 20, 1.0).is_empty());
        hit(&mut cache, 2, 3);
        // 3 is cheapest a byte; then 1, the largest; then 4, used less than 2.
        assert_eq!(insert(&mut cache, 5, 20, 9.0), [3]);
        assert_eq!(insert(&mut cache, 6, 20, 9.0), [1]);
        assert_eq!(insert(&mut cache, 7, 40, 9.0), [4]);
        assert_eq!((cache.used_bytes, cache.num_evictions), (100, 3));
    }

    #[test]
    fn what_was_used_often_long_ago_goes_in_the_end() {
        let mut cache = HostCache::new(Some(20));
        insert(&mut cache, 0, 10, 1.0);
        hit(&mut cache, 0, 10);
        let gone = (1..30).find(|&key| insert(&mut cache, key, 10, 1.0) == [0]);
        assert!(gone.is_some_and(|key| key > 5), "{gone:?}");
    }

    #[test]
    fn what_is_held_or_pinned_stays_and_nothing_goes_in_vain() {
        let mut cache = HostCache::new(Some(30));
        for key in 1..=3 {
            insert(&mut cache, key, 10, f64::from(key));
        }
        cache.set_pinned(&ContentHash([1; 32]), true);
        let held = Arc::clone(cache.get(&ContentHash([2; 32])).unwrap());
        held.num_holds.store(1, Ordering::Release);
        let mut evicted = Vec::new();
        assert_eq!(cache.reserve(9, 20, &mut evicted), Err(NoRoom::Now));
        assert_eq!(cache.reserve(9, 31, &mut evicted), Err(NoRoom::Ever));
        assert!(evicted.is_empty());
        assert_eq!(insert(&mut cache, 4, 10, 1.0), [3]);
        // Without a name it lives as long as it is held.
        assert!(cache.detach(&ContentHash([2; 32]), &share(2)).is_none());
        held.num_holds.store(0, Ordering::Release);
        assert!(cache.sweep(&ContentHash([2; 32])).is_some());
        assert_eq!(cache.used_bytes, 20);
    }

    #[test]
    fn reservations_count() {
        let mut cache = HostCache::new(Some(30));
        let mut evicted = Vec::new();
        cache.reserve(1, 20, &mut evicted).unwrap();
        assert_eq!(cache.reserve(2, 11, &mut evicted), Err(NoRoom::Now));
        // More or less for the same load is a difference, not a second reservation.
        cache.reserve(1, 30, &mut evicted).unwrap();
        cache.reserve(1, 10, &mut evicted).unwrap();
        cache.reserve(2, 20, &mut evicted).unwrap();
        assert!(cache.release(1) && !cache.release(1));
        assert_eq!(cache.reserved_bytes(), 20);
    }
}
