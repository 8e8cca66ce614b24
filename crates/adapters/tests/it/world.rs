//! A registry over a temporary directory, and the audit that ends every test.

use std::fs;
use std::path::PathBuf;
use weft_adapters::{AdapterInfo, AdapterLease, AdapterRegistry, AdapterTier, RegistryConfig};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;

/// A registry over an adapter directory, and room for adapters elsewhere.
pub(crate) struct World {
    pub(crate) registry: AdapterRegistry,
    pub(crate) root: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut RegistryConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("adapters")).unwrap();
        let mut config = RegistryConfig {
            base_names: vec!["base".into()],
            max_lora_rank: 64,
            adapter_dir: Some(root.path().join("adapters")),
            ..RegistryConfig::new(tiny_llama_spec())
        };
        change(&mut config);
        Self { registry: AdapterRegistry::new(config).unwrap(), root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes an adapter of that rank and seed to `name`, relative to the root.
    pub(crate) fn write(&self, name: &str, rank: usize, seed: u64) -> PathBuf {
        let path = self.path(name);
        RandomAdapter::of_rank(rank, seed).write(&tiny_llama_spec(), &path).unwrap();
        path
    }

    pub(crate) async fn rank(&self, name: &str) -> Option<usize> {
        Some(self.registry.resolve(name).await.ok()?.weights().max_rank())
    }

    pub(crate) fn listed(&self) -> Vec<(String, AdapterTier)> {
        self.registry.list().into_iter().map(|info| (info.name, info.tier)).collect()
    }

    pub(crate) fn info(&self, name: &str) -> AdapterInfo {
        self.registry.get(name).unwrap()
    }

    pub(crate) fn tier(&self, name: &str) -> AdapterTier {
        self.info(name).tier
    }

    pub(crate) fn resolve(&self, name: &'static str) -> tokio::task::JoinHandle<Resolved> {
        let registry = self.registry.clone();
        tokio::spawn(async move { registry.resolve(name).await })
    }

    /// The books agree, nothing is in flight, and a good adapter is served.
    pub(crate) async fn audit(&self) {
        self.registry.check_integrity().unwrap();
        let stats = self.registry.stats();
        assert_eq!((stats.num_loading, stats.reserved_bytes), (0, 0), "{stats:?}");
        self.write("adapters/audit", 1, 999);
        assert_eq!(self.rank("audit").await, Some(1));
        self.registry.check_integrity().unwrap();
    }
}

pub(crate) type Resolved = Result<AdapterLease, weft_adapters::AdapterError>;

/// Bytes that an adapter of the tiny base takes in host memory, at the most: its files while it
/// loads, which are a little more than what is packed.
pub(crate) fn loading_bytes(rank: usize) -> usize {
    let dir = tempfile::tempdir().unwrap();
    RandomAdapter::of_rank(rank, 0).write(&tiny_llama_spec(), dir.path()).unwrap();
    let files = fs::read_dir(dir.path()).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len() as usize).sum()
}
