//! `/v1/chat/completions`, not streamed.

use crate::harness::{Options, Server, with_model};
use crate::tokenizer_files::ids;
use serde_json::json;

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::start().await;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 3 });
    let mut answer = server.chat(body).await;
    assert!(answer["created"].take().as_u64().is_some_and(|created| created > 1_700_000_000));
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-test",
            "object": "chat.completion",
            "created": null,
            "model": "base",
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": "use" },
                "logprobs": null,
                "finish_reason": "length",
                "stop_reason": null,
            }],
            "usage": {
                "prompt_tokens": 18,
                "completion_tokens": 3,
                "total_tokens": 21,
                "prompt_tokens_details": { "cached_tokens": 0 },
            },
        })
    );
}

#[tokio::test]
async fn without_a_limit_an_answer_fills_the_context() {
    let server = Server::with(Options { max_model_len: 64, ..Options::default() }).await;
    let answer = server.chat(json!({ "messages": [{ "role": "user", "content": "hi" }] })).await;
    assert_eq!(answer["usage"]["total_tokens"], 64);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn parts_are_joined_and_options_of_the_template_are_honoured() {
    let server = Server::start().await;
    let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
    let prompt = async |more: serde_json::Value| {
        let mut body = json!({ "max_tokens": 1, "return_token_ids": true,
                               "messages": [{ "role": "user", "content": parts }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.chat(body).await["prompt_token_ids"].clone()
    };
    assert_eq!(prompt(json!({})).await, json!(ids("user:a\nb\nassistant:")));
    assert_eq!(prompt(json!({ "add_generation_prompt": false })).await, json!(ids("user:a\nb\n")));
    let shout = json!({ "chat_template_kwargs": { "shout": "HEY" } });
    assert_eq!(prompt(shout).await, json!(ids("user:a\nb\nHEY\nassistant:")));
    let with_bos = prompt(json!({ "add_special_tokens": true })).await;
    assert_eq!(with_bos.as_array().unwrap()[0], 0);
}

#[tokio::test]
async fn the_final_message_can_be_continued() {
    let server = Server::start().await;
    let answer = server
        .chat(json!({
            "messages": [
                { "role": "user", "content": "hi" },
                { "role": "assistant", "content": "well" },
            ],
            "continue_final_message": true, "max_tokens": 1, "return_token_ids": true,
        }))
        .await;
    assert_eq!(answer["prompt_token_ids"], json!(ids("user:hi\nassistant:well")));
}

#[tokio::test]
async fn log_probabilities_have_openais_shape() {
    let server = Server::start().await;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1,
                       "logprobs": true, "top_logprobs": 2 });
    let answer = server.chat(body.clone()).await;
    let top = json!({ "token": "u", "logprob": -0.25, "bytes": [117] });
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({ "content": [{
            "token": "u", "logprob": -0.25, "bytes": [117],
            "top_logprobs": [top, { "token": "v", "logprob": -1.25, "bytes": [118] }],
        }] })
    );

    let mut as_ids = body;
    as_ids["return_tokens_as_token_ids"] = json!(true);
    let answer = server.chat(as_ids).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["token"], "token_id:119");
}

#[tokio::test]
async fn log_probabilities_of_the_prompt_stand_beside_the_choices() {
    let server = Server::start().await;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1,
                       "prompt_logprobs": 1 });
    let answer = server.chat(body).await;
    let entries = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(entries.len(), 18);
    assert_eq!(entries[0], json!(null));
    let second = json!({ "117": { "logprob": -0.5, "rank": 1, "decoded_token": "s" } });
    assert_eq!(entries[1], second);
}

#[tokio::test]
async fn adapters_are_chosen_by_model_and_loaded_when_first_asked_for() {
    let server = Server::start().await;
    for model in ["loud", "calm"] {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let body = json!({ "model": model, "messages": messages, "max_tokens": 4 });
        let answer = server.chat(body).await;
        assert_eq!(answer["model"], model);
        assert_eq!(answer["choices"][0]["message"]["content"], "USER");
    }
}

#[tokio::test]
async fn every_name_of_the_base_serves_it() {
    let server = Server::start().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "model": "alias", "messages": messages, "max_tokens": 4 });
    let answer = server.chat(body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "user");
}

#[tokio::test]
async fn what_the_template_refuses_is_the_clients_error() {
    let server = Server::start().await;
    let body = with_model(json!({ "messages": [{ "role": "forbidden", "content": "hi" }] }));
    let answer = server.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("no such role"), "{}", answer.text);
    assert_eq!(answer.json()["error"]["param"], "messages");
}

#[tokio::test]
async fn a_base_without_a_template_refers_to_completions() {
    let server = Server::with(Options { with_template: false, ..Options::default() }).await;
    let body = with_model(json!({ "messages": [{ "role": "user", "content": "hi" }] }));
    let answer = server.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("use /v1/completions"), "{}", answer.text);
}
