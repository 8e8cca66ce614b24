//! Clients that go away, queues that are full, and servers that stop.

use crate::harness::{Options, Server, with_model};
use serde_json::{Value, json};
use std::time::Duration;

/// A request that runs for longer than any test waits.
fn endless(stream: bool) -> Value {
    with_model(json!({ "prompt": "~", "max_tokens": 100_000, "stream": stream }))
}

async fn with_long_context(options: Options) -> Server {
    Server::with(Options { max_model_len: 200_000, ..options }).await
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn num_aborted(server: &Server) -> String {
    let text = server.get("/metrics").await.text;
    let is_it =
        |line: &&str| line.starts_with("vllm:request_success_total") && line.contains("abort");
    text.lines().find(is_it).unwrap().rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_its_sequences() {
    let server = with_long_context(Options::default()).await;
    let mut body = endless(true);
    body["n"] = json!(2);
    let request = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
    let mut response = request.send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    server.idle().await;
    assert_eq!(num_aborted(&server).await, "2");
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_cancels_its_sequence() {
    let server = with_long_context(Options::default()).await;
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let waiting = tokio::spawn(request.json(&endless(false)).send());
    until(|| server.engine.stats().running() == 1).await;
    waiting.abort();
    server.idle().await;
    assert_eq!(num_aborted(&server).await, "1");
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let options = Options { max_waiting: 1, max_num_seqs: 1, ..Options::default() };
    let server = with_long_context(options).await;
    let url = format!("{}/v1/completions", server.url);
    let running = tokio::spawn(server.client.post(&url).json(&endless(false)).send());
    until(|| server.engine.stats().running() == 1).await;
    let waiting = tokio::spawn(server.client.post(&url).json(&endless(false)).send());
    until(|| server.engine.stats().waiting() == 1).await;

    let answer = server.post("/v1/completions", &endless(true)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["type"], "ServiceUnavailableError");
    assert!(answer.message().contains("try again later"), "{}", answer.text);

    running.abort();
    waiting.abort();
    server.idle().await;
    server.complete(json!({ "prompt": "ab" })).await;
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_began() {
    let mut server = Server::start().await;
    let body = with_model(json!({ "prompt": "~a", "max_tokens": 100, "stream": true }));
    let request = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
    let response = request.send().await.unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    let text = response.text().await.unwrap();
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    (&mut server.running).await.unwrap().unwrap();
    assert!(server.client.get(format!("{}/health", server.url)).send().await.is_err());
}

#[tokio::test]
async fn what_does_not_finish_in_time_ends_with_an_error() {
    let shutdown_timeout = Duration::from_millis(20);
    let mut server = with_long_context(Options { shutdown_timeout, ..Options::default() }).await;
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let response = request.json(&endless(true)).send().await.unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    let text = response.text().await.unwrap();
    assert!(text.contains("{\"error\":{\"message\":"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    (&mut server.running).await.unwrap().unwrap();
}
