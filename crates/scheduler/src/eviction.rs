//! Which idle thing leaves the memory pool first: adapters and prefix blocks compete.
//!
//! In: facts about something that becomes idle. Out: its value; the lowest leaves first. A policy
//! sees no pool and no queue, so that the simulator can compare them over one trace.

/// What a policy knows of an adapter that nobody uses now.
#[derive(Clone, Copy, Debug)]
pub struct AdapterFacts {
    /// Chunks that it holds.
    pub num_chunks: usize,
    /// Sequences that have used it since it was first asked for.
    pub num_uses: u64,
    /// Seconds to load it again.
    pub load_s: f64,
}

/// What a policy knows of a full KV block that nobody uses now.
#[derive(Clone, Copy, Debug)]
pub struct PrefixFacts {
    /// Seconds to compute its tokens again.
    pub compute_s: f64,
    /// Share of looked-for prompt tokens that were found in the cache so far.
    pub hit_rate: f64,
}

/// Orders idle things by the value of keeping them.
pub trait EvictionPolicy: Send {
    /// Of an adapter, at the moment when it becomes idle. `now` only grows.
    fn adapter_value(&mut self, facts: &AdapterFacts, now: u64) -> f64;

    /// Of a prefix block, at the moment when it becomes idle. Values never fall from call to call
    /// while the facts stay equal: blocks leave oldest first.
    fn prefix_value(&mut self, facts: &PrefixFacts, now: u64) -> f64;

    /// Something of this value was evicted.
    fn evicted(&mut self, value: f64);
}

/// The policies that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionKind {
    /// GreedyDual-Size-Frequency (Cherkasova 1998): frequency × cost / size, plus an age that
    /// grows with each eviction.
    #[default]
    Gdsf,
    /// Least recently used.
    Lru,
    /// Chameleon's (2024) weighted score of frequency, recency and size.
    Chameleon,
}

impl EvictionKind {
    /// A policy of this kind that has seen nothing yet.
    #[must_use]
    pub fn policy(self) -> Box<dyn EvictionPolicy> {
        match self {
            Self::Gdsf => Box::new(Gdsf::default()),
            Self::Lru => Box::new(Lru),
            Self::Chameleon => Box::new(Chameleon::default()),
        }
    }
}

impl std::str::FromStr for EvictionKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "gdsf" => Ok(Self::Gdsf),
            "lru" => Ok(Self::Lru),
            "chameleon" => Ok(Self::Chameleon),
            _ => Err(format!("there is no eviction policy {name:?}: use gdsf, lru or chameleon")),
        }
    }
}

#[derive(Default)]
struct Gdsf {
    /// The value of the last thing evicted: what comes later is worth that much more.
    age: f64,
}

impl EvictionPolicy for Gdsf {
    fn adapter_value(&mut self, facts: &AdapterFacts, _now: u64) -> f64 {
        self.age + facts.num_uses as f64 * facts.load_s / facts.num_chunks.max(1) as f64
    }

    fn prefix_value(&mut self, facts: &PrefixFacts, _now: u64) -> f64 {
        self.age + facts.hit_rate * facts.compute_s
    }

    fn evicted(&mut self, value: f64) {
        self.age = self.age.max(value);
    }
}

struct Lru;

impl EvictionPolicy for Lru {
    fn adapter_value(&mut self, _facts: &AdapterFacts, now: u64) -> f64 {
        now as f64
    }

    fn prefix_value(&mut self, _facts: &PrefixFacts, now: u64) -> f64 {
        now as f64
    }

    fn evicted(&mut self, _value: f64) {}
}

/// `0.45 · frequency + 0.10 · recency + 0.45 · size`, each as a share of the largest seen.
#[derive(Default)]
struct Chameleon {
    max_uses: u64,
    max_chunks: usize,
}

impl EvictionPolicy for Chameleon {
    fn adapter_value(&mut self, facts: &AdapterFacts, now: u64) -> f64 {
        self.max_uses = self.max_uses.max(facts.num_uses).max(1);
        self.max_chunks = self.max_chunks.max(facts.num_chunks).max(1);
        let frequency = facts.num_uses as f64 / self.max_uses as f64;
        let size = facts.num_chunks as f64 / self.max_chunks as f64;
        0.45 * frequency + 0.10 * recency(now) + 0.45 * size
    }

    fn prefix_value(&mut self, facts: &PrefixFacts, now: u64) -> f64 {
        0.45 * facts.hit_rate + 0.10 * recency(now)
    }

    fn evicted(&mut self, _value: f64) {}
}

/// Grows with time and stays below 1, so that scores of different moments compare.
fn recency(now: u64) -> f64 {
    let now = now as f64;
    now / (now + 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(num_chunks: usize, num_uses: u64) -> AdapterFacts {
        AdapterFacts { num_chunks, num_uses, load_s: 1e-4 + 5e-5 * num_chunks as f64 }
    }

    #[test]
    fn gdsf_keeps_what_is_used_often_until_it_ages() {
        let mut policy = Gdsf::default();
        let often = policy.adapter_value(&facts(8, 10), 1);
        let once = policy.adapter_value(&facts(8, 1), 2);
        assert!(once < often);
        for _ in 0..20 {
            let value = policy.adapter_value(&facts(8, 1), 3);
            policy.evicted(value);
        }
        assert!(policy.adapter_value(&facts(8, 1), 4) > often);
    }

    #[test]
    fn lru_knows_only_time() {
        let mut policy = Lru;
        assert!(policy.adapter_value(&facts(8, 100), 1) < policy.adapter_value(&facts(8, 1), 2));
    }

    #[test]
    fn chameleon_prefers_frequent_and_large_adapters() {
        let mut policy = Chameleon::default();
        let large_and_often = policy.adapter_value(&facts(16, 10), 1);
        assert!(policy.adapter_value(&facts(16, 1), 2) < large_and_often);
        assert!(policy.adapter_value(&facts(2, 10), 2) < large_and_often);
    }

    #[test]
    fn names_are_parsed() {
        for (name, kind) in [
            ("gdsf", EvictionKind::Gdsf),
            ("lru", EvictionKind::Lru),
            ("chameleon", EvictionKind::Chameleon),
        ] {
            assert_eq!(name.parse(), Ok(kind));
        }
        assert!("fifo".parse::<EvictionKind>().is_err());
    }
}
