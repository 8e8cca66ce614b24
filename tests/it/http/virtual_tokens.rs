//! Prompt and prefix tuning over HTTP: virtual tokens are computed, shared and counted in the context, and
//! no client ever sees them.

use super::{prompt_logprobs, tiny_server, want_logprobs};
use crate::support::golden;
use serde_json::{Value, json};
use weft_testkit::golden::GoldenFile;

/// Names in `tests/golden/methods`, and their virtual tokens.
const ADAPTERS: [(&str, usize); 2] = [("prompt-tuning", 5), ("prefix-tuning", 6)];

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| 3 + (seed * 31 + i * 7) % 300).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_with_virtual_tokens_answer_as_peft_does() {
    let server = tiny_server("tiny-llama", "methods", &[]);
    for (name, _) in ADAPTERS {
        let file = golden(&format!("methods/{name}/golden.safetensors"));
        for (tokens, logits) in crate::golden::prompts(&GoldenFile::open(&file).unwrap()) {
            let got = prompt_logprobs(&server, json!({ "model": name }), &tokens).await;
            for (got, want) in got.iter().zip(want_logprobs(&tokens, &logits)) {
                assert!((got - want).abs() < 1e-2, "{name}: {got} and {want}");
            }
        }
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_and_no_metric_sees_virtual_tokens() {
    let server = tiny_server("tiny-llama", "methods", &[]);
    let mut num_tokens = 0;
    for (name, _) in ADAPTERS {
        let first = prompt(1, 40);
        let other = [prompt(1, 20), prompt(2, 20)].concat();
        for tokens in [&first, &other] {
            let body = json!({ "model": name, "prompt": tokens, "max_tokens": 4, "temperature": 0,
                               "repetition_penalty": 1.3, "logprobs": 2, "echo": true,
                               "return_token_ids": true });
            let (status, answer) = server.post_json("/v1/completions", &body).await;
            assert_eq!(status, 200, "{answer}");
            let (usage, choice) = (&answer["usage"], &answer["choices"][0]);
            assert_eq!(usage["prompt_tokens"], 40);
            assert_eq!(choice["prompt_token_ids"], json!(tokens));
            let shown = choice["logprobs"]["tokens"].as_array().unwrap().len();
            assert_eq!(shown, 40 + usage["completion_tokens"].as_u64().unwrap() as usize);
            num_tokens += 40;
        }
    }
    assert_eq!(server.metric("vllm:prompt_tokens_total").await, f64::from(num_tokens));
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefix_of_virtual_tokens_is_found_by_other_requests_of_the_adapter_only() {
    let server = tiny_server("tiny-llama", "methods", &[]);
    let cached = async |name: &str, tokens: Vec<u32>| {
        let body = json!({ "model": name, "prompt": tokens, "max_tokens": 1, "temperature": 0 });
        let (status, answer) = server.post_json("/v1/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        let details = &answer["usage"]["prompt_tokens_details"];
        details["cached_tokens"].as_u64().unwrap_or_default() as usize
    };
    for (name, num_virtual) in ADAPTERS {
        assert_eq!(cached(name, prompt(1, 40)).await, 0);
        assert_eq!(cached(name, prompt(1, 40)).await, 32 - num_virtual);
        let other = [prompt(1, 20), prompt(2, 20)].concat();
        assert_eq!(cached(name, other).await, 16 - num_virtual);
    }
    assert_eq!(cached("base", prompt(1, 40)).await, 0);
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_context_counts_virtual_tokens_and_its_refusal_says_so() {
    let server = tiny_server("tiny-llama", "methods", &[]);
    for (name, num_virtual) in ADAPTERS {
        let ask = async |len: usize, max_tokens: u32| -> (u16, Value) {
            let tokens = prompt(3, len as u32);
            let body = json!({ "model": name, "prompt": tokens, "max_tokens": max_tokens });
            server.post_json("/v1/completions", &body).await
        };
        let longest = 256 - num_virtual - 1;
        let (status, answer) = ask(longest, 1).await;
        assert_eq!(status, 200, "{answer}");
        for (len, max_tokens) in [(longest + 1, 1), (longest, 2)] {
            let (status, answer) = ask(len, max_tokens).await;
            assert_eq!(
                (status, &answer["error"]["code"]),
                (400, &json!("context_length_exceeded"))
            );
            let words = format!("its adapter puts {num_virtual} virtual tokens before it");
            assert!(answer["error"]["message"].as_str().unwrap().contains(&words), "{answer}");
        }
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_with_virtual_tokens_compose_with_low_rank_ones_and_run_beside_others() {
    let server = tiny_server(
        "tiny-llama",
        "methods",
        &["--adapter", &format!("lora={}", golden("adapters/rank8-linears").display())],
    );
    let models = [
        "base",
        "prompt-tuning",
        "lora",
        "lora+prompt-tuning",
        "prefix-tuning",
        "0.5*lora+prefix-tuning",
    ];
    let complete = async |model: &str| {
        let body = json!({ "model": model, "prompt": prompt(4, 30), "max_tokens": 12, "temperature": 0,
                           "ignore_eos": true, "return_token_ids": true });
        let (status, answer) = server.post_json("/v1/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["token_ids"].clone()
    };
    let mut alone = Vec::new();
    for model in models {
        alone.push(complete(model).await);
    }
    assert_eq!(futures::future::join_all(models.map(complete)).await, alone);
    assert!((1..6).all(|i| !alone[..i].contains(&alone[i])), "they differ: {alone:?}");
    server.assert_idle().await;
}
