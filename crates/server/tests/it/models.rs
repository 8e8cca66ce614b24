//! `/v1/models`.

use crate::harness::{MAX_MODEL_LEN, Server};
use serde_json::{Value, json};

#[tokio::test]
async fn base_and_adapters_are_listed_with_root_and_parent() {
    let server = Server::start().await;
    let answer = server.get("/v1/models").await.json();
    assert_eq!(answer["object"], "list");
    let cards: Vec<(&Value, &Value, &Value)> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| (&card["id"], &card["root"], &card["parent"]))
        .collect();
    let root = json!("models/base.gguf");
    let (calm, loud) = (json!(server.adapter_dir.join("calm")), json!(server.path("loud")));
    let expected = [
        (&json!("base"), &root, &Value::Null),
        (&json!("alias"), &root, &Value::Null),
        (&json!("calm"), &calm, &json!("base")),
        (&json!("loud"), &loud, &json!("base")),
    ];
    assert_eq!(cards, expected);
    for card in answer["data"].as_array().unwrap() {
        assert_eq!(card["object"], "model");
        assert_eq!(card["owned_by"], "weft");
        assert_eq!(card["max_model_len"], MAX_MODEL_LEN);
        assert!(card["created"].is_u64());
        assert_eq!(card["permission"], json!([]));
    }
}

#[tokio::test]
async fn a_single_model_is_the_card_of_the_list() {
    let server = Server::start().await;
    let all = server.get("/v1/models").await.json();
    for card in all["data"].as_array().unwrap() {
        let id = card["id"].as_str().unwrap();
        assert_eq!(server.get(&format!("/v1/models/{id}")).await.json(), *card);
    }
    for unknown in ["nobody", "org/nobody", "..%2Floud"] {
        let answer = server.get(&format!("/v1/models/{unknown}")).await;
        assert_eq!(answer.status, 404);
        assert!(answer.message().ends_with("does not exist."), "{}", answer.text);
    }
}
