//! Sources that are slow, broken, gone or changing: whoever did not ask for them notices nothing.

use crate::storages::{Gate, Hooked, Op, is_tensors_of};
use crate::world::World;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};
use weft_adapters::{AdapterError, AdapterTier};

const TENSORS: &str = "adapter_model.safetensors";

async fn back_off(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A world whose storage calls `hook` first.
fn hooked(hook: impl Fn(Op, &Path) -> io::Result<()> + Send + Sync + 'static) -> World {
    World::with(|config| config.storage = Hooked::storage(hook))
}

/// A world where reading the tensors of `slow` waits at a gate.
fn gated() -> (World, Gate) {
    let gate = Gate::default();
    let door = gate.clone();
    let hook = move |op, path: &Path| {
        if op == Op::Read && is_tensors_of(path, "slow") {
            door.pass();
        }
        Ok(())
    };
    let world = World::with(|config| {
        config.storage = Hooked::storage(hook);
        // Who reads slowly must not have the only turn to compute.
        config.max_concurrent_lowerings = 1;
    });
    (world, gate)
}

#[tokio::test(start_paused = true)]
async fn a_source_that_vanishes_is_said_then_remembered_and_found_when_it_comes_back() {
    let world = World::with(|config| config.host_memory_bytes = Some(100_000));
    let (a, other) = (world.write("a", 8, 1), world.write("other", 8, 2));
    world.registry.load("a", &a, false).await.unwrap();
    world.registry.load("other", &other, false).await.unwrap();
    let hash = world.info("a").content_hash;
    assert_eq!(world.tier("a"), AdapterTier::Source);
    let away = world.path("away");
    fs::rename(&a, &away).unwrap();
    let sentence = format!("adapter \"a\" has no directory at {}", a.display());
    for delay in [100, 200, 400] {
        let error = world.registry.resolve("a").await.unwrap_err();
        assert!(matches!(error, AdapterError::PathNotFound { .. }));
        assert_eq!(error.to_string(), sentence);
        let remembered = world.registry.resolve("a").await.unwrap_err();
        assert!(matches!(remembered, AdapterError::PathNotFound { .. }));
        let seconds = f64::from(delay) / 1000.0;
        let words = format!("{sentence}; it is tried again in {seconds:.1} s");
        assert_eq!(remembered.to_string(), words);
        back_off(delay as u64 + 5).await;
    }
    // Still known, as it was.
    assert_eq!((world.tier("a"), world.info("a").content_hash), (AdapterTier::Source, hash));
    assert!(world.registry.resolve("a").await.is_err());
    fs::rename(&away, &a).unwrap();
    assert!(world.registry.resolve("a").await.unwrap_err().to_string().contains("tried again"));
    // Who insists is not kept waiting, and then nobody is.
    assert!(world.registry.pin("a").await.unwrap().pinned);
    assert_eq!(world.registry.resolve("a").await.unwrap().weights().max_rank(), 8);
    world.audit().await;
}

#[tokio::test(start_paused = true)]
async fn an_explicit_load_always_tries_and_ends_the_back_off() {
    let world = World::new();
    let path = world.write("adapters/a", 8, 1);
    fs::remove_file(path.join(TENSORS)).unwrap();
    assert!(world.registry.resolve("a").await.is_err());
    assert!(world.registry.resolve("a").await.unwrap_err().to_string().contains("tried again"));
    let tried = world.registry.load("a", &path, false).await.unwrap_err().to_string();
    assert!(tried.contains("has no adapter_model") && !tried.contains("tried again"), "{tried}");
    world.write("adapters/a", 8, 1);
    world.registry.load("a", &path, false).await.unwrap();
    assert_eq!(world.rank("a").await, Some(8));
    world.audit().await;
}

#[tokio::test]
async fn an_adapter_that_leaves_the_directory_is_forgotten_once_it_is_asked_for() {
    let world = World::with(|config| config.host_memory_bytes = Some(100_000));
    let path = world.write("adapters/a", 8, 1);
    world.write("adapters/b", 8, 2);
    world.rank("a").await.unwrap();
    world.rank("b").await.unwrap();
    fs::remove_dir_all(path).unwrap();
    assert_eq!(world.info("a").hits, 1);
    let gone = world.registry.resolve("a").await.unwrap_err();
    assert_eq!(gone, AdapterError::NotFound { name: "a".into() });
    assert!(world.registry.get("a").is_none());
    world.write("adapters/a", 8, 1);
    assert_eq!(world.rank("a").await, Some(8));
    world.audit().await;
}

#[tokio::test]
async fn truncated_and_unreadable_files_fail_only_those_who_ask() {
    let world = World::new();
    world.write("adapters/good", 8, 1);
    let cut = world.write("adapters/cut", 8, 2);
    let file = fs::File::options().write(true).open(cut.join(TENSORS)).unwrap();
    file.set_len(5000).unwrap();
    let directory = world.write("adapters/directory", 8, 3);
    fs::remove_file(directory.join(TENSORS)).unwrap();
    fs::create_dir(directory.join(TENSORS)).unwrap();
    let (one, two, good) = tokio::join!(
        world.registry.resolve("cut"),
        world.registry.resolve("directory"),
        world.registry.resolve("good"),
    );
    let (one, two) = (one.unwrap_err().to_string(), two.unwrap_err().to_string());
    assert!(one.contains("has a damaged adapter_model.safetensors"), "{one}");
    assert!(two.contains("that is no regular file"), "{two}");
    drop(good.unwrap());
    world.audit().await;
}

#[tokio::test]
async fn what_the_system_refuses_is_said_in_its_words() {
    let world = hooked(|op, path| match (op, is_tensors_of(path, "locked")) {
        (Op::Open, true) => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Ok(()),
    });
    let path = world.write("adapters/locked", 8, 1);
    let error = world.registry.resolve("locked").await.unwrap_err();
    let expected =
        format!("adapter \"locked\" cannot be read from {}", path.join(TENSORS).display());
    assert_eq!(error.to_string(), format!("{expected}: permission denied"));
    world.audit().await;
}

#[tokio::test]
async fn faults_that_pass_are_tried_again_inside_the_load_but_not_for_ever() {
    for (num_faults, succeeds) in [(3, true), (4, false)] {
        for op in [Op::Stat, Op::Open, Op::Read] {
            let left = Arc::new(AtomicUsize::new(num_faults));
            // Of one look at the files: `measure` has patience of its own.
            let started = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&left);
            let world = hooked(move |now, path| {
                if now != op || !is_tensors_of(path, "a") {
                    return Ok(());
                }
                if op == Op::Stat && started.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Ok(());
                }
                let take = |left: usize| left.checked_sub(1);
                match count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
                    Ok(_) => Err(io::ErrorKind::StaleNetworkFileHandle.into()),
                    Err(_) => Ok(()),
                }
            });
            world.write("adapters/a", 8, 1);
            let resolved = world.registry.resolve("a").await;
            assert_eq!(resolved.is_ok(), succeeds, "{op:?} {num_faults}");
            assert!(resolved.is_ok() || matches!(resolved, Err(AdapterError::Io { .. })));
            drop(resolved);
            world.audit().await;
        }
    }
}

#[tokio::test]
async fn a_slow_source_holds_up_nobody_else() {
    let (world, gate) = gated();
    world.write("adapters/slow", 8, 1);
    let slow = world.resolve("slow");
    gate.arrived().await;
    for index in 0..40 {
        let name = format!("quick-{index}");
        let path = world.write(&name, 2, index);
        let began = Instant::now();
        world.registry.load(&name, &path, false).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    assert!(!slow.is_finished());
    world.registry.check_integrity().unwrap();
    gate.open();
    assert!(slow.await.unwrap().is_ok());
    world.audit().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_pipe_is_not_opened() {
    let world = World::new();
    let path = world.write("adapters/pipe", 8, 1);
    fs::remove_file(path.join(TENSORS)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(path.join(TENSORS)).status().unwrap();
    assert!(made.success());
    let error = world.registry.resolve("pipe").await.unwrap_err().to_string();
    assert!(error.contains("that is no regular file"), "{error}");
    world.audit().await;
}

#[tokio::test]
async fn a_resolve_that_is_dropped_leaves_its_load_running() {
    let (world, gate) = gated();
    world.write("adapters/slow", 8, 1);
    let dropped = world.resolve("slow");
    gate.arrived().await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    let other = world.resolve("slow");
    gate.open();
    assert!(other.await.unwrap().is_ok());
    assert_eq!(world.registry.stats().loads_ok, 1);
    assert_eq!(world.info("slow").num_leases, 0);
    world.audit().await;
}

#[tokio::test]
async fn a_name_that_is_unloaded_while_it_loads_stays_unloaded() {
    let (world, gate) = gated();
    let path = world.write("slow", 8, 1);
    let registry = world.registry.clone();
    let load = tokio::spawn(async move { registry.load("slow", &path, false).await });
    gate.arrived().await;
    let waiting = world.resolve("slow");
    tokio::task::yield_now().await;
    world.registry.unload("slow").await.unwrap();
    world.registry.check_integrity().unwrap();
    gate.open();
    let not_found = AdapterError::NotFound { name: "slow".into() };
    assert_eq!(load.await.unwrap().unwrap_err(), not_found);
    assert_eq!(waiting.await.unwrap().unwrap_err(), not_found);
    assert!(world.registry.get("slow").is_none());
    world.audit().await;
}

#[tokio::test]
async fn a_load_of_another_path_that_fails_does_not_fail_those_who_want_the_name() {
    let (world, gate) = gated();
    world.write("adapters/a", 8, 1);
    let bad = world.write("slow", 8, 2);
    fs::write(bad.join(TENSORS), "nothing").unwrap();
    let registry = world.registry.clone();
    let load = tokio::spawn(async move { registry.load("a", &bad, true).await });
    gate.arrived().await;
    let waiting = world.resolve("a");
    tokio::task::yield_now().await;
    gate.open();
    assert!(load.await.unwrap().is_err());
    assert_eq!(waiting.await.unwrap().unwrap().weights().max_rank(), 8);
    world.audit().await;
}

#[test]
fn a_load_whose_runtime_ended_makes_room_for_another() {
    let (world, gate) = gated();
    world.write("adapters/slow", 8, 1);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let first = runtime().unwrap();
    let _enter = first.enter();
    let waiting = world.resolve("slow");
    first.block_on(gate.arrived());
    drop(_enter);
    first.shutdown_background();
    gate.open();
    let second = runtime().unwrap();
    assert!(second.block_on(waiting).is_err());
    second.block_on(async {
        // The old runtime's task goes when its thread gets to it.
        while world.registry.stats().num_loading > 0 {
            back_off(1).await;
        }
        assert_eq!(world.rank("slow").await, Some(8));
        world.audit().await;
    });
}

/// Swaps the directory at `link` for another in one step.
fn swap(link: &Path, target: &Path) {
    let next = link.with_extension("next");
    std::os::unix::fs::symlink(target, &next).unwrap();
    fs::rename(next, link).unwrap();
}

#[tokio::test]
async fn a_directory_that_is_swapped_while_it_is_read_is_read_again() {
    for op in [Op::Open, Op::Read] {
        let root = tempfile::tempdir().unwrap();
        let (link, num_swaps) = (root.path().join("live"), AtomicUsize::new(0));
        let (live, new): (PathBuf, PathBuf) = (link.clone(), root.path().join("new"));
        // Just before the tensors: the configuration is open already.
        let world = hooked(move |now, path| {
            if now == op
                && is_tensors_of(path, "live")
                && num_swaps.fetch_add(1, Ordering::SeqCst) == 0
            {
                swap(&live, &new);
            }
            Ok(())
        });
        let (old, new) = (world.write("old", 8, 1), world.write("new", 6, 2));
        fs::rename(new, root.path().join("new")).unwrap();
        swap(&link, &old);
        world.registry.load("a", &link, false).await.unwrap();
        assert_eq!(world.rank("a").await, Some(6), "{op:?}");
        world.audit().await;
    }
}

#[tokio::test]
async fn a_directory_that_is_swapped_there_and_back_gives_no_mixture() {
    let root = tempfile::tempdir().unwrap();
    let (link, num_opened) = (root.path().join("live"), AtomicUsize::new(0));
    let (live, old, new) = (link.clone(), root.path().join("old"), root.path().join("new"));
    let (to_old, to_new) = (old.clone(), new.clone());
    let world = hooked(move |op, path| {
        if !is_tensors_of(path, "live") {
            return Ok(());
        }
        match op {
            // The configuration is the old one's and open; the tensors will be the new one's.
            Op::Open if num_opened.fetch_add(1, Ordering::SeqCst) == 0 => swap(&live, &to_new),
            Op::Read => swap(&live, &to_old),
            _ => {}
        }
        Ok(())
    });
    fs::rename(world.write("a", 8, 1), &old).unwrap();
    fs::rename(world.write("b", 8, 2), &new).unwrap();
    swap(&link, &old);
    let info = world.registry.load("a", &link, false).await.unwrap();
    let expected = world.registry.load("old", &old, false).await.unwrap();
    assert_eq!(info.content_hash, expected.content_hash);
    world.audit().await;
}

#[tokio::test]
async fn a_file_that_is_rewritten_while_it_is_read_is_read_again() {
    let num_writes = AtomicUsize::new(0);
    let world = hooked(move |op, path| {
        if op == Op::Read
            && is_tensors_of(path, "a")
            && num_writes.fetch_add(1, Ordering::SeqCst) == 0
        {
            // As large, in place, and not quite as it was.
            let mut bytes = fs::read(path)?;
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(path, bytes)?;
        }
        Ok(())
    });
    let path = world.write("adapters/a", 8, 1);
    let before = fs::read(path.join(TENSORS)).unwrap().len() as u64;
    world.rank("a").await.unwrap();
    // The first try was for nothing: it is not even counted.
    assert!(world.registry.stats().bytes_read < 2 * before);
    let same = world.path("same");
    fs::create_dir(&same).unwrap();
    for file in ["adapter_config.json", TENSORS] {
        fs::copy(path.join(file), same.join(file)).unwrap();
    }
    let info = world.registry.load("same", &same, false).await.unwrap();
    assert_eq!(info.content_hash, world.info("a").content_hash);
    world.audit().await;
}

#[tokio::test]
async fn a_file_that_never_stops_changing_is_refused() {
    let world = hooked(|op, path| {
        if op == Op::Read && is_tensors_of(path, "a") {
            let bytes = fs::read(path)?;
            fs::write(path, bytes)?;
        }
        Ok(())
    });
    world.write("adapters/a", 8, 1);
    let error = world.registry.resolve("a").await.unwrap_err().to_string();
    assert!(error.contains("changes while it is read"), "{error}");
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_reloads_every_lease_has_one_whole_version() {
    let world = World::with(|config| {
        config.host_memory_bytes = Some(6 * crate::world::loading_bytes(8));
    });
    let versions: Vec<_> =
        (0..3).map(|i| world.write(&format!("v{i}"), 6 + i as usize, i)).collect();
    let mut hashes = Vec::new();
    for (index, path) in versions.iter().enumerate() {
        let info = world.registry.load(&format!("whole-{index}"), path, false).await.unwrap();
        hashes.push((info.content_hash.unwrap(), info.rank.unwrap(), info.num_bytes));
        world.registry.unload(&format!("whole-{index}")).await.unwrap();
    }
    let live = world.path("live");
    swap(&live, &versions[0]);
    world.registry.load("a", &live, false).await.unwrap();
    let stop = Arc::new(AtomicUsize::new(0));
    let swapper = {
        let (stop, live, versions) = (Arc::clone(&stop), live.clone(), versions.clone());
        thread::spawn(move || {
            for version in versions.iter().cycle() {
                if stop.load(Ordering::SeqCst) > 0 {
                    return;
                }
                swap(&live, version);
                thread::sleep(Duration::from_micros(300));
            }
        })
    };
    let mut tasks = Vec::new();
    for task in 0..8 {
        let (registry, live, hashes) = (world.registry.clone(), live.clone(), hashes.clone());
        tasks.push(tokio::spawn(async move {
            let mut num_good = 0;
            for round in 0..40 {
                if (task + round) % 4 == 0 {
                    // Perhaps swapped too often: that is a refusal, never a mixture.
                    let _ = registry.load("a", &live, true).await;
                    continue;
                }
                let lease = registry.resolve("a").await.unwrap();
                let weights = lease.weights();
                let found = (lease.content_hash(), weights.max_rank(), weights.num_bytes);
                assert!(hashes.contains(&found), "{found:?}");
                num_good += 1;
                tokio::task::yield_now().await;
                assert!(registry.check_integrity().is_ok());
            }
            num_good
        }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), 30);
    }
    stop.store(1, Ordering::SeqCst);
    swapper.join().unwrap();
    let stats = world.registry.stats();
    assert!(stats.loads_ok > 3, "{stats:?}");
    world.audit().await;
}
