//! Loading, unloading and listing adapters.

use crate::harness::{Options, Server};
use serde_json::{Value, json};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

async fn load(server: &Server, body: Value) -> (u16, String) {
    let answer = server.post(LOAD, &body).await;
    if answer.status == 200 { (200, answer.text) } else { (answer.status, answer.message()) }
}

async fn spoken_by(server: &Server, model: &str) -> Value {
    let body = json!({ "model": model, "prompt": "ab", "max_tokens": 2 });
    let answer = server.post("/v1/completions", &body).await;
    answer.json()["choices"][0]["text"].clone()
}

#[tokio::test]
async fn an_adapter_is_loaded_served_and_unloaded_with_vllms_texts() {
    let server = Server::start().await;
    assert_eq!(spoken_by(&server, "new").await, Value::Null);
    let body = json!({ "lora_name": "new", "lora_path": server.path("other"),
                       "base_model_name": "base" });
    let added = "Success: LoRA adapter 'new' added successfully.".to_owned();
    assert_eq!(load(&server, body).await, (200, added));
    assert_eq!(spoken_by(&server, "new").await, "AB");

    let answer = server.post(UNLOAD, &json!({ "lora_name": "new", "lora_int_id": 3 })).await;
    let removed = "Success: LoRA adapter 'new' removed successfully.";
    assert_eq!((answer.status, answer.text.as_str()), (200, removed));
    assert_eq!(spoken_by(&server, "new").await, Value::Null);

    let again = server.post(UNLOAD, &json!({ "lora_name": "new" })).await;
    assert_eq!(again.status, 404);
    assert_eq!(again.message(), "The lora adapter 'new' cannot be found.");
    assert_eq!(again.json()["error"]["type"], "NotFoundError");
}

#[tokio::test]
async fn a_name_is_loaded_twice_only_in_place() {
    let server = Server::start().await;
    let mut body = json!({ "lora_name": "loud", "lora_path": server.path("other") });
    let (status, message) = load(&server, body.clone()).await;
    assert_eq!(status, 400);
    assert_eq!(
        message,
        "The lora adapter 'loud' has already been loaded. If you want to load the adapter in \
         place, set 'load_inplace' to True."
    );
    let answer = server.post(LOAD, &body).await;
    assert_eq!(answer.json()["error"]["type"], "InvalidUserInput");

    let hash = async || server.get("/v1/adapters").await.json()["data"][1]["hash"].clone();
    let before = hash().await;
    body["load_inplace"] = json!(true);
    assert_eq!(load(&server, body).await.0, 200);
    assert_ne!(hash().await, before);
}

#[tokio::test]
async fn adapters_that_cannot_be_loaded_are_refused_with_a_sentence() {
    let server = Server::start().await;
    let other = server.path("other");
    let missing = server.path("missing");
    let empty = server.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let cases = [
        (
            json!({ "lora_name": "x", "lora_path": missing }),
            404,
            format!("Loading lora x failed: No adapter found for {missing}"),
        ),
        (json!({ "lora_name": "x", "lora_path": empty }), 400, "adapter_config.json".into()),
        (
            json!({ "lora_name": "base", "lora_path": other }),
            400,
            "is the name of the base model".into(),
        ),
        (json!({ "lora_name": "a,b", "lora_path": other }), 400, "the adapter name".into()),
        (json!({ "lora_name": "../x", "lora_path": other }), 400, "the adapter name".into()),
        (json!({ "lora_path": other }), 400, "`lora_name` is required".into()),
        (json!({ "lora_name": "x" }), 400, "`lora_path` is required".into()),
        (
            json!({ "lora_name": "", "lora_path": other }),
            400,
            "`lora_name` must not be empty".into(),
        ),
        (json!({ "lora_name": 7, "lora_path": other }), 400, "`lora_name` must be a string".into()),
        (
            json!({ "lora_name": "x", "lora_path": other, "load_inplace": "yes" }),
            400,
            "`load_inplace` must be true or false".into(),
        ),
        (
            json!({ "lora_name": "x", "lora_path": other, "is_3d_lora_weight": true }),
            400,
            "`is_3d_lora_weight` is not supported".into(),
        ),
    ];
    for (body, status, sentence) in cases {
        let (found, message) = load(&server, body.clone()).await;
        assert_eq!(found, status, "{body}: {message}");
        assert!(message.contains(&sentence), "{body}: {message}");
    }
}

#[tokio::test]
async fn a_broken_adapter_of_the_directory_is_found_and_refused() {
    let server = Server::start().await;
    let broken = server.adapter_dir.join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("adapter_config.json"), "{}").unwrap();
    let answer =
        server.post("/v1/completions", &json!({ "model": "broken", "prompt": "ab" })).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "model");
    let message = answer.message();
    assert!(
        message.contains("the adapter `broken` was found but could not be loaded"),
        "{message}"
    );
    assert!(message.contains("adapter_model.safetensors"), "{message}");
}

#[tokio::test]
async fn adapters_are_listed_with_what_is_known_of_them() {
    let server = Server::start().await;
    let mut answer = server.get("/v1/adapters").await.json();
    assert_eq!(answer["object"], "list");
    let calm = &answer["data"][0];
    assert_eq!((&calm["name"], &calm["state"]), (&json!("calm"), &json!("known")));
    assert_eq!((&calm["rank"], &calm["hash"]), (&Value::Null, &Value::Null));
    let loud = &mut answer["data"][1];
    assert_eq!(loud["hash"].take().as_str().unwrap().len(), 16);
    assert!(loud["bytes"].take().as_u64().unwrap() > 1000);
    let path = server.path("loud");
    assert_eq!(
        *loud,
        json!({ "name": "loud", "path": path, "state": "loaded", "rank": 4, "bytes": null,
                "hash": null, "leases": 0 })
    );
    spoken_by(&server, "calm").await;
    assert_eq!(server.get("/v1/adapters").await.json()["data"][0]["state"], "loaded");
}

#[tokio::test]
async fn the_routes_are_closed_unless_the_operator_opens_them() {
    let options = Options { allow_runtime_adapters: false, ..Options::default() };
    let server = Server::with(options).await;
    for path in [LOAD, UNLOAD] {
        let body = json!({ "lora_name": "x", "lora_path": server.path("other") });
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 403);
        assert!(answer.message().contains("--allow-runtime-adapters"), "{}", answer.text);
    }
}
