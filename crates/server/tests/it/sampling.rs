//! What the engine is told of a request's parameters.

use crate::harness::Server;
use serde_json::{Value, json};
use std::collections::HashSet;
use weft_types::{SamplingParams, SequenceSpec};

async fn seen(body: Value) -> Vec<SequenceSpec> {
    let server = Server::start().await;
    server.complete(body).await;
    server.seen.lock().unwrap().clone()
}

#[tokio::test]
async fn every_sampling_parameter_reaches_the_engine() {
    let specs = seen(json!({
        "prompt": "ab", "max_tokens": 4, "temperature": 0.5, "top_p": 0.25, "top_k": 7,
        "min_p": 0.125, "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 2,
        "logit_bias": { "9": -100, "3": 1.5 }, "seed": -1, "logprobs": 5, "prompt_logprobs": 3,
        "min_tokens": 2, "stop_token_ids": [200, 100, 200],
    }))
    .await;
    let expected = SamplingParams {
        temperature: 0.5,
        top_p: 0.25,
        top_k: 7,
        min_p: 0.125,
        repetition_penalty: 1.5,
        presence_penalty: -1.0,
        frequency_penalty: 2.0,
        logit_bias: vec![(3, 1.5), (9, -100.0)],
        seed: u64::MAX,
        logprobs: Some(5),
        prompt_logprobs: Some(3),
    };
    assert_eq!(specs[0].sampling, expected);
    assert_eq!(specs[0].stop_token_ids, [1, 100, 200]);
    assert_eq!(specs[0].min_tokens, 2);
    assert!(specs[0].adapter.is_none());
}

#[tokio::test]
async fn parameters_that_are_absent_or_null_are_off() {
    let specs =
        seen(json!({ "prompt": "ab", "temperature": null, "top_k": -1, "stop": null })).await;
    let seed = specs[0].sampling.seed;
    assert_eq!(specs[0].sampling, SamplingParams { seed, ..SamplingParams::default() });
}

#[tokio::test]
async fn every_choice_has_its_own_seed_and_the_first_has_the_requests() {
    let specs = seen(json!({ "prompt": "ab", "n": 4, "seed": 42 })).await;
    assert!(specs.iter().any(|spec| spec.sampling.seed == 42));
    let seeds: HashSet<_> = specs.iter().map(|spec| spec.sampling.seed).collect();
    assert_eq!(seeds.len(), 4);
}

#[tokio::test]
async fn requests_without_a_seed_get_different_ones() {
    let server = Server::start().await;
    server.complete(json!({ "prompt": "ab" })).await;
    server.complete(json!({ "prompt": "ab" })).await;
    let specs = server.seen.lock().unwrap().clone();
    assert_ne!(specs[0].sampling.seed, specs[1].sampling.seed);
}
