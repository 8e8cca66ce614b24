//! Adapters come, change and go while the server runs.

use super::demo_server;
use crate::support::repository;
use serde_json::{Value, json};

const QUESTION: &str = "What is the capital of France?";

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_loaded_replaced_and_unloaded_at_run_time() {
    let server = demo_server(&["--allow-runtime-adapters"]);
    let path = |name: &str| repository(&format!("demo/adapters/{name}"));
    let load = async |body: Value| server.post("/v1/load_lora_adapter", body.to_string()).await;

    let (status, text) = load(json!({"lora_name": "mine", "lora_path": path("pirate")})).await;
    assert_eq!((status, text.as_str()), (200, "Success: LoRA adapter 'mine' added successfully."));
    let pirate = server.chat("mine", QUESTION, 32).await;
    assert!(pirate.starts_with("Arr"), "{pirate}");

    let (status, text) = load(json!({"lora_name": "mine", "lora_path": path("json")})).await;
    assert_eq!(status, 400);
    assert!(text.contains("already been loaded"), "{text}");
    assert_eq!(server.chat("mine", QUESTION, 32).await, pirate, "still the old one");

    // Same name, new bytes: nothing of the old generation may be found in the prefix cache.
    let body = json!({"lora_name": "mine", "lora_path": path("json"), "load_inplace": true});
    assert_eq!(load(body).await.0, 200);
    assert_eq!(server.chat("mine", QUESTION, 32).await, server.chat("json", QUESTION, 32).await);

    let (status, text) = server.get("/v1/models/mine").await;
    assert_eq!(status, 200);
    let card: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((card["id"].as_str(), card["parent"].as_str()), (Some("mine"), Some("base")));

    let unload = json!({"lora_name": "mine"}).to_string();
    let (status, text) = server.post("/v1/unload_lora_adapter", unload.clone()).await;
    assert_eq!(
        (status, text.as_str()),
        (200, "Success: LoRA adapter 'mine' removed successfully.")
    );
    let body = json!({"model": "mine", "prompt": "x", "max_tokens": 1});
    let (status, answer) = server.post_json("/v1/completions", &body).await;
    assert_eq!(status, 404);
    assert_eq!(answer["error"]["message"], "The model `mine` does not exist.");
    assert_eq!(server.post("/v1/unload_lora_adapter", unload).await.0, 404);
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_stay_as_they_are_unless_the_server_allows_more() {
    let server = demo_server(&[]);
    let body = json!({"lora_name": "mine", "lora_path": repository("demo/adapters/sql")});
    let (status, text) = server.post("/v1/load_lora_adapter", body.to_string()).await;
    assert!((400..500).contains(&status) && text.contains("--allow-runtime-adapters"), "{text}");
}
