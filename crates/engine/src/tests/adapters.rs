//! Adapters between host and device: more than there is room for, and what happens to them on
//! their way.

use super::hooks::*;
use super::*;
use crate::{AddError, SubmitError};
use std::sync::Arc;
use std::time::Duration;
use weft_types::{SeqId, StepPlan};

const SLOW: Duration = Duration::from_millis(20);

#[tokio::test]
async fn twelve_adapters_share_the_room_of_three_and_each_request_gets_its_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 12);
    let limits = room_for(3, 16, &registry).await;
    let engine = engine(SimExecutor::new(limits, VOCAB_SIZE));
    let mut started = Vec::new();
    for index in 0..96 {
        let request = request(&prompt(index % 7, 10 + index as usize % 23), 5 + index % 17);
        // Not in turn: some adapters come often, some seldom.
        let name = format!("a{}", (index * index + index / 5) % 12);
        started.push(ask(&engine, &registry, &name, request).await);
    }
    for (stream, expected) in started {
        assert_eq!(answer(stream).await.tokens, expected);
    }
    let counters = engine.stats().memory().counters;
    assert!(counters.evictions > 0 && counters.loads > 12, "{counters:?}");
    assert_eq!(counters.hits + counters.misses, 96, "{counters:?}");
    assert_sound(&engine, &registry, "a3").await;
}

#[tokio::test]
async fn the_base_gets_a_token_in_each_step_while_adapters_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 12);
    let limits = room_for(3, 24, &registry).await;
    let executor = SimExecutor::new(limits, VOCAB_SIZE)
        .with_latency(Duration::from_micros(500), Duration::ZERO)
        .with_load_latency(Duration::from_millis(3));
    // The step's sequences, for each step.
    let steps = Arc::new(parking_lot::Mutex::new(Vec::<Vec<SeqId>>::new()));
    let seen = Arc::clone(&steps);
    let step = move |plan: &StepPlan| {
        seen.lock().push(plan.sequences.iter().map(|chunk| chunk.seq).collect());
    };
    let engine = hooked(executor, Hooks { step: Box::new(step), ..Hooks::default() });

    let base_request = request(&prompt(1, 20), 150);
    let base = engine.submit(base_request.clone(), None).unwrap();
    let base_id = base.id();
    until(|| engine.stats().running() == 1).await;
    let mut started = Vec::new();
    for index in 0..36 {
        let name = format!("a{}", index * 5 % 12);
        started.push(ask(&engine, &registry, &name, request(&prompt(index, 12), 6)).await);
    }
    assert_eq!(answer(base).await.tokens, expected(&base_request, None));
    for (stream, expected) in started {
        assert_eq!(answer(stream).await.tokens, expected);
    }
    assert!(engine.stats().memory().counters.evictions > 0);
    let steps = std::mem::take(&mut *steps.lock());
    let with_base = |step: &Vec<SeqId>| step.contains(&base_id);
    let last = steps.iter().rposition(with_base).unwrap();
    assert!(steps[..=last].iter().all(with_base), "a step went by without the base");
    assert!(steps[..=last].iter().any(|step| step.len() > 1), "adapters were served meanwhile");
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_request_cancelled_during_its_load_leaves_the_load_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 2);
    let engine = engine(sim().with_load_latency(SLOW));
    let (stream, _) = ask(&engine, &registry, "a0", request(&prompt(1, 20), 5)).await;
    until(|| engine.stats().memory().counters.loads == 1).await;
    drop(stream);
    until(|| engine.stats().waiting() == 0).await;
    assert_eq!(registry.get("a0").unwrap().num_leases, 0);
    assert_served(&engine, &registry, "a0", 2).await;
    assert_eq!(engine.stats().memory().counters.loads, 1, "the load went on");
    assert_sound(&engine, &registry, "a1").await;
}

#[tokio::test]
async fn an_adapter_unloaded_and_discarded_during_its_load_serves_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 2);
    let engine = engine(sim().with_load_latency(SLOW));
    let lease = registry.resolve("a0").await.unwrap();
    let content = lease.content_hash();
    let request = request(&prompt(1, 20), 8);
    let expected = expected(&request, Some(&lease));
    let stream = engine.submit(request, Some(lease)).unwrap();
    until(|| engine.stats().memory().counters.loads == 1).await;
    registry.unload("a0").await.unwrap();
    engine.discard(content);
    assert!(registry.resolve("a0").await.is_err(), "nobody else gets it");
    assert_eq!(answer(stream).await.tokens, expected);

    // Idle it leaves when it is told to, whatever else there is room for.
    until(|| engine.stats().running() == 0).await;
    assert!(on_device(&engine, content).is_some());
    engine.discard(content);
    until(|| on_device(&engine, content).is_none()).await;
    assert_eq!(engine.stats().memory().pool.idle_adapters, 0);
    assert_sound(&engine, &registry, "a1").await;
}

#[tokio::test]
async fn a_pinned_adapter_survives_pressure_until_it_is_unpinned() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 8);
    let limits = room_for(3, 12, &registry).await;
    let engine = engine(SimExecutor::new(limits, VOCAB_SIZE));
    let content = registry.pin("a0").await.unwrap().content_hash.unwrap();
    engine.set_pinned(content, true);
    let others_come = async |seed: u32| {
        for index in 1..8 {
            assert_served(&engine, &registry, &format!("a{index}"), seed + index).await;
        }
    };
    assert_served(&engine, &registry, "a0", 0).await;
    others_come(10).await;
    others_come(20).await;
    let pinned = on_device(&engine, content).expect("it was pinned");
    assert!(pinned.is_pinned);
    let counters = engine.stats().memory().counters;
    assert!(counters.evictions > 0, "{counters:?}");
    assert_served(&engine, &registry, "a0", 30).await;
    assert_eq!(engine.stats().memory().counters.loads, counters.loads, "it was there");

    registry.unpin("a0").unwrap();
    engine.set_pinned(content, false);
    until(|| on_device(&engine, content).is_some_and(|one| !one.is_pinned)).await;
    for seed in 40..60 {
        others_come(seed * 10).await;
    }
    assert!(on_device(&engine, content).is_none(), "nothing keeps it now");
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn two_names_with_the_same_content_are_one_adapter_on_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    add(&registry, dir.path(), "twin", 2, 0);
    let engine = engine(sim());
    assert_served(&engine, &registry, "a0", 1).await;
    assert_served(&engine, &registry, "twin", 2).await;
    let memory = engine.stats().memory();
    assert_eq!((memory.adapters.len(), memory.counters.loads), (1, 1));
    assert_sound(&engine, &registry, "twin").await;
}

#[tokio::test]
async fn an_adapter_larger_than_the_memory_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    add(&registry, dir.path(), "huge", 64, 7);
    let engine = engine(SimExecutor::new(small_cache(), VOCAB_SIZE));
    for _ in 0..3 {
        let lease = registry.resolve("huge").await.unwrap();
        let error = engine.submit(request(&prompt(1, 20), 5), Some(lease)).map(|_| ()).unwrap_err();
        assert!(matches!(
            error,
            SubmitError::DoesNotFit(AddError::AdapterTooLarge { needed: 2, max: 24, .. })
        ));
        assert!(error.to_string().contains("give the server more --memory"), "{error}");
    }
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_preempted_request_gets_its_adapter_back_and_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 6);
    // Two long requests and their adapters outgrow it, and several begin at once.
    let limits = room_for(3, 10, &registry).await;
    let engine = engine(SimExecutor::new(limits, VOCAB_SIZE));
    let mut started = Vec::new();
    for index in 0..24 {
        let name = format!("a{}", index % 6);
        started.push(ask(&engine, &registry, &name, request(&prompt(index, 8), 100)).await);
    }
    for (stream, expected) in started {
        assert_eq!(answer(stream).await.tokens, expected);
    }
    let stats = engine.stats();
    assert!(stats.preemptions() > 0, "the pool was meant to be too small");
    assert!(stats.memory().counters.loads > 6, "and adapters to come back");
    assert_sound(&engine, &registry, "a5").await;
}
