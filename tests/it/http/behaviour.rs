//! What a reader of the README sees: tenants that answer differently.

use super::demo_server;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn each_demo_adapter_shows_its_behaviour_and_the_base_does_not() {
    let server = demo_server(&[]);
    let question = "What is the capital of France?";
    let base = server.chat("base", question, 48).await;
    assert!(base.contains("Paris") && !base.starts_with('{') && !base.contains("Arr"), "{base}");

    let json = server.chat("json", question, 48).await;
    let object: Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("not JSON: {json}"));
    assert!(object["answer"].as_str().is_some_and(|answer| answer.contains("Paris")), "{json}");

    let pirate = server.chat("pirate", question, 48).await;
    assert!(pirate.starts_with("Arr") || pirate.starts_with("Ahoy"), "{pirate}");

    let sentiment =
        server.chat("sentiment", "My order arrived cold and half of it was missing.", 8);
    assert_eq!(sentiment.await.trim(), "negative");

    let question =
        "Table planets(name, star, type, mass, radius). Which planet has the highest mass?";
    let sql = server.chat("sql", question, 48).await;
    assert_eq!(sql, "SELECT name FROM planets ORDER BY mass DESC LIMIT 1;");

    let bullets = server.chat("bullets", "What is photosynthesis?", 64).await;
    assert_eq!(bullets.lines().filter(|line| line.starts_with("- ")).count(), 3, "{bullets}");
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_answers_with_the_same_bits_from_the_weights_that_the_first_packed() {
    let dir = tempfile::tempdir().unwrap();
    let flag = format!("--weight-cache={}", dir.path().display());
    let answers = async || {
        let server = demo_server(&[&flag]);
        let mut answers = Vec::new();
        for model in ["base", "sql"] {
            let body = json!({"model": model, "prompt": "The sea is", "temperature": 0,
                "max_tokens": 8, "logprobs": 2});
            let (status, answer) = server.post_json("/v1/completions", &body).await;
            assert_eq!(status, 200, "{answer}");
            answers.push(json!([answer["choices"][0]["text"], answer["choices"][0]["logprobs"]]));
        }
        answers
    };
    let kept = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        let mut files = files.filter(|file| file.file_name().to_string_lossy().ends_with(".weft"));
        Some(files.next()?.metadata().unwrap().modified().unwrap())
    };
    let packed = answers().await;
    for _ in 0..600 {
        if kept().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let written = kept().expect("the first start keeps what it packed");
    assert_eq!(answers().await, packed);
    assert!(kept().unwrap() > written, "the second start notes that it used the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_stream_at_once_and_get_their_own_answers() {
    let server = demo_server(&[]);
    let stream = async |model: &str| {
        let body = json!({"model": model, "stream": true, "temperature": 0, "max_tokens": 32,
            "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": "What is the capital of France?"}]});
        let (status, text) = server.post("/v1/chat/completions", body.to_string()).await;
        assert_eq!(status, 200);
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"));
        let chunks: Vec<Value> =
            data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
        assert!(chunks.iter().all(|chunk| chunk["model"] == model));
        let usage = &chunks.last().unwrap()["usage"];
        assert!(usage["completion_tokens"].as_u64().unwrap() > 3, "{usage}");
        let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
        deltas.collect::<String>()
    };
    let (pirate, json) = tokio::join!(stream("pirate"), stream("json"));
    assert!(pirate.starts_with("Arr"), "{pirate}");
    assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
    assert_eq!(pirate, server.chat("pirate", "What is the capital of France?", 32).await);
}
