//! What requests get when nothing goes wrong.

use super::*;
use crate::{AddError, SubmitError};
use futures::StreamExt;
use weft_types::TokenLogprobs;

#[tokio::test]
async fn tokens_are_the_same_alone_and_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path(), 4);
    // A cache with room for a few only, so that sequences are preempted as well.
    let (executor, gate) = SimExecutor::new(small_cache(), VOCAB_SIZE).with_gate();
    let engine = engine(executor);
    let mut started = Vec::new();
    for index in 0..60 {
        let lease = match index % 5 {
            4 => None,
            adapter => Some(registry.resolve(&format!("a{adapter}")).await.unwrap()),
        };
        // A few prompts, so that prefixes are shared within and equal across adapters.
        let prompt = prompt(index / 20, 20 + 7 * (index as usize % 4));
        let request = request(&prompt, 10 + index % 50);
        let expected = expected(&request, lease.as_ref());
        started.push((engine.submit(request, lease).unwrap(), expected));
        if index == 0 {
            // All others come during the first step, so that every run of this test is the same.
            gate.wait_for_step();
        }
    }
    drop(gate);
    let num_tokens: usize = started.iter().map(|(_, expected)| expected.len()).sum();
    for (stream, expected) in started {
        let answer = answer(stream).await;
        assert_eq!(answer.tokens, expected);
        assert_eq!(answer.usage().completion_tokens, expected.len());
    }
    assert_idle(&engine);
    let stats = engine.stats();
    assert_eq!(stats.generation_tokens(), num_tokens as u64);
    assert!(stats.preemptions() > 0, "the cache was meant to be too small");
    assert!(stats.prefix_hits() > 0, "prompts were meant to be shared");
    for info in registry.list() {
        assert_eq!(info.num_leases, 0, "{} is still pinned", info.name);
    }
}

#[tokio::test]
async fn an_equal_prompt_is_cached_for_the_same_adapter_only() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path(), 1);
    let engine = engine(sim());
    let mut cached = Vec::new();
    for name in [None, None, Some("a0"), Some("a0")] {
        let lease = match name {
            Some(name) => Some(registry.resolve(name).await.unwrap()),
            None => None,
        };
        let stream = engine.submit(request(&prompt(1, 40), 1), lease).unwrap();
        cached.push(answer(stream).await.usage().cached_tokens);
    }
    assert_eq!(cached, [0, 32, 0, 32]);
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_misses_nothing() {
    let engine = engine(sim());
    let slow_request = request(&prompt(1, 30), 200);
    let slow = engine.submit(slow_request.clone(), None).unwrap();
    // Both run to their end while nobody reads from `slow`.
    answer(engine.submit(request(&prompt(2, 30), 300), None).unwrap()).await;
    until(|| engine.stats().running() == 0).await;
    assert_eq!(answer(slow).await.tokens, expected(&slow_request, None));
}

#[tokio::test]
async fn prompt_log_probabilities_come_whole_and_before_the_tokens() {
    let engine = engine(sim());
    for _ in 0..2 {
        let mut request = request(&prompt(1, 150), 2);
        request.sampling.prompt_logprobs = Some(2);
        request.sampling.logprobs = Some(3);
        let events: Vec<_> = engine.submit(request.clone(), None).unwrap().collect().await;
        let mut of_prompt: Vec<TokenLogprobs> = Vec::new();
        let mut num_tokens = 0;
        for event in events {
            match event {
                TokenEvent::PromptLogprobs(more) => {
                    assert_eq!(num_tokens, 0);
                    of_prompt.extend(more);
                }
                TokenEvent::Token { token, logprobs } => {
                    let logprobs = logprobs.unwrap();
                    assert_eq!((logprobs.chosen.token, logprobs.top.len()), (token, 3));
                    num_tokens += 1;
                }
                TokenEvent::Finished { usage, .. } => assert_eq!(usage.cached_tokens, 0),
                TokenEvent::Failed(error) => panic!("{error}"),
                TokenEvent::Expired => panic!("it has no deadline"),
            }
        }
        let tokens: Vec<_> = of_prompt.iter().map(|logprobs| logprobs.chosen.token).collect();
        assert_eq!(tokens, request.prompt[1..]);
        assert!(of_prompt.iter().all(|logprobs| logprobs.top.len() == 2));
        assert_eq!(num_tokens, 2);
    }
}

#[tokio::test]
async fn stop_tokens_and_zero_max_tokens_end_a_request() {
    let next_token = Box::new(|tokens: &[TokenId], _: Option<_>| tokens.len() as TokenId);
    let engine = engine(sim().with_next_token(next_token));
    let mut with_stop = request(&[1, 2, 3], 50);
    with_stop.stop.stop_token_ids = vec![4, 6];
    let stopped = answer(engine.submit(with_stop.clone(), None).unwrap()).await;
    assert_eq!(stopped.parts(), (&[3, 4][..], FinishReason::Stop(4)));

    with_stop.stop.min_tokens = 3;
    let stopped = answer(engine.submit(with_stop, None).unwrap()).await;
    assert_eq!(stopped.parts(), (&[3, 5, 5, 6][..], FinishReason::Stop(6)));

    let nothing = answer(engine.submit(request(&[1, 2, 3], 0), None).unwrap()).await;
    assert_eq!(nothing.parts(), (&[][..], FinishReason::Length));
}

#[tokio::test]
async fn requests_that_cannot_run_are_refused_with_a_reason() {
    let engine =
        engine(SimExecutor::new(ExecutorLimits { num_blocks: 10, ..sim_limits() }, VOCAB_SIZE));
    let refused = |request| engine.submit(request, None).map(|_| ()).unwrap_err();
    assert_eq!(refused(request(&[], 1)), AddError::EmptyPrompt.into());
    assert_eq!(
        refused(request(&[0, 1000, 2000], 1)),
        SubmitError::TokenOutOfRange { token: 1000, vocab_size: 1000 }
    );
    assert_eq!(
        refused(request(&prompt(1, 512), 1)),
        AddError::PromptTooLong { tokens: 512, num_virtual: 0, max: 511 }.into()
    );
    assert_eq!(
        refused(request(&prompt(1, 100), 100)),
        AddError::TooManyBlocks { needed: 13, num_virtual: 0, max: 10 }.into()
    );
    assert_idle(&engine);
}
