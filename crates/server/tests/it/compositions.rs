//! Several adapters in one request: by formula, by the field `adapters`, and under a name.

use crate::harness::Server;
use serde_json::{Value, json};

async fn complete(server: &Server, mut body: Value) -> (u16, Value) {
    body["prompt"] = json!("ab");
    body["max_tokens"] = json!(2);
    let answer = server.post("/v1/completions", &body).await;
    (answer.status, answer.json())
}

fn parts(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "name": name, "scale": 0.5 })).collect()
}

#[tokio::test]
async fn a_formula_and_the_field_name_the_same_composition_on_both_routes() {
    let server = Server::start().await;
    let (status, answer) = complete(&server, json!({ "model": "0.5*calm+0.5*loud" })).await;
    assert_eq!((status, &answer["model"]), (200, &json!("0.5*calm+0.5*loud")));
    let by_field = json!({ "model": "base", "adapters": parts(&["loud", "calm"]) });
    assert_eq!(complete(&server, by_field).await.0, 200);
    let chat = json!({ "model": "alias", "adapters": [{ "name": "loud" }], "max_tokens": 1,
                       "messages": [{ "role": "user", "content": "ab" }] });
    assert_eq!(server.post("/v1/chat/completions", &chat).await.status, 200);
    // An empty list adds nothing.
    assert_eq!(complete(&server, json!({ "model": "base", "adapters": [] })).await.0, 200);
    let adapters = server.get("/v1/adapters").await.json();
    let names: Vec<_> = adapters["data"].as_array().unwrap().iter().map(|a| &a["name"]).collect();
    assert_eq!(names, ["calm", "loud"]);
    let used = server.engine.stats().memory().adapters.len();
    assert_eq!(used, 2, "the composition, once, and `loud`");
}

#[tokio::test]
async fn a_composition_gets_a_name() {
    let server = Server::start().await;
    let body = json!({ "lora_name": "mix", "lora_path": "compose:calm+2*loud" });
    let answer = server.post("/v1/load_lora_adapter", &body).await;
    assert_eq!(answer.text, "Success: LoRA adapter 'mix' added successfully.");
    assert_eq!(complete(&server, json!({ "model": "mix" })).await.0, 200);
    let card = server.get("/v1/models/mix").await.json();
    assert_eq!((&card["id"], &card["root"]), (&json!("mix"), &json!("compose:calm+2*loud")));
    let bad = json!({ "lora_name": "bad", "lora_path": "compose:calm+nobody" });
    let answer = server.post("/v1/load_lora_adapter", &bad).await;
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("\"nobody\", which does not exist"), "{}", answer.text);
}

#[tokio::test]
async fn compositions_that_cannot_be_are_refused_by_field() {
    let server = Server::start().await;
    let cases = [
        (json!({ "model": "calm+nobody" }), 404, "model", "\"nobody\", which does not exist"),
        (json!({ "model": "calm+calm" }), 400, "model", "names \"calm\" twice"),
        (json!({ "model": "nobody" }), 404, "model", "The model `nobody` does not exist."),
        (
            json!({ "model": "base", "adapters": parts(&["nobody"]) }),
            404,
            "adapters",
            "\"nobody\", which does not exist",
        ),
        (
            json!({ "model": "loud", "adapters": parts(&["calm"]) }),
            400,
            "adapters",
            "added to the base",
        ),
        (
            json!({ "model": "base", "adapters": parts(&["calm", "calm"]) }),
            400,
            "adapters",
            "twice",
        ),
        (json!({ "model": "base", "adapters": "calm" }), 400, "adapters", "must be a list"),
        (json!({ "model": "base", "adapters": ["calm"] }), 400, "adapters[0]", "must be an object"),
        (json!({ "model": "base", "adapters": [{}] }), 400, "adapters[0].name", "is required"),
        (
            json!({ "model": "base", "adapters": [{ "name": "calm", "scale": 101 }] }),
            400,
            "adapters[0].scale",
            "between -100 and 100",
        ),
        (
            json!({ "model": "base", "adapters": [{ "name": "calm", "weight": 1 }] }),
            400,
            "adapters[0].weight",
            "is not known",
        ),
        (
            json!({ "model": "base", "adapters": parts(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]) }),
            400,
            "adapters",
            "at most 8 items",
        ),
    ];
    for (body, status, param, words) in cases {
        let (found, answer) = complete(&server, body.clone()).await;
        let error = &answer["error"];
        assert_eq!((found, &error["param"]), (status, &json!(param)), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
    }
}
