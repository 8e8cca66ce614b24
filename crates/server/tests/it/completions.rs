//! `/v1/completions`, not streamed.

use crate::harness::Server;
use crate::parrot::token;
use crate::tokenizer_files::{BOS, EOS, ids};
use serde_json::{Value, json};

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape_and_sixteen_tokens_by_default() {
    let server = Server::start().await;
    let mut answer = server.complete(json!({ "prompt": "abc" })).await;
    assert!(answer["created"].take().is_u64());
    assert_eq!(
        answer,
        json!({
            "id": "cmpl-test",
            "object": "text_completion",
            "created": null,
            "model": "base",
            "choices": [{
                "index": 0,
                "text": "abcabcabcabcabca",
                "logprobs": null,
                "finish_reason": "length",
                "stop_reason": null,
            }],
            "usage": {
                "prompt_tokens": 4,
                "completion_tokens": 16,
                "total_tokens": 20,
                "prompt_tokens_details": { "cached_tokens": 0 },
            },
        })
    );
}

#[tokio::test]
async fn prompts_are_texts_or_token_ids_one_or_many() {
    let server = Server::start().await;
    let cases = [
        (json!("ab"), vec!["aba"]),
        (json!(["ab", "cd"]), vec!["aba", "cdc"]),
        (json!(ids("ab")), vec!["aba"]),
        (json!([ids("ab"), ids("cd")]), vec!["aba", "cdc"]),
    ];
    for (prompt, expected) in cases {
        let answer = server.complete(json!({ "prompt": prompt, "max_tokens": 3 })).await;
        assert_eq!(texts(&answer), expected);
    }
    let bare = json!({ "prompt": "ab", "max_tokens": 1, "add_special_tokens": false });
    assert_eq!(server.complete(bare).await["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn choices_of_several_prompts_stand_in_order() {
    let server = Server::start().await;
    let body = json!({ "prompt": ["ab", "cd"], "n": 2, "best_of": 2, "max_tokens": 2 });
    let answer = server.complete(body).await;
    assert_eq!(texts(&answer), ["ab", "ab", "cd", "cd"]);
    let indices: Vec<_> = (0..4).map(|i| answer["choices"][i]["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["usage"]["completion_tokens"], 8);
}

#[tokio::test]
async fn a_repeated_prompt_is_found_in_the_cache() {
    let server = Server::start().await;
    let body = json!({ "prompt": "x".repeat(100), "max_tokens": 1 });
    let cached = async |body: &Value| {
        let answer = server.complete(body.clone()).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&body).await, 0);
    assert_eq!(cached(&body).await, 96);
    let mut salted = body.clone();
    salted["cache_salt"] = json!("mine");
    assert_eq!(cached(&salted).await, 0);
    assert_eq!(cached(&salted).await, 96);
}

#[tokio::test]
async fn the_first_stop_string_ends_the_text_and_is_named() {
    let server = Server::start().await;
    let mut body = json!({ "prompt": "hello world ", "max_tokens": 50, "stop": ["zzz", "lo w"] });
    let answer = server.complete(body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("hel"), &json!("lo w")));
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    server.idle().await;

    body["include_stop_str_in_output"] = json!(true);
    assert_eq!(texts(&server.complete(body.clone()).await), ["hello w"]);
    body["stop"] = json!("o");
    assert_eq!(texts(&server.complete(body.clone()).await), ["hello"]);
    body["min_tokens"] = json!(5);
    assert_eq!(texts(&server.complete(body).await), ["hello wo"]);
}

#[tokio::test]
async fn stop_tokens_end_the_text_without_being_part_of_it() {
    let server = Server::start().await;
    let mut body =
        json!({ "prompt": "abc", "stop_token_ids": [token(b'c')], "return_token_ids": true });
    let answer = server.complete(body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("ab"), &json!(token(b'c'))));
    assert_eq!(choice["token_ids"], json!(ids("abc")));
    assert_eq!(choice["prompt_token_ids"], json!([vec![BOS], ids("abc")].concat()));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    body["include_stop_str_in_output"] = json!(true);
    assert_eq!(texts(&server.complete(body).await), ["abc"]);
}

#[tokio::test]
async fn the_models_own_end_is_a_stop_without_a_name() {
    let server = Server::start().await;
    let answer = server.complete(json!({ "prompt": "ab$" })).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("stop")));
    assert_eq!(choice["stop_reason"], json!(null));

    let ignored = json!({ "prompt": "ab$", "ignore_eos": true, "max_tokens": 6 });
    let answer = server.complete(ignored.clone()).await;
    assert_eq!(texts(&answer), ["abab"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let mut shown = ignored;
    shown["skip_special_tokens"] = json!(false);
    assert_eq!(texts(&server.complete(shown).await), ["ab</s>ab</s>"]);
    let later = json!({ "prompt": "a$", "min_tokens": 3, "max_tokens": 8 });
    assert_eq!(texts(&server.complete(later).await), ["axa"]);
    let tokens = json!({ "prompt": [token(b'a'), EOS], "max_tokens": 8 });
    assert_eq!(texts(&server.complete(tokens).await), ["a"]);
}

#[tokio::test]
async fn an_echoed_prompt_has_log_probabilities_from_its_second_token_on() {
    let server = Server::start().await;
    let body = json!({ "prompt": "ab", "max_tokens": 1, "echo": true, "logprobs": 1 });
    let answer = server.complete(body).await;
    assert_eq!(texts(&answer), ["aba"]);
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "text_offset": [0, 3, 4, 5],
            "token_logprobs": [null, -0.5, -0.5, -0.25],
            "tokens": ["<s>", "a", "b", "a"],
            "top_logprobs": [null, { "a": -0.5 }, { "b": -0.5 }, { "a": -0.25 }],
        })
    );
}

#[tokio::test]
async fn an_echo_may_draw_nothing() {
    let server = Server::start().await;
    let body = json!({ "prompt": ["ab", "cd"], "max_tokens": 0, "echo": true, "logprobs": 0 });
    let answer = server.complete(body).await;
    assert_eq!(texts(&answer), ["ab", "cd"]);
    assert_eq!(answer["choices"][1]["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let tokens = json!({ "prompt": ids("ab"), "max_tokens": 1, "echo": true });
    assert_eq!(texts(&server.complete(tokens).await), ["aba"]);
}

#[tokio::test]
async fn alternatives_include_the_drawn_token_even_beyond_their_number() {
    let server = Server::start().await;
    let top = async |count: u32| {
        let body = json!({ "prompt": "ab", "max_tokens": 1, "logprobs": count });
        server.complete(body).await["choices"][0]["logprobs"]["top_logprobs"][0].clone()
    };
    assert_eq!(top(0).await, json!({ "a": -0.25 }));
    assert_eq!(top(3).await, json!({ "a": -0.25, "b": -1.25, "c": -2.25 }));
}

#[tokio::test]
async fn log_probabilities_of_the_prompt_stand_in_each_choice() {
    let server = Server::start().await;
    let body = json!({ "prompt": "a", "max_tokens": 1, "prompt_logprobs": 2 });
    let answer = server.complete(body).await;
    let entry = json!({
        "99": { "logprob": -0.5, "rank": 1, "decoded_token": "a" },
        "100": { "logprob": -1.5, "rank": 2, "decoded_token": "b" },
    });
    assert_eq!(answer["choices"][0]["prompt_logprobs"], json!([null, entry]));
    assert_eq!(answer["choices"][0]["logprobs"], json!(null));
}

#[tokio::test]
async fn characters_of_several_tokens_come_whole() {
    let server = Server::start().await;
    let answer = server.complete(json!({ "prompt": "é", "max_tokens": 3 })).await;
    assert_eq!(texts(&answer), ["é\u{fffd}"]);
}

#[tokio::test]
async fn a_long_prompt_is_tokenized_off_the_reactor() {
    let server = Server::with(crate::harness::Options {
        max_model_len: 40_000,
        ..crate::harness::Options::default()
    });
    let body = json!({ "prompt": "y".repeat(30_000), "max_tokens": 2 });
    let answer = server.await.complete(body).await;
    assert_eq!(texts(&answer), ["yy"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 30_001);
}
