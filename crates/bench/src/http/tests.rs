//! The measurement against a server in this process that answers as scripted.

use super::*;
use crate::drive::{DriveLimits, drive};
use crate::report::Report;
use crate::workload::WorkloadConfig;
use crate::workload::tests::small;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMITS: DriveLimits =
    DriveLimits { max_request: Duration::from_secs(60), max_run: Duration::from_secs(60) };

type Seen = Arc<Mutex<Vec<Value>>>;

/// Streams `max_tokens` events; refuses model `b`, breaks off for model `c`.
async fn answer(State(seen): State<Seen>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if headers.get("authorization").is_none_or(|value| value != "Bearer secret") {
        return (StatusCode::UNAUTHORIZED, "who are you").into_response();
    }
    seen.lock().unwrap().push(body.clone());
    let is_chat = body["messages"].is_array();
    if body["model"] == "b" {
        let error = json!({"error": {"message": "The model `b` does not exist."}});
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    }
    let num_tokens = body["max_tokens"].as_u64().unwrap();
    let mut events = Vec::new();
    if is_chat {
        let delta = json!({"role": "assistant", "content": ""});
        events.push(json!({"choices": [{"delta": delta, "finish_reason": null}]}));
    }
    for i in 0..num_tokens {
        let finish = (i + 1 == num_tokens && body["model"] != "c").then_some("length");
        events.push(if is_chat {
            json!({"choices": [{"delta": {"content": "x"}, "finish_reason": finish}]})
        } else {
            json!({"choices": [{"text": "x", "finish_reason": finish}]})
        });
    }
    let usage = json!({"prompt_tokens": 16, "completion_tokens": num_tokens});
    events.push(json!({"choices": [], "usage": usage}));
    let mut pieces: Vec<_> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    pieces.push("data: [DONE]\n\n".into());
    let stream = futures::stream::iter(
        pieces.into_iter().map(|piece| Ok::<_, Infallible>(Bytes::from(piece))),
    );
    Body::from_stream(stream).into_response()
}

async fn serve() -> (String, Seen) {
    let seen = Seen::default();
    let models = json!({"data": [
        {"id": "base", "parent": null}, {"id": "a", "parent": "base"}, {"object": "odd"},
    ]});
    let router = Router::new()
        .route("/v1/completions", post(answer))
        .route("/v1/chat/completions", post(answer))
        .route("/v1/models", get(|| async move { Json(models) }))
        .route("/tokenize", post(|| async { Json(json!({"tokens": vec![1; 512]})) }))
        .with_state(Arc::clone(&seen));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

fn config(url: String, endpoint: Endpoint) -> HttpConfig {
    HttpConfig {
        url,
        endpoint,
        prompt_style: PromptStyle::TokenIds,
        adapter_naming: AdapterNaming::Model,
        new_connections: false,
        api_key: Some("secret".into()),
        user: None,
    }
}

#[tokio::test]
async fn completions_are_counted_and_errors_keep_their_sentence() {
    let (url, seen) = serve().await;
    let target = HttpTarget::new(config(format!("{url}/v1/"), Endpoint::Completions)).unwrap();
    let workload = WorkloadConfig { num_warmup: 1, ..small() }.generate().unwrap();
    let run = drive(Arc::new(target), workload.clone(), LIMITS, || {}).await.unwrap();
    let report = Report::new(workload.config.clone(), url, &run);
    assert_eq!((report.num_completed, report.num_failed, report.num_short), (4, 8, 0));
    assert_eq!((report.prompt_tokens, report.completion_tokens), (64, 16));
    assert_eq!(report.errors["404: The model `b` does not exist."], 4);
    assert_eq!(report.errors["the stream ended without a finish_reason"], 4);
    assert!(run.records[0].ticks.is_sorted());
    assert_eq!(run.records[0].ticks.len(), 4);

    let seen = seen.lock().unwrap();
    let first = seen.iter().find(|body| body["prompt"] == json!(workload.requests[0].prompt));
    let first = first.expect("the first prompt arrived as token ids");
    assert_eq!((&first["ignore_eos"], &first["stream"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn chat_sends_text_and_does_not_count_the_role_as_a_token() {
    let (url, seen) = serve().await;
    let mut target = HttpTarget::new(config(url, Endpoint::Chat)).unwrap();
    target.calibrate("base").await;
    let config = WorkloadConfig { adapters: vec!["a".into()], num_warmup: 0, ..small() };
    let run = drive(Arc::new(target), config.generate().unwrap(), LIMITS, || {}).await.unwrap();
    assert!(run.records.iter().all(|record| record.error.is_none() && record.ticks.len() == 4));
    let seen = seen.lock().unwrap();
    let text = seen[0]["messages"][0]["content"].as_str().unwrap();
    // /tokenize says two tokens a word, and prompts have 16 tokens.
    assert_eq!(text.split(' ').count(), 8);
}

#[tokio::test]
async fn requests_say_whose_they_are_if_they_are_told() {
    let (url, seen) = serve().await;
    for user in [None, Some("acme".to_owned())] {
        let config = HttpConfig { user, ..config(url.clone(), Endpoint::Completions) };
        let target = Arc::new(HttpTarget::new(config).unwrap());
        let workload = WorkloadConfig { num_requests: 1, num_warmup: 0, ..small() };
        drive(target, workload.generate().unwrap(), LIMITS, || {}).await.unwrap();
    }
    let seen = seen.lock().unwrap();
    let users: Vec<_> = seen.iter().map(|body| body["user"].as_str()).collect();
    assert_eq!(users, [None, Some("acme")]);
}

#[tokio::test]
async fn llama_server_is_told_a_number_and_for_the_base_a_scale_of_zero() {
    let (url, seen) = serve().await;
    let config = config(url, Endpoint::Completions);
    let config = HttpConfig { adapter_naming: AdapterNaming::LoraId, ..config };
    let target = Arc::new(HttpTarget::new(config).unwrap());
    for adapters in [vec![], vec!["x".to_owned(), "y".to_owned()]] {
        let requests = 2.min(1 + adapters.len());
        let workload =
            WorkloadConfig { adapters, num_requests: requests, num_warmup: 0, ..small() };
        let workload = workload.generate().unwrap();
        let run = drive(Arc::clone(&target), workload, LIMITS, || {}).await.unwrap();
        assert!(run.records.iter().all(|record| record.error.is_none()));
    }
    let seen = seen.lock().unwrap();
    let mut lora: Vec<_> = seen.iter().map(|body| body["lora"].to_string()).collect();
    lora[1..].sort();
    let expected =
        [r#"[{"id":0,"scale":0.0}]"#, r#"[{"id":0,"scale":1.0}]"#, r#"[{"id":1,"scale":1.0}]"#];
    assert_eq!(lora, expected);
}

#[tokio::test]
async fn models_are_listed_with_their_parents() {
    let (url, _) = serve().await;
    let target = HttpTarget::new(config(url, Endpoint::Completions)).unwrap();
    let models = target.models().await.unwrap();
    let parents: Vec<_> = models.iter().map(|m| (m.id.as_str(), m.parent.as_deref())).collect();
    assert_eq!(parents, [("base", None), ("a", Some("base"))]);
}

#[tokio::test]
async fn a_missing_key_and_a_missing_server_are_errors_with_a_reason() {
    let (url, _) = serve().await;
    let keyless = HttpConfig { api_key: None, ..config(url, Endpoint::Completions) };
    let workload = WorkloadConfig { num_warmup: 0, ..small() }.generate().unwrap();
    let target = Arc::new(HttpTarget::new(keyless).unwrap());
    let run = drive(target, workload, LIMITS, || {}).await.unwrap();
    assert_eq!(run.records[0].error.as_deref(), Some("401: who are you"));

    let nobody = config("http://127.0.0.1:1".into(), Endpoint::Completions);
    let error = HttpTarget::new(nobody).unwrap().models().await.unwrap_err();
    assert!(error.to_string().contains("is the server running?"), "{error}");
    let tls = config("https://example.invalid".into(), Endpoint::Completions);
    assert!(HttpTarget::new(tls).unwrap_err().to_string().contains("plain HTTP"));
}
