//! The life of names and generations: found, loaded, shared, replaced, unloaded, freed.

use crate::world::World;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weft_adapters::{AdapterError, AdapterRegistry, AdapterTier, RegistryConfig, RetryHint};
use weft_testkit::tiny_llama_spec;

#[tokio::test]
async fn a_directory_adapter_is_known_at_once_and_loaded_when_first_asked_for() {
    let world = World::new();
    world.write("adapters/sql", 4, 1);
    fs::create_dir(world.path("adapters/no-adapter")).unwrap();
    assert_eq!(world.listed(), [("sql".into(), AdapterTier::Source)]);
    assert_eq!(world.registry.get("sql").unwrap().rank, None);
    let lease = world.registry.resolve("sql").await.unwrap();
    assert_eq!((lease.name(), lease.weights().max_rank()), ("sql", 4));
    assert_eq!(world.listed(), [("sql".into(), AdapterTier::Host)]);
    let info = world.registry.get("sql").unwrap();
    assert_eq!(info.path, world.path("adapters/sql"));
    assert_eq!((info.rank, info.num_leases), (Some(4), 1));
    assert_eq!(info.num_bytes, lease.weights().num_bytes);
    assert_eq!(info.content_hash, Some(lease.content_hash()));
    // One that comes later is found as well.
    assert_eq!(world.rank("late").await, None);
    world.write("adapters/late", 5, 1);
    assert_eq!(world.rank("late").await, Some(5));
    world.audit().await;
}

#[tokio::test]
async fn names_that_are_no_adapters_are_not_found() {
    let world = World::new();
    world.write("outside", 4, 1);
    world.write("adapters/team/sql", 4, 1);
    world.write("adapters/base", 4, 1);
    fs::create_dir(world.path("adapters/empty")).unwrap();
    fs::write(world.path("adapters/file"), "").unwrap();
    let absolute = world.path("outside").display().to_string();
    let names =
        ["x", "", ".", "..", "../outside", "empty", "file", "team/sql", "a\0b", "base", &absolute];
    for name in names {
        let error = world.registry.resolve(name).await.unwrap_err();
        assert_eq!(error, AdapterError::NotFound { name: name.into() });
        assert_eq!(error.to_string(), format!("the model `{name}` does not exist"));
        assert!(world.registry.get(name).is_none(), "{name}");
    }
    assert_eq!(world.listed(), []);
    world.audit().await;
}

#[cfg(unix)]
#[tokio::test]
async fn links_are_followed_inside_the_directory_and_refused_if_they_leave_it() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let inside = world.write("adapters/inside", 4, 1);
    let outside = world.write("outside", 4, 2);
    symlink(&inside, world.path("adapters/alias")).unwrap();
    symlink(&outside, world.path("adapters/escape")).unwrap();
    let half = world.write("adapters/half", 4, 3);
    fs::remove_file(half.join("adapter_model.safetensors")).unwrap();
    let target = outside.join("adapter_model.safetensors");
    symlink(target, half.join("adapter_model.safetensors")).unwrap();
    assert_eq!(world.rank("alias").await, Some(4));
    for name in ["escape", "half"] {
        let error = world.registry.resolve(name).await.unwrap_err().to_string();
        assert!(error.contains("leads out of --adapter-dir"), "{error}");
    }
    let names: Vec<_> = world.listed().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["alias", "inside"]);
    // By an explicit path, the operator decides.
    world.registry.load("escape", &outside, false).await.unwrap();
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_share_one_load() {
    let world = World::new();
    world.write("adapters/sql", 16, 1);
    let asks: Vec<_> = (0..64)
        .map(|_| {
            let registry = world.registry.clone();
            tokio::spawn(async move { registry.resolve("sql").await })
        })
        .collect();
    let mut leases = Vec::new();
    for ask in asks {
        leases.push(ask.await.unwrap().unwrap());
    }
    // A second load would have made a second generation, with leases of its own.
    assert_eq!(world.registry.get("sql").unwrap().num_leases, 64);
    let extra = leases[0].clone();
    assert_eq!(world.registry.get("sql").unwrap().num_leases, 65);
    drop((leases, extra));
    assert_eq!(world.registry.get("sql").unwrap().num_leases, 0);
    world.audit().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_told_to_all_who_wait_and_remembered_for_a_moment() {
    let world = World::new();
    let path = world.write("adapters/sql", 65, 1);
    let (one, two) = tokio::join!(world.registry.resolve("sql"), world.registry.resolve("sql"));
    assert_eq!(one.unwrap_err(), two.as_ref().unwrap_err().clone());
    let words = "adapter \"sql\" has rank 65, but this server was started with --max-lora-rank 64";
    assert_eq!(two.unwrap_err().to_string(), words);
    fs::remove_dir_all(path).unwrap();
    world.write("adapters/sql", 8, 1);
    let remembered = world.registry.resolve("sql").await.unwrap_err().to_string();
    assert_eq!(remembered, format!("{words}; it is tried again in 0.1 s"));
    tokio::time::sleep(Duration::from_millis(110)).await;
    assert_eq!(world.rank("sql").await, Some(8));
    world.audit().await;
}

#[tokio::test]
async fn a_load_goes_on_when_the_one_who_asked_goes_away() {
    let world = World::new();
    let path = world.write("a", 4, 1);
    {
        let mut load = Box::pin(world.registry.load("a", &path, false));
        assert!(poll_once(&mut load).await.is_none());
    }
    // Not in the adapter directory: only the load that was left alone can have brought it.
    assert_eq!(world.rank("a").await, Some(4));
    world.audit().await;
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_replaced_adapter_stays_as_it_was_for_its_leases() {
    let world = World::new();
    let (old, new) = (world.write("old", 4, 1), world.write("new", 6, 2));
    world.registry.load("a", &old, false).await.unwrap();
    let running = world.registry.resolve("a").await.unwrap();
    let twice = world.registry.load("a", &new, false).await.unwrap_err();
    assert_eq!(twice, AdapterError::AlreadyLoaded { name: "a".into() });
    assert!(twice.to_string().contains("already been loaded"));
    let info = world.registry.load("a", &new, true).await.unwrap();
    assert_eq!((info.rank, info.num_leases, info.path), (Some(6), 0, new));
    let fresh = world.registry.resolve("a").await.unwrap();
    assert_eq!((running.weights().max_rank(), fresh.weights().max_rank()), (4, 6));
    assert_ne!(running.content_hash(), fresh.content_hash());
    let replaced = Arc::downgrade(running.weights());
    drop(running);
    assert!(replaced.upgrade().is_none());
    world.audit().await;
}

#[tokio::test]
async fn a_replacement_that_fails_leaves_the_old_one_serving() {
    let world = World::new();
    let (good, bad) = (world.write("good", 4, 1), world.write("bad", 65, 2));
    world.registry.load("a", &good, false).await.unwrap();
    assert!(world.registry.load("a", &bad, true).await.is_err());
    assert_eq!(world.rank("a").await, Some(4));
    world.audit().await;
}

#[tokio::test]
async fn unloading_revokes_at_once_and_frees_with_the_last_lease() {
    let world = World::new();
    let path = world.write("a", 4, 1);
    world.registry.load("a", &path, false).await.unwrap();
    let lease = world.registry.resolve("a").await.unwrap();
    let (clone, weights) = (lease.clone(), Arc::downgrade(lease.weights()));
    world.registry.unload("a").await.unwrap();
    assert_eq!(world.rank("a").await, None);
    assert_eq!(world.listed(), []);
    drop(lease);
    assert!(weights.upgrade().is_some());
    drop(clone);
    assert!(weights.upgrade().is_none());
    let again = world.registry.unload("a").await.unwrap_err();
    assert_eq!(again, AdapterError::NotFound { name: "a".into() });
    world.registry.load("a", &path, false).await.unwrap();
    assert_eq!(world.rank("a").await, Some(4));
    world.audit().await;
}

#[tokio::test]
async fn an_unloaded_directory_adapter_stays_revoked_until_it_is_loaded() {
    let world = World::new();
    let path = world.write("adapters/loaded", 4, 1);
    world.write("adapters/only-known", 4, 1);
    world.rank("loaded").await.unwrap();
    for name in ["loaded", "only-known"] {
        world.registry.unload(name).await.unwrap();
        assert_eq!(world.rank(name).await, None);
        assert!(world.registry.get(name).is_none());
        assert!(world.registry.unload(name).await.is_err());
    }
    assert_eq!(world.listed(), []);
    // A load that fails does not bring it back.
    assert!(world.registry.load("loaded", &world.path("nowhere"), false).await.is_err());
    assert_eq!(world.rank("loaded").await, None);
    world.registry.load("loaded", &path, false).await.unwrap();
    assert_eq!(world.rank("loaded").await, Some(4));
    world.audit().await;
}

#[tokio::test]
async fn equal_files_are_held_once_under_two_names() {
    let world = World::new();
    let (a, b) = (world.write("a", 4, 1), world.write("b", 4, 1));
    world.registry.add_static("a", &a).unwrap();
    world.registry.load("b", &b, false).await.unwrap();
    let (one, two) = tokio::join!(world.registry.resolve("a"), world.registry.resolve("b"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(Arc::ptr_eq(one.weights(), two.weights()));
    assert_eq!((one.name(), two.name()), ("a", "b"));
    world.registry.unload("a").await.unwrap();
    assert_eq!(world.rank("b").await, Some(4));
    world.audit().await;
}

#[tokio::test]
async fn a_file_that_changes_does_not_change_what_is_loaded() {
    let world = World::new();
    world.write("adapters/sql", 4, 1);
    let before = world.registry.resolve("sql").await.unwrap();
    world.write("adapters/sql", 6, 2);
    let after = world.registry.resolve("sql").await.unwrap();
    assert_eq!(before.content_hash(), after.content_hash());
    world.audit().await;
}

#[tokio::test]
async fn names_and_paths_are_checked_before_anything_is_read() {
    let world = World::new();
    let path = world.write("a", 4, 1);
    let load = |name: &str, path: &Path| {
        let (registry, name, path) = (world.registry.clone(), name.to_owned(), path.to_owned());
        async move { registry.load(&name, &path, true).await.unwrap_err() }
    };
    assert_eq!(load("base", &path).await, AdapterError::NameIsBase { name: "base".into() });
    for name in ["", "a,b", "../a", "a b"] {
        assert!(matches!(load(name, &path).await, AdapterError::InvalidName { .. }), "{name:?}");
    }
    let nowhere = world.path("nowhere");
    let error = load("a", &nowhere).await;
    let (path_asked, retry) = (nowhere.clone(), RetryHint::default());
    assert_eq!(error, AdapterError::PathNotFound { name: "a".into(), path: path_asked, retry });
    assert!(error.to_string().contains("no directory at"));
    let file = path.join("adapter_config.json");
    assert!(matches!(load("a", &file).await, AdapterError::PathNotFound { .. }));
    assert!(matches!(
        world.registry.add_static("a", &nowhere),
        Err(AdapterError::PathNotFound { .. })
    ));
    world.registry.add_static("a", &path).unwrap();
    assert!(matches!(
        world.registry.add_static("a", &path),
        Err(AdapterError::AlreadyLoaded { .. })
    ));
    world.audit().await;
}

#[test]
fn a_missing_adapter_directory_is_said_at_the_start() {
    let root = tempfile::tempdir().unwrap();
    let adapter_dir = Some(root.path().join("nowhere"));
    let config = RegistryConfig { adapter_dir, ..RegistryConfig::new(tiny_llama_spec()) };
    let error = AdapterRegistry::new(config).unwrap_err().to_string();
    assert!(error.starts_with("--adapter-dir") && error.contains("cannot be read"), "{error}");
}
