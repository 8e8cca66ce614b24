//! `/tokenize` and `/detokenize`.

use crate::harness::{BASE, MAX_MODEL_LEN, Server};
use crate::tokenizer_files::{BOS, ids};
use serde_json::json;

#[tokio::test]
async fn a_text_becomes_tokens_and_back() {
    let server = Server::start().await;
    let answer = server.post("/tokenize", &json!({ "model": BASE, "prompt": "né" })).await.json();
    let tokens = [vec![BOS], ids("né")].concat();
    assert_eq!(
        answer,
        json!({ "count": 4, "max_model_len": MAX_MODEL_LEN, "tokens": tokens, "token_strs": null })
    );
    let bare = json!({ "prompt": "ab", "add_special_tokens": false, "return_token_strs": true });
    let answer = server.post("/tokenize", &bare).await.json();
    assert_eq!((&answer["tokens"], &answer["token_strs"]), (&json!(ids("ab")), &json!(["a", "b"])));

    let back = server.post("/detokenize", &json!({ "model": "calm", "tokens": tokens })).await;
    assert_eq!(back.json(), json!({ "prompt": "<s>né" }));
}

#[tokio::test]
async fn a_chat_becomes_the_tokens_that_it_is_prompted_with() {
    let server = Server::start().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let answer = server.post("/tokenize", &json!({ "messages": messages })).await.json();
    assert_eq!(answer["tokens"], json!(ids("user:hi\nassistant:")));
    let closed = json!({ "messages": messages, "add_generation_prompt": false });
    let answer = server.post("/tokenize", &closed).await.json();
    assert_eq!(answer["tokens"], json!(ids("user:hi\n")));
}
