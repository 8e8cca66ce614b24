//! Sources behind an adapter registry: what a name stands for, resolver rules, what requests may name.

use crate::shelf::{File, Shelf, Wrong};
use crate::world::{CONFIG, Files, TENSORS, World};
use axum::http::Method;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weft_adapters::{AdapterError, AdapterRegistry, RegistryConfig};
use weft_sources::ResolverRule;
use weft_testkit::tiny_llama_spec;

struct Served {
    world: World,
    shelf: Shelf,
    files: Files,
}

impl Served {
    async fn start() -> Self {
        let (world, shelf, files) = (World::new(), Shelf::start().await, Files::new(1));
        files.put(&shelf, "/a/sql");
        Self { world, shelf, files }
    }

    fn rule(&mut self, rule: &str) {
        let rule = rule.replace("SERVER", &self.shelf.url(""));
        self.world.config.rules.push(ResolverRule::parse(&rule).unwrap());
    }

    fn registry(&self) -> AdapterRegistry {
        self.registry_with(|_| {})
    }

    fn registry_with(&self, change: impl FnOnce(&mut RegistryConfig)) -> AdapterRegistry {
        let remote = Arc::new(self.world.sources());
        let mut config = RegistryConfig { remote, ..RegistryConfig::new(tiny_llama_spec()) };
        change(&mut config);
        AdapterRegistry::new(config).unwrap()
    }

    fn num_asked(&self) -> usize {
        self.shelf.asked().len()
    }
}

#[tokio::test]
async fn an_adapter_is_loaded_by_its_uri_and_shown_with_it() {
    let served = Served::start().await;
    let registry = served.registry();
    let uri = served.shelf.url("/a/sql/");
    let info = registry.load("sql", Path::new(&uri), false).await.unwrap();
    assert_eq!(info.path, Path::new(&uri));
    assert_eq!(registry.resolve("sql").await.unwrap().weights().max_rank(), 4);
    // Before there is a runtime, too.
    let add = move || registry.add_static("sql2", Path::new(&uri)).unwrap();
    let again = tokio::task::spawn_blocking(add).await.unwrap();
    assert_eq!(again.content_hash, info.content_hash);
}

#[tokio::test]
async fn what_was_evicted_is_read_from_the_cache_and_only_a_load_replaces_it() {
    let served = Served::start().await;
    Files::new(3).put(&served.shelf, "/b/other");
    // Room for one.
    let room = usize::try_from(served.files.num_bytes()).unwrap() * 3 / 2;
    let registry = served.registry_with(|config| config.host_memory_bytes = Some(room));
    let uri = served.shelf.url("/a/sql/");
    let old = registry.load("sql", Path::new(&uri), false).await.unwrap().content_hash;
    Files::new(2).put(&served.shelf, "/a/sql");
    let other = served.shelf.url("/b/other/");
    registry.load("other", Path::new(&other), false).await.unwrap();
    let num_asked = served.num_asked();
    drop(registry.resolve("sql").await.unwrap());
    assert_eq!(registry.get("sql").unwrap().content_hash, old);
    assert_eq!(served.num_asked(), num_asked, "asked the server");
    let new = registry.load("sql", Path::new(&uri), true).await.unwrap().content_hash;
    assert_ne!(new, old);
    registry.check_integrity().unwrap();
}

#[tokio::test]
async fn a_request_is_held_to_the_allow_list_and_told_which_flag_would_help() {
    let mut served = Served::start().await;
    let uri = served.shelf.url("/a/sql/");
    let local = served.world.path("adapters/sql");
    std::fs::create_dir_all(&local).unwrap();
    std::fs::write(local.join(CONFIG), &served.files.config).unwrap();
    std::fs::write(local.join(TENSORS), &served.files.tensors).unwrap();
    let local = local.to_str().unwrap().to_owned();

    let refused = async |served: &Served, given: &str| {
        let error = served.registry().load_requested("x", given, false).await.unwrap_err();
        assert!(matches!(error, AdapterError::NotAllowed { .. }), "{error}");
        assert!(error.to_string().contains("--adapter-source-allow"), "{error}");
    };
    refused(&served, &uri).await;
    assert_eq!(served.num_asked(), 0);
    served.registry().load_requested("x", &local, false).await.unwrap();

    let below = format!("{}/*", served.world.path("adapters").display());
    served.world.allow(&[&below, &served.shelf.url("/a/*")]);
    refused(&served, &served.shelf.url("/b/sql")).await;
    refused(&served, "hf://acme/sql").await;
    refused(&served, "/etc").await;
    let file_uri = format!("file://{local}");
    for given in [&local, &uri, &file_uri] {
        let info = served.registry().load_requested("x", given, false).await.unwrap();
        assert_eq!(info.path, Path::new(given.as_str()));
    }
    let upwards = format!("{local}/../sql");
    let said = served.registry().load_requested("x", &upwards, false).await.unwrap_err();
    assert!(said.to_string().contains("`..`"), "{said}");
    let missing = format!("{local}-not");
    let said = served.registry().load_requested("x", &missing, false).await.unwrap_err();
    assert!(matches!(said, AdapterError::PathNotFound { .. }), "{said}");
}

#[tokio::test]
async fn a_link_that_appears_later_is_not_followed_either() {
    let mut served = Served::start().await;
    let dir = served.world.path("adapters/sql");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(CONFIG), &served.files.config).unwrap();
    std::fs::write(dir.join(TENSORS), &served.files.tensors).unwrap();
    Files::new(5).put(&served.shelf, "/a/other");
    let below = format!("{}/*", served.world.path("adapters").display());
    served.world.allow(&[&below]);
    let room = usize::try_from(served.files.num_bytes()).unwrap() * 3 / 2;
    let registry = served.registry_with(|config| config.host_memory_bytes = Some(room));
    registry.load_requested("x", dir.to_str().unwrap(), false).await.unwrap();
    let outside = served.world.path("outside");
    std::fs::rename(dir.join(TENSORS), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join(TENSORS)).unwrap();
    let other = served.shelf.url("/a/other/");
    registry.load("other", Path::new(&other), false).await.unwrap();
    let said = registry.resolve("x").await.unwrap_err().to_string();
    assert!(said.contains("a link that leads out"), "{said}");
}

#[tokio::test]
async fn a_name_that_a_rule_covers_is_fetched_when_it_is_first_asked_for() {
    let mut served = Served::start().await;
    served.rule("acme/*=SERVER/none/{name}");
    served.rule("acme/*=SERVER/a/{name}");
    let registry = served.registry();
    let (first, second) = tokio::join!(registry.resolve("acme/sql"), registry.resolve("acme/sql"));
    assert_eq!(first.unwrap().weights().max_rank(), second.unwrap().weights().max_rank());
    assert_eq!(served.shelf.ranges(TENSORS).len(), 1);
    let info = registry.get("acme/sql").unwrap();
    assert_eq!(info.path, Path::new(&served.shelf.url("/a/sql/")));
    // Unloaded, it stays so.
    registry.unload("acme/sql").await.unwrap();
    let error = registry.resolve("acme/sql").await.unwrap_err();
    assert!(matches!(error, AdapterError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn names_that_no_rule_covers_are_never_asked_for() {
    let mut served = Served::start().await;
    served.rule("acme/*=SERVER/a/{name}");
    let registry = served.registry();
    for name in ["sql", "other/sql", "acme/sql/x", "acme/sql@v1", "acme/a:b"] {
        let error = registry.resolve(name).await.unwrap_err();
        assert!(matches!(error, AdapterError::NotFound { .. }), "{name}: {error}");
    }
    assert!(registry.resolve("acme/../sql").await.is_err());
    assert_eq!(served.num_asked(), 0);
}

#[tokio::test]
async fn what_a_source_does_not_have_is_remembered_and_found_once_it_may_be_asked_again() {
    let mut served = Served::start().await;
    served.rule("acme/*=SERVER/a/{name}");
    let registry = served.registry();
    let error = registry.resolve("acme/later").await.unwrap_err();
    assert!(matches!(error, AdapterError::NotInSource { .. }), "{error}");
    assert!(error.to_string().starts_with("the model `acme/later` does not exist"), "{error}");
    let num_asked = served.num_asked();
    Files::new(4).put(&served.shelf, "/a/later");
    let error = registry.resolve("acme/later").await.unwrap_err().to_string();
    assert!(error.contains("it is tried again in"), "{error}");
    assert_eq!(served.num_asked(), num_asked);
    // Whoever pins it insists.
    registry.pin("acme/later").await.unwrap();
    registry.resolve("acme/later").await.unwrap();
}

#[tokio::test]
async fn unloading_stops_a_fetch() {
    let mut served = Served::start().await;
    served.world.config.patience.silence = Duration::from_secs(60);
    let path = format!("/a/sql/{TENSORS}");
    served.shelf.wrong(Method::GET, &path, Wrong::Stall(100));
    let registry = served.registry();
    let uri = served.shelf.url("/a/sql/");
    let loading = registry.clone();
    let load = tokio::spawn(async move { loading.load("sql", Path::new(&uri), false).await });
    while served.shelf.ranges(TENSORS).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    registry.unload("sql").await.unwrap();
    let error = load.await.unwrap().unwrap_err();
    assert!(matches!(error, AdapterError::NotFound { .. }), "{error}");
    assert_eq!(registry.stats().num_loading, 0);
}

#[tokio::test]
async fn a_source_that_does_not_answer_fails_those_who_want_it_and_is_left_alone_for_a_while() {
    let mut served = Served::start().await;
    served.rule("acme/*=SERVER/a/{name}");
    let registry = served.registry();
    let Served { shelf, .. } = served;
    shelf.stop().await;
    let error = registry.resolve("acme/sql").await.unwrap_err();
    assert!(matches!(error, AdapterError::Fetch { passes: true, .. }), "{error}");
    let again = registry.resolve("acme/sql").await.unwrap_err().to_string();
    assert!(again.contains("it is tried again in"), "{again}");
}

#[tokio::test]
async fn a_composition_finds_its_parts_where_the_rules_say_and_is_never_asked_for_itself() {
    let mut served = Served::start().await;
    Files::new(7).put(&served.shelf, "/a/json");
    served.rule("acme/*=SERVER/a/{name}");
    served.world.allow(&["hf://acme/*"]);
    let registry = served.registry();
    let lease = registry.resolve("acme/sql+0.5*acme/json").await.unwrap();
    assert_eq!(lease.weights().max_rank(), 8);
    // A request may name it as a source: it is what it could have named as a model.
    let info = registry.load_requested("mix", "compose:acme/json+acme/sql", false).await.unwrap();
    assert_eq!(info.path, Path::new("compose:acme/json+acme/sql"));
    assert!(served.shelf.asked().iter().all(|one| !one.path.contains(['+', '*'])));

    let error = registry.resolve("acme/sql+acme/none").await.unwrap_err();
    let AdapterError::MissingPart { part, .. } = error else { panic!("{error}") };
    assert_eq!(part, "acme/none");
    registry.check_integrity().unwrap();
}

#[tokio::test]
async fn the_files_of_adapterhub_are_fetched_too() {
    let mut served = Served::start().await;
    let bytes = |bytes: &[u8]| File { bytes: bytes.to_vec(), ..File::default() };
    served.shelf.put(format!("/a/hub/{CONFIG}"), bytes(&served.files.config));
    served.shelf.put("/a/hub/pytorch_adapter.bin", bytes(b"pickle"));
    served.rule("acme/*=SERVER/a/{name}");
    let error = served.registry().resolve("acme/hub").await.unwrap_err().to_string();
    assert!(error.contains("use_safetensors=True"), "{error}");
    served.shelf.put("/a/hub/adapter.safetensors", bytes(&served.files.tensors));
    served.registry().resolve("acme/hub").await.unwrap();
    served.shelf.put("/a/hub/head_config.json", bytes(b"{}"));
    let error = served.registry().resolve("acme/hub").await.unwrap_err().to_string();
    assert!(error.contains("carries head_config.json"), "{error}");
}
