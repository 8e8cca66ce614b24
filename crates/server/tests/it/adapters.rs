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
async fn adapters_are_listed_with_where_they_are_and_how_they_are_used() {
    let server = Server::start().await;
    let mut answer = server.get("/v1/adapters").await.json();
    assert_eq!(answer["object"], "list");
    let calm = &answer["data"][0];
    assert_eq!((&calm["name"], &calm["tier"]), (&json!("calm"), &json!("source")));
    assert_eq!((&calm["rank"], &calm["hash"]), (&Value::Null, &Value::Null));
    let loud = &mut answer["data"][1];
    assert_eq!(loud["hash"].take().as_str().unwrap().len(), 16);
    let bytes = loud["bytes"].take().as_u64().unwrap();
    assert!(bytes > 1000);
    let path = server.path("loud");
    assert_eq!(
        *loud,
        json!({ "name": "loud", "path": path, "tier": "host", "pinned": false, "rank": 4,
                "bytes": null, "hash": null, "leases": 0, "hits": 0, "last_used": null })
    );
    assert_eq!(answer["host_memory"], json!({ "used": bytes, "budget": null }));

    for _ in 0..3 {
        spoken_by(&server, "calm").await;
    }
    let answer = server.get("/v1/adapters").await.json();
    let calm = &answer["data"][0];
    assert_eq!((&calm["tier"], &calm["hits"]), (&json!("device"), &json!(3)));
    assert!(calm["last_used"].as_u64().unwrap() > 1_700_000_000);
    let pool = &answer["pool"];
    let count = |key: &str| pool[key].as_u64().unwrap();
    assert_eq!((count("chunk_bytes"), count("chunks"), count("kv")), (1 << 16, 128, 0));
    assert_eq!((count("adapters"), count("idle_adapters")), (0, 1));
    assert_eq!(count("free") + count("prefix") + count("idle_adapters"), 128);
    assert!(answer["host_memory"]["used"].as_u64().unwrap() > bytes);
}

#[tokio::test]
async fn adapters_are_pinned_and_unpinned_by_name_slashes_included() {
    let server = Server::start().await;
    let body = json!({ "lora_name": "team/new", "lora_path": server.path("other") });
    assert_eq!(load(&server, body).await.0, 200);
    let entry = async |name: &str| {
        let list = server.get("/v1/adapters").await.json();
        let mut entries = list["data"].as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == name).cloned().unwrap_or_default()
    };
    for name in ["calm", "team/new"] {
        let answer = server.post(&format!("/v1/adapters/{name}/pin"), &json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["name"], name);
        assert_eq!(answer.json()["pinned"], true);
        spoken_by(&server, name).await;
        server.idle().await;
        let pinned = entry(name).await;
        assert_eq!((&pinned["pinned"], &pinned["tier"]), (&json!(true), &json!("device")));
    }
    let pool = server.get("/v1/adapters").await.json()["pool"].clone();
    assert_eq!((&pool["adapters"], &pool["idle_adapters"]), (&json!(2), &json!(0)));
    for name in ["calm", "team/new"] {
        let answer = server.post(&format!("/v1/adapters/{name}/unpin"), &json!({})).await;
        assert_eq!((answer.status, &answer.json()["pinned"]), (200, &json!(false)));
        assert_eq!(answer.json()["tier"], "device");
        assert_eq!(entry(name).await["pinned"], false);
    }
    while server.get("/v1/adapters").await.json()["pool"]["idle_adapters"] != 2 {}
}

#[tokio::test]
async fn a_pin_outlives_the_unloading_of_another_name_with_the_same_content() {
    let server = Server::start().await;
    for name in ["x", "y"] {
        let body = json!({ "lora_name": name, "lora_path": server.path("other") });
        assert_eq!(load(&server, body).await.0, 200);
    }
    assert_eq!(server.post("/v1/adapters/x/pin", &json!({})).await.status, 200);
    spoken_by(&server, "x").await;
    assert_eq!(server.post("/v1/adapters/y/unpin", &json!({})).await.status, 200);
    assert_eq!(server.post(UNLOAD, &json!({ "lora_name": "y" })).await.status, 200);
    spoken_by(&server, "base").await;
    let pinned = |server: &Server| server.engine.stats().memory().pool.adapters;
    server.idle().await;
    assert_eq!(pinned(&server), 1, "x is still pinned");
    assert_eq!(server.post(UNLOAD, &json!({ "lora_name": "x" })).await.status, 200);
    while pinned(&server) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(server.engine.stats().memory().adapters.is_empty(), "nobody has it now");
}

#[tokio::test]
async fn pins_of_what_is_not_there_are_not_found() {
    let server = Server::start().await;
    for path in ["nobody/pin", "nobody/unpin", "team/nobody/pin", "base/pin", "%2e%2e%2floud/pin"] {
        let answer = server.post(&format!("/v1/adapters/{path}"), &json!({})).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text);
        assert!(answer.message().contains("does not exist"), "{path}: {}", answer.text);
    }
    for path in ["calm/press", "calm", "pin"] {
        let answer = server.post(&format!("/v1/adapters/{path}"), &json!({})).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text);
        assert_eq!(answer.json()["error"]["code"], "unknown_url", "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn the_routes_are_closed_unless_the_operator_opens_them() {
    let options = Options { allow_runtime_adapters: false, ..Options::default() };
    let server = Server::with(options).await;
    for path in [LOAD, UNLOAD, "/v1/adapters/loud/pin", "/v1/adapters/loud/unpin"] {
        let body = json!({ "lora_name": "x", "lora_path": server.path("other") });
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 403);
        assert!(answer.message().contains("--allow-runtime-adapters"), "{}", answer.text);
    }
}
