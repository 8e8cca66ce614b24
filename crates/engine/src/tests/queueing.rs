//! Who waits, for how long, and who is let in.

use super::hooks::{Hooks, assert_sound, hooked, paged_registry};
use super::*;
use crate::SubmitError;
use std::sync::Arc;
use std::time::Duration;
use weft_types::StepPlan;

fn one_at_a_time() -> SimExecutor {
    SimExecutor::new(ExecutorLimits { max_num_seqs: 1, ..sim_limits() }, VOCAB_SIZE)
}

fn queued(seed: u32, queueing: Queueing) -> GenerateRequest {
    GenerateRequest { queueing, ..request(&prompt(seed, 10), 4) }
}

fn of_tenant(tenant: &str, seed: u32) -> GenerateRequest {
    queued(seed, Queueing { tenant: tenant.into(), ..Queueing::default() })
}

#[tokio::test]
async fn a_request_that_waits_too_long_expires_and_the_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 2);
    let (executor, gate) = one_at_a_time().with_gate();
    let engine = engine(executor);
    let first = engine.submit(request(&prompt(1, 10), 4), None).unwrap();
    gate.wait_for_step();
    let timeout = Some(Duration::from_millis(20));
    let impatient = || Queueing { timeout, ..Queueing::default() };
    let lease = registry.resolve("a0").await.unwrap();
    let with_adapter = engine.submit(queued(2, impatient()), Some(lease)).unwrap();
    let of_base = engine.submit(queued(3, impatient()), None).unwrap();
    let patient_request = request(&prompt(4, 10), 4);
    let patient = engine.submit(patient_request.clone(), None).unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(gate);
    assert_eq!(answer(with_adapter).await.end, TokenEvent::Expired);
    assert_eq!(answer(of_base).await.end, TokenEvent::Expired);
    assert_eq!(answer(first).await.tokens.len(), 4);
    assert_eq!(answer(patient).await.tokens, expected(&patient_request, None));
    assert_eq!(engine.stats().expired(), 2);
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_request_that_began_in_time_does_not_expire() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    let engine = engine(sim().with_latency(Duration::from_millis(5), Duration::ZERO));
    let queueing = Queueing { timeout: Some(Duration::from_millis(200)), ..Queueing::default() };
    let request = GenerateRequest { queueing, ..request(&prompt(1, 10), 60) };
    let stream = engine.submit(request.clone(), None).unwrap();
    assert_eq!(answer(stream).await.tokens, expected(&request, None));
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_request_that_would_wait_too_long_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    // Twenty requests in a second.
    let engine = engine(one_at_a_time().with_latency(Duration::from_millis(12), Duration::ZERO));
    let waiting: Vec<_> =
        (0..200).map(|seed| engine.submit(of_tenant("", seed), None).unwrap()).collect();
    let impatient = || Queueing { timeout: Some(Duration::from_millis(50)), ..Queueing::default() };
    let error = loop {
        match engine.submit(queued(1, impatient()), None) {
            // The speed of the queue is not known yet.
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
    };
    let SubmitError::TooLate { wait_s } = error else { panic!("{error}") };
    assert!((1..=60).contains(&wait_s), "{wait_s}");
    assert!(error.to_string().contains("try again later"), "{error}");
    // Who may wait gets in.
    drop(engine.submit(of_tenant("", 1), None).unwrap());
    drop(waiting);
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_tenant_that_fills_its_share_leaves_room_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    let (executor, gate) = one_at_a_time().with_gate();
    let config = EngineConfig { max_waiting: 16, ..EngineConfig::default() };
    let engine = start(Box::new(executor), VOCAB_SIZE, config);
    let mut streams = vec![engine.submit(of_tenant("greedy", 0), None).unwrap()];
    gate.step();
    gate.wait_for_step();
    // One runs, and an eighth of the places is for others.
    for seed in 1..15 {
        streams.push(engine.submit(of_tenant("greedy", seed), None).unwrap());
    }
    for _ in 0..3 {
        let refused = engine.submit(of_tenant("greedy", 99), None).map(|_| ()).unwrap_err();
        assert_eq!(refused, SubmitError::TenantQueueFull { max: 15 });
    }
    for seed in 20..22 {
        streams.push(engine.submit(of_tenant("modest", seed), None).unwrap());
    }
    let refused = engine.submit(of_tenant("modest", 22), None).map(|_| ()).unwrap_err();
    assert_eq!(refused, SubmitError::QueueFull { max: 16 });
    drop(gate);
    for stream in streams {
        assert_eq!(answer(stream).await.tokens.len(), 4);
    }
    answer(engine.submit(of_tenant("greedy", 1), None).unwrap()).await.usage();
    assert_sound(&engine, &registry, "a0").await;
}

#[tokio::test]
async fn a_lower_priority_number_overtakes_and_equal_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let registry = paged_registry(dir.path(), 1);
    let (executor, gate) = one_at_a_time().with_gate();
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let step = move |plan: &StepPlan| {
        let mut seen = seen.lock();
        if seen.last() != Some(&plan.sequences[0].seq) {
            seen.push(plan.sequences[0].seq);
        }
    };
    let engine = hooked(executor, Hooks { step: Box::new(step), ..Hooks::default() });
    let first = engine.submit(request(&prompt(1, 10), 4), None).unwrap();
    gate.wait_for_step();
    let submit = |seed, priority| {
        let queueing = Queueing { priority, ..Queueing::default() };
        engine.submit(queued(seed, queueing), None).unwrap()
    };
    let [late, normal, normal_too, urgent] =
        [submit(2, 5), submit(3, 0), submit(4, 0), submit(5, -3)];
    let ids = [&first, &urgent, &normal, &normal_too, &late].map(RequestStream::id);
    drop(gate);
    for stream in [first, late, normal, normal_too, urgent] {
        assert_eq!(answer(stream).await.tokens.len(), 4);
    }
    assert_eq!(*order.lock(), ids);
    assert_sound(&engine, &registry, "a0").await;
}
