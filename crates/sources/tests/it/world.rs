//! Sources over temporary caches, an adapter's files, and what tests ask of both.

use crate::shelf::{File, Shelf};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_adapters::Asker;
use weft_sources::{
    AllowList, FetchProgress, Location, Patience, SourceError, Sources, SourcesConfig,
};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const TENSORS: &str = "adapter_model.safetensors";

/// The files of an adapter.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) config: Vec<u8>,
    pub(crate) tensors: Vec<u8>,
}

impl Files {
    pub(crate) fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        RandomAdapter::of_rank(4, seed).write(&tiny_llama_spec(), dir.path()).unwrap();
        let read = |name| std::fs::read(dir.path().join(name)).unwrap();
        Self { config: read(CONFIG), tensors: read(TENSORS) }
    }

    pub(crate) fn each(&self) -> [(&'static str, &[u8]); 2] {
        [(CONFIG, &self.config), (TENSORS, &self.tensors)]
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        (self.config.len() + self.tensors.len()) as u64
    }

    pub(crate) fn assert_in(&self, directory: &Path) {
        for (name, bytes) in self.each() {
            assert_eq!(std::fs::read(directory.join(name)).unwrap(), bytes, "{name}");
        }
    }

    /// Puts them where a plain web server has them, with entity tags.
    pub(crate) fn put(&self, shelf: &Shelf, directory: &str) {
        for (name, bytes) in self.each() {
            let etag = format!("\"{}\"", &sha256(bytes)[..16]);
            let file =
                File { bytes: bytes.to_vec(), headers: vec![("etag", etag)], redirect: None };
            shelf.put(format!("{directory}/{name}"), file);
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

pub(crate) fn md5(bytes: &[u8]) -> String {
    hex(&md5::Md5::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was told of fetches.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Vec<(String, u64)>>);

impl FetchProgress for Heard {
    fn begin(&self, what: &str, num_bytes: u64) {
        self.0.lock().unwrap().push((what.to_owned(), num_bytes));
    }
    fn fetched(&self, done: u64) {
        let heard = self.0.lock().unwrap();
        assert!(done <= heard.last().unwrap().1);
    }
    fn end(&self) {}
}

/// Caches, and settings for the next sources.
pub(crate) struct World {
    root: tempfile::TempDir,
    pub(crate) config: SourcesConfig,
    pub(crate) heard: Arc<Heard>,
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let heard = Arc::new(Heard::default());
        let mut config = SourcesConfig::new(root.path().join("cache"), root.path().join("hub"));
        config.patience = Patience {
            connect: Duration::from_secs(5),
            silence: Duration::from_millis(400),
            max_retries: 2,
            first_delay: Duration::from_millis(1),
        };
        config.progress = heard.clone();
        Self { root, config, heard }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn allow(&mut self, patterns: &[&str]) {
        self.config.allow = AllowList::parse(patterns.iter().copied()).unwrap();
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources::new(self.config.clone()).unwrap()
    }

    /// Fetches as the operator, with nothing remembered but the caches.
    pub(crate) async fn fetch(&self, uri: &str) -> Result<PathBuf, SourceError> {
        self.fetch_for(uri, Asker::Operator).await
    }

    pub(crate) async fn fetch_for(&self, uri: &str, asker: Asker) -> Result<PathBuf, SourceError> {
        self.sources().fetch_to_cache(&Location::parse(uri).unwrap(), asker).await
    }

    pub(crate) async fn refused(&self, uri: &str) -> String {
        self.fetch(uri).await.unwrap_err().to_string()
    }

    pub(crate) fn told(&self) -> Vec<(String, u64)> {
        self.heard.0.lock().unwrap().clone()
    }
}
