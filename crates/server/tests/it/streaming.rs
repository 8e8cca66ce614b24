//! Server-sent events, byte for byte.

use crate::harness::{Answer, Options, Server, with_model};
use serde_json::{Value, json};
use std::time::Duration;

/// The body with the time of its creation blanked.
fn golden(answer: &Answer) -> String {
    let created = answer.json_of_first_event()["created"].to_string();
    answer.text.replace(&format!("\"created\":{created}"), "\"created\":0")
}

impl Answer {
    fn json_of_first_event(&self) -> Value {
        self.events()[0].clone()
    }
}

#[tokio::test]
async fn a_chat_streams_role_text_finish_usage_and_done() {
    let server = Server::start().await;
    let body = with_model(json!({
        "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2, "stream": true,
        "stream_options": { "include_usage": true },
    }));
    let answer = server.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    let head = r#"{"id":"chatcmpl-test","object":"chat.completion.chunk","created":0,"model":"base","choices":["#;
    let expected = [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":"u"},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":"s"},"logprobs":null,"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}"#,
        r#"],"usage":{"prompt_tokens":18,"total_tokens":20,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}"#,
    ];
    let events = expected.map(|rest| format!("data: {head}{rest}\n\n")).concat();
    assert_eq!(golden(&answer), events + "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_completion_streams_text_finish_and_done() {
    let server = Server::start().await;
    let body = with_model(json!({ "prompt": "abc", "max_tokens": 8, "stream": true, "stop": "c" }));
    let answer = server.post("/v1/completions", &body).await;
    let head = r#"{"id":"cmpl-test","object":"text_completion","created":0,"model":"base","choices":[{"index":0,"#;
    let expected = [
        r#""text":"a","logprobs":null,"finish_reason":null,"stop_reason":null}]}"#,
        r#""text":"b","logprobs":null,"finish_reason":null,"stop_reason":null}]}"#,
        r#""text":"","logprobs":null,"finish_reason":"stop","stop_reason":"c"}]}"#,
    ];
    let events = expected.map(|rest| format!("data: {head}{rest}\n\n")).concat();
    assert_eq!(golden(&answer), events + "data: [DONE]\n\n");
}

/// The texts of one choice, in order.
fn pieces(events: &[Value], index: usize) -> Vec<String> {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    let own = choices.filter(|choice| choice["index"] == index);
    let text = |choice: &Value| {
        let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        text.unwrap_or_default().to_owned()
    };
    own.map(text).filter(|text| !text.is_empty()).collect()
}

async fn stream(server: &Server, route: &str, body: Value) -> Vec<Value> {
    let mut body = with_model(body);
    body["stream"] = json!(true);
    let answer = server.post(route, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.events()
}

#[tokio::test]
async fn text_that_may_become_a_stop_string_or_a_character_waits() {
    let server = Server::start().await;
    let body = json!({ "prompt": "hello world ", "stop": ["lo w"], "max_tokens": 50 });
    assert_eq!(pieces(&stream(&server, "/v1/completions", body).await, 0), ["h", "e", "l"]);
    let body = json!({ "prompt": "hello", "stop": ["lox"], "max_tokens": 5 });
    assert_eq!(pieces(&stream(&server, "/v1/completions", body).await, 0), ["h", "e", "l", "lo"]);
    let body = json!({ "prompt": "né", "max_tokens": 4 });
    assert_eq!(pieces(&stream(&server, "/v1/completions", body).await, 0), ["n", "é", "n"]);
}

#[tokio::test]
async fn every_choice_streams_whole_and_ends_once() {
    let server = Server::start().await;
    let body =
        json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 6, "n": 3 });
    let events = stream(&server, "/v1/chat/completions", body).await;
    for index in 0..3 {
        assert_eq!(pieces(&events, index).concat(), "user:h");
        let of = |event: &&Value| event["choices"][0]["index"] == index;
        let own: Vec<_> = events.iter().filter(of).collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        let ends = own.iter().filter(|event| event["choices"][0]["finish_reason"].is_string());
        assert_eq!(ends.count(), 1);
    }
}

#[tokio::test]
async fn continuous_usage_grows_with_every_chunk() {
    let server = Server::start().await;
    let body = json!({
        "prompt": ["ab", "cd"], "max_tokens": 2,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true },
    });
    let events = stream(&server, "/v1/completions", body).await;
    let drawn: Vec<_> = events
        .iter()
        .filter(|event| event["choices"][0]["index"] == 0)
        .map(|event| event["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(drawn, [1, 2, 2]);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 6);
    assert_eq!(last["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn an_echo_with_log_probabilities_comes_first() {
    let server = Server::start().await;
    let body = json!({ "prompt": "ab", "max_tokens": 1, "echo": true, "logprobs": 0,
                       "return_token_ids": true });
    let events = stream(&server, "/v1/completions", body).await;
    let first = &events[0]["choices"][0];
    assert_eq!(first["text"], "ab");
    assert_eq!(first["prompt_token_ids"], json!([0, 99, 100]));
    assert_eq!(first["logprobs"]["tokens"], json!(["<s>", "a", "b"]));
    assert_eq!(first["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    let second = &events[1]["choices"][0];
    assert_eq!(second["logprobs"]["text_offset"], json!([5]));
    assert_eq!(second["token_ids"], json!([99]));
}

#[tokio::test]
async fn log_probabilities_are_sent_even_where_text_waits() {
    let server = Server::start().await;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 4,
                       "stop": ["user!"], "logprobs": true });
    let events = stream(&server, "/v1/chat/completions", body).await;
    let tokens: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"][0]["token"].as_str())
        .collect();
    assert_eq!(tokens, ["u", "s", "e", "r"]);
    assert_eq!(pieces(&events, 0), ["user"]);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_error_event_and_done() {
    let server = Server::start().await;
    let events = stream(&server, "/v1/completions", json!({ "prompt": "ab!" })).await;
    assert_eq!(pieces(&events, 0), ["a", "b"]);
    let error = &events.last().unwrap()["error"];
    assert_eq!(error["type"], "InternalServerError");
    assert!(error["message"].as_str().unwrap().contains("the parrot was asked to fail"));
    server.idle().await;
    server.complete(json!({ "prompt": "ab" })).await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let keep_alive = Duration::from_millis(5);
    let server = Server::with(Options { keep_alive, ..Options::default() }).await;
    // Everything might be the beginning of the stop string, so that nothing is sent for long.
    let stop = "~a".repeat(100) + "!";
    let body =
        with_model(json!({ "prompt": "~a", "max_tokens": 100, "stop": stop, "stream": true }));
    let answer = server.post("/v1/completions", &body).await;
    assert!(answer.text.contains(": ping\n\n"), "{}", answer.text);
}
