//! Errors that need more than a wrong field: statuses, types, params, codes and sentences.

use crate::harness::{Answer, Options, Server, with_model};
use reqwest::Method;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHATS: &str = "/v1/chat/completions";

/// `good` with other or further fields.
fn but(good: Value, more: &Value) -> Value {
    let mut body = with_model(good);
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn prompt(more: &Value) -> Value {
    but(json!({ "prompt": "ab" }), more)
}

fn chat(more: &Value) -> Value {
    but(json!({ "messages": [{ "role": "user", "content": "hi" }] }), more)
}

async fn refused(path: &str, body: &Value) -> Answer {
    Server::start().await.post(path, body).await
}

/// Checks status, type and code of an answer, then its param and a part of its message.
fn check(answer: &Answer, expected: (u16, &str, &str), param: &str, sentence: &str) {
    let error = &answer.json()["error"];
    let found = (answer.status, error["type"].as_str(), error["code"].as_str());
    let (status, kind, code) = expected;
    assert_eq!(found, (status, Some(kind), Some(code)), "{}", answer.text);
    assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{}", answer.text);
    assert!(answer.message().contains(sentence), "no {sentence:?}: {}", answer.text);
}

const INVALID: (u16, &str, &str) = (400, "BadRequestError", "invalid_value");
const UNSUPPORTED: (u16, &str, &str) = (400, "BadRequestError", "unsupported_parameter");
const MISSING: (u16, &str, &str) = (400, "BadRequestError", "missing_required_parameter");
const TOO_LONG: (u16, &str, &str) = (400, "BadRequestError", "context_length_exceeded");
const NO_MODEL: (u16, &str, &str) = (404, "NotFoundError", "model_not_found");

#[tokio::test]
async fn invalid_values_of_completions_are_named() {
    let server = Server::start().await;
    let cases = [
        (json!({ "temperature": "hot" }), "temperature", "must be a number, but it is a string"),
        (json!({ "temperature": 2.5 }), "temperature", "must be between 0 and 2, but it is 2.5"),
        (json!({ "top_p": 0 }), "top_p", "`top_p` must be above 0 and at most 1"),
        (json!({ "n": 17 }), "n", "`n` must be between 1 and 16, but it is 17"),
        (json!({ "stop": vec!["x"; 17] }), "stop", "at most 16 items, but it holds 17"),
        (json!({ "stop": ["a", 1] }), "stop[1]", "`stop[1]` must be a string"),
        (json!({ "stop": "x".repeat(2000) }), "stop", "between 1 and 1024 bytes"),
        (json!({ "prompt": vec!["x"; 65] }), "prompt", "at most 64 items"),
        (json!({ "prompt": [1, 2, 999] }), "prompt[2]", "between 0 and 257, but it is 999"),
        (json!({ "prompt": [[1], []] }), "prompt", "`prompt` has no tokens"),
        (json!({ "prompt": "", "add_special_tokens": false }), "prompt", "has no tokens"),
        (json!({ "logit_bias": { "258": 1 } }), "logit_bias", "token ids from 0 to 257"),
        (json!({ "logit_bias": { "5": 101 } }), "logit_bias.5", "between -100 and 100"),
        (json!({ "stop_token_ids": [5, 258] }), "stop_token_ids[1]", "between 0 and 257"),
        (json!({ "min_tokens": 5, "max_tokens": 4 }), "min_tokens", "is 5, but at most 4"),
        (json!({ "max_tokens": 5, "max_completion_tokens": 4 }), "max_tokens", "send one of them"),
        (json!({ "logprobs": 21 }), "logprobs", "between 0 and 20"),
        (json!({ "logprobs": true }), "logprobs", "must be a whole number, but it is a boolean"),
        (json!({ "stream": true, "prompt_logprobs": 1 }), "prompt_logprobs", "`stream` is true"),
        (json!({ "stream_options": {} }), "stream_options", "only be set when `stream` is true"),
        (
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            "stream_options.include_usage",
            "must be true or false",
        ),
        (json!({ "cache_salt": "" }), "cache_salt", "between 1 and 1024 bytes"),
        (json!({ "response_format": { "type": "poem" } }), "response_format.type", "`text`,"),
    ];
    for (more, param, sentence) in cases {
        check(&server.post(COMPLETIONS, &prompt(&more)).await, INVALID, param, sentence);
    }
}

#[tokio::test]
async fn invalid_values_of_chats_are_named() {
    let server = Server::start().await;
    let cases = [
        (json!({ "top_logprobs": 2 }), "top_logprobs", "when `logprobs` is true"),
        (json!({ "max_tokens": 0 }), "max_tokens", "between 1 and"),
        (json!({ "messages": [] }), "messages", "must not be empty"),
        (
            json!({ "continue_final_message": true, "add_generation_prompt": true }),
            "continue_final_message",
            "must not both be true",
        ),
        (
            json!({ "chat_template_kwargs": { "tokenize": true } }),
            "chat_template_kwargs",
            "must not set `tokenize`",
        ),
    ];
    for (more, param, sentence) in cases {
        check(&server.post(CHATS, &chat(&more)).await, INVALID, param, sentence);
    }
}

#[tokio::test]
async fn what_is_not_supported_is_named() {
    let server = Server::start().await;
    let in_completions = [
        (json!({ "n": 2, "best_of": 3 }), "best_of", "`best_of` must equal `n`, which is 2"),
        (json!({ "suffix": "end" }), "suffix", "`suffix` is not supported"),
        (
            json!({ "response_format": { "type": "json_object" } }),
            "response_format",
            "`json_object` is not supported",
        ),
    ];
    for (more, param, sentence) in in_completions {
        check(&server.post(COMPLETIONS, &prompt(&more)).await, UNSUPPORTED, param, sentence);
    }
    let message = |more: &Value| json!({ "messages": [but(json!({ "role": "user" }), more)] });
    let in_chats = [
        (json!({ "echo": true }), "echo", "/v1/completions supports it"),
        (json!({ "tools": [{ "type": "function" }] }), "tools", "`tools` is not supported"),
        (json!({ "tool_choice": "required" }), "tool_choice", "is not supported"),
        (json!({ "chat_template": "{{ 1 }}" }), "chat_template", "is not supported"),
        (
            message(&json!({ "content": [{ "type": "image_url" }] })),
            "messages[0].content[0].type",
            "is `image_url`, but this server takes `text` only",
        ),
        (
            message(&json!({ "content": "x", "tool_calls": [1] })),
            "messages[0].tool_calls",
            "is not supported",
        ),
    ];
    for (more, param, sentence) in in_chats {
        check(&server.post(CHATS, &chat(&more)).await, UNSUPPORTED, param, sentence);
    }
}

#[tokio::test]
async fn unknown_models_are_not_found() {
    let sentence = "The model `nobody` does not exist.";
    let nobody = json!({ "model": "nobody" });
    check(&refused(COMPLETIONS, &prompt(&nobody)).await, NO_MODEL, "model", sentence);
    check(&refused(CHATS, &chat(&nobody)).await, NO_MODEL, "model", sentence);
    check(&refused("/tokenize", &prompt(&nobody)).await, NO_MODEL, "model", sentence);
    let path = json!({ "model": "../loud" });
    let sentence = "The model `../loud` does not exist.";
    check(&refused(CHATS, &chat(&path)).await, NO_MODEL, "model", sentence);
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_told_the_lengths() {
    let server = Server::start().await;
    let long = "x".repeat(600);
    let answer = server.post(COMPLETIONS, &prompt(&json!({ "prompt": long }))).await;
    let sentence = "maximum context length is 512 tokens. However, your prompt has 601 tokens";
    check(&answer, TOO_LONG, "prompt", sentence);
    let messages = json!([{ "role": "user", "content": long }]);
    let answer = server.post(CHATS, &chat(&json!({ "messages": messages }))).await;
    check(&answer, TOO_LONG, "messages", "maximum context length is 512 tokens");
    let answer = server.post(COMPLETIONS, &prompt(&json!({ "max_tokens": 510 }))).await;
    check(&answer, TOO_LONG, "max_tokens", "you asked for 510 tokens after a prompt of 3");
}

#[tokio::test]
async fn missing_fields_are_named() {
    let server = Server::start().await;
    let no_content = json!({ "messages": [{ "role": "user" }] });
    let no_role = json!({ "messages": [{ "content": "x" }] });
    for (path, body, param) in [
        (COMPLETIONS, json!({ "prompt": "x" }), "model"),
        (COMPLETIONS, with_model(json!({})), "prompt"),
        (CHATS, with_model(json!({})), "messages"),
        (CHATS, with_model(no_content), "messages[0].content"),
        (CHATS, with_model(no_role), "messages[0].role"),
        ("/tokenize", json!({}), "messages"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        let sentence = format!("`{param}` is required");
        check(&server.post(path, &body).await, MISSING, param, &sentence);
    }
    for (path, body, param) in [
        ("/tokenize", json!({ "prompt": 7 }), "prompt"),
        ("/detokenize", json!({ "tokens": [1, "2"] }), "tokens[1]"),
        ("/detokenize", json!({ "tokens": [258] }), "tokens[0]"),
    ] {
        check(&server.post(path, &body).await, INVALID, param, "must be");
    }
}

#[tokio::test]
async fn a_failed_sequence_is_our_error() {
    let answer = refused(COMPLETIONS, &prompt(&json!({ "prompt": "!" }))).await;
    let internal = (500, "InternalServerError", "internal_error");
    check(&answer, internal, "", "the parrot was asked to fail");
}

#[tokio::test]
async fn values_that_ask_for_nothing_are_accepted() {
    let server = Server::start().await;
    server
        .chat(json!({
            "messages": [{ "role": "user", "content": "hi", "tool_calls": null }],
            "max_completion_tokens": 2.0, "tools": [], "tool_choice": "auto", "store": false,
            "response_format": { "type": "text" }, "functions": null, "user": "me",
            "metadata": { "a": "b" }, "parallel_tool_calls": true, "service_tier": "auto",
            "logprobs": false, "top_logprobs": 0, "n": 1, "stop": [], "logit_bias": {},
        }))
        .await;
    server.complete(json!({ "prompt": "hi", "suffix": "", "use_beam_search": false })).await;
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_errors_of_the_same_shape() {
    let server = Server::start().await;
    let call = async |method: Method, path: &str| {
        server.send(server.client.request(method, format!("{}{path}", server.url))).await
    };
    let unknown = call(Method::GET, "/v1/nothing").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["code"], "unknown_url");
    assert!(unknown.message().contains("there is no route GET /v1/nothing"), "{}", unknown.text);
    for (method, path) in [
        (Method::GET, "/v1/chat/completions"),
        (Method::DELETE, "/v1/completions"),
        (Method::POST, "/v1/models"),
        (Method::POST, "/health"),
        (Method::PUT, "/tokenize"),
    ] {
        let answer = call(method.clone(), path).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "MethodNotAllowedError");
        assert!(answer.message().contains(&format!("{path} does not accept {method}")));
        assert!(answer.headers.contains_key("allow"));
    }
}

#[tokio::test]
async fn bodies_must_be_declared_as_json_and_within_the_limit() {
    let server = Server::with(Options { max_body_bytes: 1000, ..Options::default() }).await;
    let url = format!("{}/v1/completions", server.url);
    let body = prompt(&json!({})).to_string();
    let plain = server.client.post(&url).header("content-type", "text/plain");
    let answer = server.send(plain.body(body.clone())).await;
    assert_eq!(answer.status, 415);
    assert!(answer.message().contains("content-type: application/json"), "{}", answer.text);
    let undeclared = server.send(server.client.post(&url).body(body.clone())).await;
    assert_eq!(undeclared.status, 415);
    let charset =
        server.client.post(&url).header("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(server.send(charset.body(body)).await.status, 200);

    let large = with_model(json!({ "prompt": "x".repeat(1000) }));
    let answer = server.post("/v1/completions", &large).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["error"]["type"], "RequestTooLargeError");
    assert!(answer.message().contains("limit of 1000 bytes"), "{}", answer.text);
}
