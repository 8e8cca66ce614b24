//! Activated LoRA over HTTP: peft's log probabilities, and the base's prefix before the activation.

use super::{prompt_logprobs, tiny_server, want_logprobs};
use crate::support::{golden, server::Server};
use serde_json::json;
use weft_testkit::golden::GoldenFile;

/// As in `scripts/golden/tiny_activated.py`.
const INVOCATION: [u32; 3] = [1, 97, 98];

async fn cached_tokens(server: &Server, model: &str, tokens: &[u32]) -> u64 {
    let body = json!({ "model": model, "prompt": tokens, "max_tokens": 2, "temperature": 0 });
    let (status, answer) = server.post_json("/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activated_adapter_answers_as_peft_does() {
    let server = tiny_server("tiny-llama", "activated", &[]);
    let file = GoldenFile::open(&golden("activated/linears/golden.safetensors")).unwrap();
    for (tokens, logits) in crate::golden::prompts(&file) {
        let got = prompt_logprobs(&server, json!({ "model": "linears" }), &tokens).await;
        for (got, want) in got.iter().zip(want_logprobs(&tokens, &logits)) {
            assert!((got - want).abs() < 1e-2, "{got} and {want}");
        }
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefix_before_the_activation_is_shared_with_the_base_both_ways() {
    let server = tiny_server("tiny-llama", "activated", &[]);
    let turn =
        |first: u32| -> Vec<u32> { (0..40).map(|i| 100 + (first * 11 + i * 7) % 150).collect() };
    let invoked = |first: u32| [turn(first), INVOCATION.to_vec(), vec![9, 8]].concat();
    // Blocks have sixteen tokens: two lie before the activation at 40.
    assert_eq!(cached_tokens(&server, "base", &turn(1)).await, 0);
    assert_eq!(cached_tokens(&server, "linears", &invoked(1)).await, 32);
    assert_eq!(cached_tokens(&server, "linears", &invoked(2)).await, 0);
    assert_eq!(cached_tokens(&server, "base", &turn(2)).await, 32);
    // What is computed with the adapter is found by the adapter only.
    let long = [invoked(3), turn(4)].concat();
    assert_eq!(cached_tokens(&server, "linears", &long).await, 0);
    assert_eq!(cached_tokens(&server, "base", &long).await, 32);
    assert_eq!(cached_tokens(&server, "linears", &long).await, 80);
    // Not invoked, it is the base.
    assert_eq!(cached_tokens(&server, "linears", &turn(1)).await, 32);
    let text = async |model: &str| {
        let body = json!({ "model": model, "prompt": turn(5), "max_tokens": 8, "temperature": 0 });
        server.post_json("/v1/completions", &body).await.1["choices"][0]["text"].clone()
    };
    assert_eq!(text("linears").await, text("base").await);
    server.assert_idle().await;
}
