//! Bad input: a clear error each time, and the next good request is served.

use super::demo_server;
use crate::support::demo::model_path;
use serde_json::{Value, json};
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::bad_requests::bad_requests;
use weft_testkit::malformed::malformed_adapters;

/// The message of an OpenAI error body; fails if it is none.
fn message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {text}"));
    let message = body["error"]["message"].as_str().unwrap_or_else(|| panic!("no message: {text}"));
    assert!(message.len() > 10 && message.contains(' '), "a sentence: {message}");
    message.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_requests_leave_the_server_as_it_was() {
    let server = demo_server(&[]);
    let before = server.chat("pirate", "Say hello.", 8).await;
    let requests = bad_requests("base");
    assert!(requests.len() >= 1000, "{}", requests.len());
    for request in &requests {
        let (status, text) = server.post(request.route, request.body.clone()).await;
        let body = String::from_utf8_lossy(&request.body);
        assert!((400..500).contains(&status), "{status} for {body}: {text}");
        assert_eq!(status, request.status, "{body}: {text}");
        assert!(message(&text).contains(&request.message_part), "{body}: {text}");
    }
    println!("{} malformed requests refused", requests.len());
    assert_eq!(server.chat("pirate", "Say hello.", 8).await, before);
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_malformed_adapters_leave_the_server_as_it_was() {
    let server = demo_server(&["--allow-runtime-adapters", "--max-lora-rank=64"]);
    let before = server.chat("sentiment", "I love it.", 4).await;
    let spec = LoadedModel::load(&model_path(), &LoadOptions::default()).unwrap().spec().clone();
    let cases = malformed_adapters(&spec, 64);
    assert!(cases.len() >= 200, "{}", cases.len());
    let root = tempfile::tempdir().unwrap();
    for case in &cases {
        let dir = root.path().join(&case.name);
        std::fs::create_dir(&dir).unwrap();
        case.write(&dir).unwrap();
        let body = json!({"lora_name": "broken", "lora_path": dir});
        let (status, text) = server.post("/v1/load_lora_adapter", body.to_string()).await;
        assert!((400..500).contains(&status), "{}: {status} {text}", case.name);
        let message = message(&text);
        for word in &case.words {
            assert!(message.contains(word), "{}: no `{word}` in: {message}", case.name);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    println!("{} malformed adapters refused", cases.len());
    let body = json!({"model": "broken", "prompt": "x", "max_tokens": 1});
    assert_eq!(server.post_json("/v1/completions", &body).await.0, 404);
    assert_eq!(server.chat("sentiment", "I love it.", 4).await, before);
    server.assert_idle().await;
}
