//! Other tenants change nothing: the same bits over HTTP alone and in a crowd.

use super::demo_server;
use futures::future::join_all;
use serde_json::{Value, json};

fn request(index: usize) -> Value {
    let model = ["base", "pirate", "json", "sql", "sentiment", "bullets"][index % 6];
    json!({
        "model": model,
        "messages": [{"role": "user", "content": format!("Tell me about the number {index}.")}],
        "temperature": if index.is_multiple_of(2) { 0.8 } else { 0.0 },
        "seed": index,
        "max_tokens": 12 + index % 9,
        "logprobs": true,
        "top_logprobs": 2,
    })
}

/// Text, reason and log probabilities: all that must not change.
fn essence(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    json!([choice["message"]["content"], choice["finish_reason"], choice["logprobs"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_same_bits_alone_and_among_thirty_one_others() {
    let server = demo_server(&[]);
    let ask = async |index: usize| {
        let (status, answer) = server.post_json("/v1/chat/completions", &request(index)).await;
        assert_eq!(status, 200, "{answer}");
        essence(&answer)
    };
    let together = join_all((0..32).map(ask)).await;
    for index in [0, 1, 7, 14, 21, 31] {
        assert_eq!(ask(index).await, together[index], "request {index}");
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_blocks_and_its_lease() {
    let server = demo_server(&[]);
    let body = json!({"model": "pirate", "prompt": "Once upon a time", "max_tokens": 900,
        "ignore_eos": true, "stream": true});
    for _ in 0..4 {
        let request = reqwest::Client::new().post(format!("{}/v1/completions", server.url));
        let mut answer = request.json(&body).send().await.unwrap();
        assert!(answer.chunk().await.unwrap().is_some(), "the stream began");
        drop(answer);
    }
    server.assert_idle().await;
    let (_, text) = server.get("/v1/adapters").await;
    let list: Value = serde_json::from_str(&text).unwrap();
    let leases = list["data"].as_array().unwrap().iter().map(|a| a["leases"].as_u64().unwrap());
    assert_eq!(leases.sum::<u64>(), 0, "{text}");
    assert!(server.metric("vllm:generation_tokens_total").await < 3600.0, "cancelled in time");
}
