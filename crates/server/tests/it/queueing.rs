//! Requests that wait: who is refused, with which status, and when to come back.

use crate::harness::{Answer, Options, Server, with_model};
use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use std::sync::Arc;

const ROUTE: &str = "/v1/completions";

async fn one_at_a_time(max_waiting: usize) -> Arc<Server> {
    let options = Options { max_num_seqs: 1, max_waiting, ..Options::default() };
    Arc::new(Server::with(options).await)
}

/// A request that runs for about a second, of a user.
fn slow(user: &str) -> Value {
    with_model(json!({ "prompt": "~", "max_tokens": 400, "user": user }))
}

/// Sends it, and waits until the engine has it.
async fn begin(server: &Arc<Server>, body: Value) -> tokio::task::JoinHandle<Answer> {
    let num_live = || server.engine.stats().running() + server.engine.stats().waiting();
    let before = num_live();
    let sender = Arc::clone(server);
    let task = tokio::spawn(async move { sender.post(ROUTE, &body).await });
    while num_live() == before {
        tokio::task::yield_now().await;
    }
    task
}

/// A slow request of a user, which runs.
async fn occupy(server: &Arc<Server>, user: &str) -> tokio::task::JoinHandle<Answer> {
    let task = begin(server, slow(user)).await;
    while server.engine.stats().running() == 0 {
        tokio::task::yield_now().await;
    }
    task
}

fn assert_too_many(answer: &Answer, sentence: &str) {
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert_eq!(answer.json()["error"]["type"], "RateLimitError");
    assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded");
    assert!(answer.message().contains(sentence), "{}", answer.text);
    let seconds = answer.headers[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1..3600).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_request_that_waits_longer_than_it_may_is_told_to_come_back() {
    let server = one_at_a_time(64).await;
    let running = occupy(&server, "").await;
    for model in ["base", "loud"] {
        let impatient = json!({ "model": model, "prompt": "ab", "queue_timeout": 0.05 });
        assert_too_many(&server.post(ROUTE, &impatient).await, "waited longer than it may");
        let none = json!({ "model": model, "prompt": "ab", "queue_timeout": 0 });
        assert_too_many(&server.post(ROUTE, &none).await, "waited longer than it may");
    }
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(server.engine.stats().expired(), 4);
    let patient = json!({ "prompt": "ab", "queue_timeout": 60, "priority": -1, "max_tokens": 2 });
    assert_eq!(server.complete(patient).await["choices"][0]["text"], "ab");
    server.idle().await;
    assert_eq!(server.engine.stats().damages(), 0);
}

#[tokio::test]
async fn a_tenant_over_its_share_is_refused_while_another_gets_in() {
    let server = one_at_a_time(8).await;
    let mut greedy = vec![occupy(&server, "greedy").await];
    for _ in 1..8 {
        greedy.push(begin(&server, slow("greedy")).await);
    }
    let refused = server.post(ROUTE, &slow("greedy")).await;
    assert_too_many(&refused, "this tenant has 8 unfinished requests already");
    let short = json!({ "prompt": "ab", "max_tokens": 2, "user": "modest" });
    let modest = begin(&server, with_model(short.clone())).await;
    let full = server.post(ROUTE, &with_model(short.clone())).await;
    assert_eq!(full.status, 503, "{}", full.text);
    assert!(full.headers.contains_key(RETRY_AFTER));

    // The clients go away; whoever waits behind them is served.
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(modest.await.unwrap().status, 200);
    server.idle().await;
    assert_eq!(server.complete(short).await["choices"][0]["text"], "ab");
    assert_eq!(server.engine.stats().damages(), 0);
}

#[tokio::test]
async fn lower_priority_numbers_go_first() {
    let server = one_at_a_time(64).await;
    let running = occupy(&server, "").await;
    let of_priority = |priority: i32| {
        with_model(json!({ "prompt": "ab", "max_tokens": 2, "priority": priority }))
    };
    let ended = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for priority in [5, 0, -1] {
        let task = begin(&server, of_priority(priority)).await;
        let ended = Arc::clone(&ended);
        // A task of its own, so that it is woken when its answer comes.
        waiting.push(tokio::spawn(async move {
            assert_eq!(task.await.unwrap().status, 200);
            ended.lock().unwrap().push(priority);
        }));
    }
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*ended.lock().unwrap(), [-1, 0, 5]);
    assert_eq!(running.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_stream_that_waits_longer_than_it_may_is_told_so() {
    let server = one_at_a_time(64).await;
    let running = occupy(&server, "").await;
    let body = json!({ "prompt": "ab", "queue_timeout": 0.05, "stream": true });
    // Its headers are gone by then, so that proxies see that it lives.
    let answer = server.post(ROUTE, &with_model(body)).await;
    assert_eq!(answer.status, 200);
    for part in ["waited longer than it may", "rate_limit_exceeded", "data: [DONE]"] {
        assert!(answer.text.contains(part), "{}", answer.text);
    }
    assert_eq!(running.await.unwrap().status, 200);
    server.idle().await;
    assert_eq!(server.engine.stats().damages(), 0);
}
