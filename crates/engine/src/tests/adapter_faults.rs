//! Adapters and an engine that ends, or an executor with bugs.

use super::hooks::*;
use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use weft_types::Executor;

#[tokio::test]
async fn a_draining_shutdown_waits_for_loads_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 6);
    let limits = room_for(2, 12, &registry).await;
    let sim = SimExecutor::new(limits, VOCAB_SIZE).with_load_latency(Duration::from_millis(10));
    let engine = engine(sim);
    let mut started = Vec::new();
    for index in 0..12 {
        let name = format!("a{}", index % 6);
        started.push(ask(&engine, &registry, &name, request(&prompt(index, 20), 8)).await);
    }
    until(|| engine.stats().memory().counters.loads > 0).await;
    engine.begin_shutdown(true);
    for (stream, expected) in started {
        assert_eq!(answer(stream).await.tokens, expected);
    }
    engine.shutdown(true);
    assert_idle(&engine);
    assert_eq!(engine.stats().damages(), 0);
    assert_sound(&super::engine(super::sim()), &registry, "a0").await;
}

#[tokio::test]
async fn a_shutdown_without_draining_does_not_wait_for_loads() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 4);
    let engine = engine(sim().with_load_latency(Duration::from_secs(3600)));
    let mut started = Vec::new();
    for index in 0..8 {
        let name = format!("a{}", index % 4);
        started.push(ask(&engine, &registry, &name, request(&prompt(index, 20), 8)).await.0);
    }
    until(|| engine.stats().memory().counters.loads > 0).await;
    engine.shutdown(false);
    for stream in started {
        assert_eq!(answer(stream).await.error(), "the server is shutting down");
    }
    assert_idle(&engine);
    assert_sound(&super::engine(sim()), &registry, "a0").await;
}

#[tokio::test]
async fn a_load_that_the_executor_panics_at_fails_its_requests_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 3);
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let load = move |_: &_| assert!(!broken.load(Ordering::Acquire), "simulated panic of a load");
    // What was never there must not leave: an executor would take it for the next with that number.
    let broken = Arc::clone(&is_broken);
    let num_bad_unloads = Arc::new(AtomicUsize::new(0));
    let bad = Arc::clone(&num_bad_unloads);
    let unload = move |_| {
        bad.fetch_add(usize::from(broken.load(Ordering::Acquire)), Ordering::Relaxed);
    };
    let limits = room_for(2, 12, &registry).await;
    let executor = SimExecutor::new(limits, VOCAB_SIZE);
    let hooks = Hooks { load: Box::new(load), unload: Box::new(unload), ..Hooks::default() };
    let engine = hooked(executor, hooks);
    let content = registry.pin("a0").await.unwrap().content_hash.unwrap();
    engine.set_pinned(content, true);

    let base_request = request(&prompt(9, 20), 100);
    let base = engine.submit(base_request.clone(), None).unwrap();
    for seed in 0..20 {
        let name = format!("a{}", seed % 3);
        let (stream, _) = ask(&engine, &registry, &name, request(&prompt(seed, 20), 5)).await;
        let failed = answer(stream).await;
        assert!(failed.error().contains("a bug in the server ended this request"));
        assert!(failed.error().contains("simulated panic of a load"), "{}", failed.error());
    }
    assert_eq!(answer(base).await.tokens, expected(&base_request, None));

    assert_eq!(num_bad_unloads.load(Ordering::Relaxed), 0);
    is_broken.store(false, Ordering::Release);
    for name in ["a0", "a1", "a2"] {
        assert_served(&engine, &registry, name, 3).await;
    }
    assert!(on_device(&engine, content).is_some_and(|one| one.is_pinned), "still pinned");
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_panic_while_asking_for_loads_fails_who_waits_and_spares_who_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 2);
    let num_questions = AtomicUsize::new(0);
    let finished = move |sim: &mut SimExecutor, finished: &mut Vec<AdapterId>| {
        assert!(num_questions.fetch_add(1, Ordering::Relaxed) > 0, "simulated panic of a question");
        sim.finished_loads(finished);
    };
    let engine = hooked(sim(), Hooks { finished: Box::new(finished), ..Hooks::default() });
    let (stream, _) = ask(&engine, &registry, "a0", request(&prompt(1, 20), 5)).await;
    assert!(answer(stream).await.error().contains("simulated panic of a question"));
    // The copy was not harmed: it is there when it is asked for again.
    assert_served(&engine, &registry, "a0", 2).await;
    assert_eq!(engine.stats().memory().counters.loads, 1);
    assert_sound(&engine, &registry, "a1").await;
}

#[tokio::test]
async fn an_adapter_whose_load_was_lost_fails_its_requests_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 2);
    // The first adapter that comes is taken out of the executor, and lost with a panic.
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = Arc::clone(&is_lost);
    let finished = move |sim: &mut SimExecutor, finished: &mut Vec<AdapterId>| {
        let mut come = Vec::new();
        sim.finished_loads(&mut come);
        let is_first = !come.is_empty() && !lost.swap(true, Ordering::AcqRel);
        assert!(!is_first, "simulated loss");
        finished.append(&mut come);
    };
    let engine = hooked(sim(), Hooks { finished: Box::new(finished), ..Hooks::default() });
    for seed in 0..4 {
        let (stream, _) = ask(&engine, &registry, "a0", request(&prompt(seed, 20), 5)).await;
        assert!(answer(stream).await.error().contains("simulated loss"));
        assert_served(&engine, &registry, "a1", seed).await;
    }
    assert!(is_lost.load(Ordering::Acquire));
    assert_sound(&engine, &registry, "a1").await;
}
