//! Random histories of a registry, with its books checked after every step and every lease compared
//! with what was written.

use crate::storages::MemoryStorage;
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use weft_adapters::{
    AdapterError, AdapterLease, AdapterRegistry, RegistryConfig, lower_peft_bytes,
};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::safetensors_file::safetensors_bytes;
use weft_types::{BaseModelSpec, ContentHash, Module, PackedAdapter};

/// A row and a half: what is packed takes more than its files.
const CHUNK_BYTES: usize = 100;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn base() -> BaseModelSpec {
    BaseModelSpec {
        num_layers: 1,
        hidden_size: 16,
        intermediate_size: 16,
        num_heads: 2,
        num_kv_heads: 2,
        head_dim: 8,
        vocab_size: 32,
        max_context: 64,
        tied_embeddings: true,
    }
}

/// One content that a directory may have.
struct Version {
    files: [Arc<[u8]>; 2],
    packed: PackedAdapter,
}

/// Versions of several sizes.
static VERSIONS: LazyLock<Vec<Version>> = LazyLock::new(|| {
    let version = |rank: usize| {
        let modules = vec![Module::Q, Module::V];
        let adapter = RandomAdapter { modules, ..RandomAdapter::of_rank(rank, rank as u64) };
        let config = format!(
            r#"{{"peft_type": "LORA", "r": {rank}, "target_modules": ["q_proj", "v_proj"]}}"#
        );
        let config = config.into_bytes();
        let tensors = safetensors_bytes(&adapter.tensors(&base()));
        let limits = weft_adapters::LoadLimits::default();
        let lowered = lower_peft_bytes(&config, &tensors, &base(), &limits).unwrap();
        let packed = PackedAdapter::pack(&lowered, CHUNK_BYTES).unwrap();
        Version { files: [config.into(), tensors.into()], packed }
    };
    [1, 2, 4, 8, 16].map(version).into()
});

#[derive(Clone, Debug)]
enum Step {
    /// Puts a version into a directory.
    Write {
        dir: usize,
        version: usize,
    },
    /// The same, but not before somebody reads.
    WriteAtRead {
        dir: usize,
        version: usize,
    },
    Damage {
        dir: usize,
    },
    Remove {
        dir: usize,
    },
    /// The next operations on files fail.
    Faults(usize),
    Load {
        name: usize,
        dir: usize,
        in_place: bool,
    },
    Resolve {
        name: usize,
    },
    /// Many at once; some go away.
    ResolveAll {
        drop: usize,
    },
    CloneLease(usize),
    DropLease(usize),
    Pin(usize),
    Unpin(usize),
    Unload(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (name, dir, version) = (0..4_usize, 0..4_usize, 0..5_usize);
    let place = (dir.clone(), version);
    prop_oneof![
        6 => place.clone().prop_map(|(dir, version)| Step::Write { dir, version }),
        2 => place.prop_map(|(dir, version)| Step::WriteAtRead { dir, version }),
        2 => dir.clone().prop_map(|dir| Step::Damage { dir }),
        2 => dir.clone().prop_map(|dir| Step::Remove { dir }),
        1 => (1..6_usize).prop_map(Step::Faults),
        10 => (name.clone(), dir, any::<bool>())
            .prop_map(|(name, dir, in_place)| Step::Load { name, dir, in_place }),
        12 => name.clone().prop_map(|name| Step::Resolve { name }),
        2 => (0..4_usize).prop_map(|drop| Step::ResolveAll { drop }),
        2 => (0..8_usize).prop_map(Step::CloneLease),
        10 => (0..8_usize).prop_map(Step::DropLease),
        2 => name.clone().prop_map(Step::Pin),
        4 => name.clone().prop_map(Step::Unpin),
        2 => name.prop_map(Step::Unload),
        4 => (1..500_u64).prop_map(Step::Wait),
    ]
}

struct History {
    registry: AdapterRegistry,
    storage: MemoryStorage,
    leases: Vec<AdapterLease>,
    by_hash: HashMap<ContentHash, &'static PackedAdapter>,
}

impl History {
    fn new(host_memory_bytes: Option<usize>) -> Self {
        let storage = MemoryStorage::default();
        let config = RegistryConfig {
            chunk_bytes: CHUNK_BYTES,
            host_memory_bytes,
            room_timeout: Duration::from_millis(50),
            max_concurrent_reads: 2,
            max_concurrent_lowerings: 1,
            storage: Arc::new(storage.clone()),
            ..RegistryConfig::new(base())
        };
        let packed = VERSIONS.iter().map(|version| &version.packed);
        let by_hash = packed.map(|packed| (packed.content_hash, packed)).collect();
        let registry = AdapterRegistry::new(config).unwrap();
        Self { registry, storage, leases: Vec::new(), by_hash }
    }

    fn dir(dir: usize) -> PathBuf {
        PathBuf::from(format!("dir-{dir}"))
    }

    /// What was leased is what somebody wrote, whole.
    fn check_lease(&self, lease: &AdapterLease) {
        assert_eq!(**lease.weights(), *self.by_hash[&lease.content_hash()]);
    }

    async fn take(&mut self, step: Step) {
        let registry = self.registry.clone();
        match step {
            Step::Write { dir, version } => {
                self.storage.put(&Self::dir(dir), VERSIONS[version].files.clone());
            }
            Step::WriteAtRead { dir, version } => {
                let files = VERSIONS[version].files.clone();
                self.storage.put_at_next_read(&Self::dir(dir), files);
            }
            Step::Damage { dir } => {
                let [config, tensors] = VERSIONS[0].files.clone();
                let cut = tensors[..tensors.len() - 1].into();
                self.storage.put(&Self::dir(dir), [config, cut]);
            }
            Step::Remove { dir } => self.storage.remove(&Self::dir(dir)),
            Step::Faults(num_faults) => self.storage.set_faults(num_faults),
            Step::Load { name, dir, in_place } => {
                let loaded = registry.load(NAMES[name], &Self::dir(dir), in_place).await;
                if let Ok(info) = loaded {
                    assert!(self.by_hash.contains_key(&info.content_hash.unwrap()));
                }
            }
            Step::Resolve { name } => {
                let was_known = registry.get(NAMES[name]).is_some();
                match registry.resolve(NAMES[name]).await {
                    Ok(lease) => {
                        self.check_lease(&lease);
                        self.leases.push(lease);
                    }
                    Err(error) => {
                        assert!(!matches!(error, AdapterError::Interrupted { .. }), "{error}");
                        let is_unknown = matches!(error, AdapterError::NotFound { .. });
                        assert_eq!(is_unknown, !was_known, "{error}");
                    }
                }
            }
            Step::ResolveAll { drop } => {
                let mut tasks: Vec<_> = (0..12)
                    .map(|index| {
                        let registry = registry.clone();
                        tokio::spawn(async move { registry.resolve(NAMES[index % 4]).await })
                    })
                    .collect();
                tokio::task::yield_now().await;
                tasks.drain(..drop * 3).for_each(|task| task.abort());
                for task in tasks {
                    if let Ok(lease) = task.await.unwrap() {
                        self.check_lease(&lease);
                    }
                }
            }
            Step::CloneLease(index) => {
                let clone = self.leases.get(index).cloned();
                self.leases.extend(clone);
            }
            Step::DropLease(index) if index < self.leases.len() => {
                let lease = self.leases.swap_remove(index);
                self.check_lease(&lease);
            }
            Step::DropLease(_) => {}
            Step::Pin(name) => drop(registry.pin(NAMES[name]).await),
            Step::Unpin(name) => drop(registry.unpin(NAMES[name])),
            Step::Unload(name) => {
                let was_known = registry.get(NAMES[name]).is_some();
                assert_eq!(registry.unload(NAMES[name]).await.is_ok(), was_known);
                assert!(registry.get(NAMES[name]).is_none());
            }
            Step::Wait(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
        }
    }

    /// Whatever came before: without leases and pins, a good adapter is served, alone if need be.
    async fn end(mut self) {
        self.leases.clear();
        for name in NAMES {
            drop(self.registry.unpin(name));
        }
        self.storage.set_faults(0);
        // Loads that nobody waits for end, too.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let stats = self.registry.stats();
        assert_eq!((stats.num_loading, stats.reserved_bytes), (0, 0), "{stats:?}");
        for version in [4, 0] {
            let dir = PathBuf::from(format!("good-{version}"));
            self.storage.put(&dir, VERSIONS[version].files.clone());
            self.registry.load("good", &dir, true).await.unwrap();
            self.check_lease(&self.registry.resolve("good").await.unwrap());
            self.registry.check_integrity().unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_books_agree_after_every_step_of_any_history(
        steps in proptest::collection::vec(step(), 1..40),
        percent in prop_oneof![Just(None), (100..250_usize).prop_map(Some)],
    ) {
        // In per cent of what the largest needs.
        let largest = &VERSIONS[4];
        let files: usize = largest.files.iter().map(|file| file.len()).sum();
        let needed = files.max(largest.packed.num_bytes);
        let budget = percent.map(|percent| needed * percent / 100);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut history = History::new(budget);
            for step in steps {
                let shown = format!("{step:?}");
                history.take(step).await;
                let integrity = history.registry.check_integrity();
                assert!(integrity.is_ok(), "after {shown}: {integrity:?}");
            }
            history.end().await;
        });
    }
}
