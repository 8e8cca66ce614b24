//! Requests and engines that end before they are done.

use super::*;
use crate::SubmitError;

#[tokio::test]
async fn a_dropped_stream_is_cancelled_within_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path(), 1);
    let lease = registry.resolve("a0").await.unwrap();
    let (executor, gate) = sim().with_gate();
    let engine = engine(executor);
    let stream = engine.submit(request(&prompt(1, 40), 400), Some(lease)).unwrap();
    gate.step();
    gate.wait_for_step();
    assert_eq!(engine.stats().adapters().running, ["a0"]);
    assert_eq!(registry.get("a0").unwrap().num_leases, 1);

    // The step that is under way is the last: no other one comes.
    drop(stream);
    gate.pass();
    until(|| engine.stats().waiting() == 0 && engine.stats().running() == 0).await;
    engine.shutdown(true);
    assert_idle(&engine);
    assert_eq!(engine.stats().steps(), 2);
    assert_eq!(registry.get("a0").unwrap().num_leases, 0);
}

#[tokio::test]
async fn cancelling_many_disturbs_none_of_the_others() {
    let engine = engine(SimExecutor::new(small_cache(), VOCAB_SIZE));
    let mut kept = Vec::new();
    for index in 0..80 {
        let request = request(&prompt(index % 5, 30), 60);
        let mut stream = engine.submit(request.clone(), None).unwrap();
        match index % 4 {
            0 => kept.push((stream, request)),
            1 => drop(stream),
            _ => drop(tokio::spawn(async move { stream.next().await })),
        }
    }
    for (stream, request) in kept {
        assert_eq!(answer(stream).await.tokens, expected(&request, None));
    }
    until(|| engine.stats().running() + engine.stats().waiting() == 0).await;
    engine.shutdown(true);
    assert_idle(&engine);
}

#[tokio::test]
async fn a_draining_shutdown_completes_what_was_accepted() {
    let (executor, gate) = sim().with_gate();
    let engine = engine(executor);
    let streams: Vec<_> =
        (0..40).map(|seed| engine.submit(request(&prompt(seed, 20), 30), None).unwrap()).collect();
    gate.wait_for_step();
    engine.begin_shutdown(true);
    let refused = engine.submit(request(&[1], 1), None).map(|_| ());
    assert_eq!(refused, Err(SubmitError::Stopped));
    drop(gate);
    engine.shutdown(true);
    assert!(!engine.is_alive());
    for stream in streams {
        assert_eq!(answer(stream).await.tokens.len(), 30);
    }
    assert_idle(&engine);
}

#[tokio::test]
async fn a_shutdown_without_draining_fails_what_was_accepted() {
    let (executor, gate) = sim().with_gate();
    let engine = engine(executor);
    let submit = |seed| engine.submit(request(&prompt(seed, 20), 400), None).unwrap();
    let running = submit(1);
    gate.wait_for_step();
    let unread = submit(2);
    engine.begin_shutdown(false);
    drop(gate);
    engine.shutdown(false);
    assert_eq!(answer(running).await.error(), "the server is shutting down");
    assert_eq!(answer(unread).await.error(), "the server is shutting down");
    assert_idle(&engine);
    engine.shutdown(true);
}

#[tokio::test]
async fn an_idle_engine_wakes_for_shutdown() {
    let engine = engine(sim());
    answer(engine.submit(request(&[1], 1), None).unwrap()).await;
    engine.shutdown(true);
    assert!(!engine.is_alive());
    assert_eq!(engine.stats().steps(), 1, "idling takes no steps");
}

#[tokio::test]
async fn without_handles_the_loop_completes_its_work_and_ends() {
    let (executor, gate) = sim().with_gate();
    let engine = engine(executor);
    let stream = engine.submit(request(&prompt(1, 5), 5), None).unwrap();
    drop(engine);
    drop(gate);
    assert_eq!(answer(stream).await.tokens.len(), 5);
}

#[test]
fn a_stream_can_be_read_outside_a_runtime() {
    let engine = engine(sim());
    let mut stream = engine.submit(request(&[1, 2], 3), None).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| stream.blocking_next()).collect();
    assert_eq!(events.len(), 4);
    assert!(matches!(events[3], TokenEvent::Finished { .. }));
}
