//! Health, version, metrics, request ids and the header of unknown parameters.

use crate::harness::{Options, Server, with_model};
use serde_json::json;
use std::collections::HashMap;

#[tokio::test]
async fn health_is_empty_while_the_engine_lives() {
    let server = Server::start().await;
    for answer in [
        server.get("/health").await,
        server.get("/ping").await,
        server.send(server.client.post(format!("{}/ping", server.url))).await,
    ] {
        assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    }
    assert_eq!(
        server.get("/version").await.json(),
        json!({ "version": env!("CARGO_PKG_VERSION") })
    );
    let engine = server.engine.clone();
    tokio::task::spawn_blocking(move || engine.shutdown(false)).await.unwrap();
    assert_eq!(server.get("/health").await.status, 503);
    let answer = server.post("/v1/completions", &with_model(json!({ "prompt": "ab" }))).await;
    assert_eq!(answer.status, 503);
}

/// Series (name and labels) to values; every line must be well formed.
fn parse(text: &str) -> HashMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    samples.map(parse).collect()
}

#[tokio::test]
async fn metrics_have_vllms_names_and_count() {
    let server = Server::start().await;
    server.complete(json!({ "prompt": "ab", "max_tokens": 3 })).await;
    server.complete(json!({ "prompt": "ab$", "model": "loud" })).await;
    server.idle().await;
    let answer = server.get("/metrics").await;
    assert!(
        answer.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4")
    );
    let samples = parse(&answer.text);
    let base = "{engine=\"0\",model_name=\"base\"}";
    for (name, value) in [
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("vllm:prompt_tokens_total", 7.0),
        ("vllm:generation_tokens_total", 6.0),
        ("vllm:num_preemptions_total", 0.0),
        ("vllm:prefix_cache_hits_total", 0.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 4.0),
        ("vllm:e2e_request_latency_seconds_count", 2.0),
    ] {
        assert_eq!(samples.get(&format!("{name}{base}")), Some(&value), "{name}\n{}", answer.text);
    }
    assert!(samples.contains_key(&format!("vllm:prefix_cache_queries_total{base}")));
    for state in ["execute", "plan", "tell", "idle"] {
        let series = format!(
            "weft:loop_seconds_total{{engine=\"0\",model_name=\"base\",state=\"{state}\"}}"
        );
        assert!(samples[&series] > 0.0, "{series}\n{}", answer.text);
    }
    for (reason, count) in [("stop", 1.0), ("length", 1.0), ("abort", 0.0), ("error", 0.0)] {
        let series = format!(
            "vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\",model_name=\"base\"}}"
        );
        assert_eq!(samples.get(&series), Some(&count), "{}", answer.text);
    }
    let info = "vllm:lora_requests_info{max_lora=\"32\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"}";
    assert!(samples[info] > 1.7e9, "{}", answer.text);
    let cache = "vllm:cache_config_info{block_size=\"16\",engine=\"0\",model_name=\"base\",num_gpu_blocks=\"128\"}";
    assert_eq!(samples.get(cache), Some(&1.0), "{}", answer.text);
    let responses = "weft_http_responses_total{route=\"/v1/completions\",status=\"200\"}";
    assert_eq!(samples.get(responses), Some(&2.0), "{}", answer.text);
}

#[tokio::test]
async fn metrics_say_where_adapters_are_and_what_moved() {
    let server = Server::start().await;
    for model in ["loud", "calm", "loud", "base"] {
        server.complete(json!({ "prompt": "ab", "max_tokens": 3, "model": model })).await;
    }
    let missing = json!({ "model": "nobody", "prompt": "ab" });
    assert_eq!(server.post("/v1/completions", &missing).await.status, 404);
    server.idle().await;
    let text = server.get("/metrics").await.text;
    let samples = parse(&text);
    let base = "{engine=\"0\",model_name=\"base\"}";
    for (name, value) in [
        ("weft:adapters_on_device", 2.0),
        ("weft:adapters_in_host_memory", 2.0),
        ("weft:adapters_loading", 0.0),
        ("weft:adapter_hits_total", 1.0),
        ("weft:adapter_misses_total", 2.0),
        ("weft:adapter_loads_total", 2.0),
        ("weft:adapter_loaded_bytes_total", 131_072.0),
        ("weft:adapter_evictions_total", 0.0),
        ("weft:adapter_host_evictions_total", 0.0),
        ("weft:adapter_source_loads_total", 2.0),
        ("weft:requests_expired_total", 0.0),
        ("weft:pool_audit_failures_total", 0.0),
    ] {
        assert_eq!(samples.get(&format!("{name}{base}")), Some(&value), "{name}\n{text}");
    }
    for name in ["adapter_host_bytes", "adapter_source_bytes_total"] {
        assert!(samples[&format!("weft:{name}{base}")] > 1000.0, "{name}\n{text}");
    }
    let chunks = |state: &str| {
        let labels = format!("{{engine=\"0\",model_name=\"base\",state=\"{state}\"}}");
        samples[&format!("weft:pool_chunks{labels}")]
    };
    assert_eq!((chunks("kv"), chunks("adapters"), chunks("idle_adapters")), (0.0, 0.0, 2.0));
    assert_eq!(chunks("free") + chunks("prefix"), 126.0);
}

#[tokio::test]
async fn there_is_one_series_of_adapters_however_many_were_used() {
    let server = Server::start().await;
    for model in ["loud", "calm", "base"] {
        server.complete(json!({ "prompt": "ab", "model": model })).await;
        let text = server.get("/metrics").await.text;
        let series = text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{"));
        assert_eq!(series.count(), 1, "{text}");
    }
}

#[tokio::test]
async fn an_adapter_in_use_is_named_while_it_runs() {
    let server = Server::with(Options { max_model_len: 200_000, ..Options::default() }).await;
    let body = json!({ "model": "loud", "prompt": "~", "max_tokens": 100_000, "stream": true });
    let request = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
    let mut response = request.send().await.unwrap();
    response.chunk().await.unwrap();
    while !server.get("/metrics").await.text.contains("running_lora_adapters=\"loud\"") {}
    drop(response);
    server.idle().await;
}

#[tokio::test]
async fn request_ids_are_the_clients_if_usable_and_else_ours() {
    let server = Server::start().await;
    let id = async |given: Option<&str>| {
        let request = server.client.get(format!("{}/health", server.url));
        let request = match given {
            Some(given) => request.header("x-request-id", given),
            None => request,
        };
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(Some("abc-123")).await, "abc-123");
    let made = id(None).await;
    assert_eq!(made.len(), 32);
    assert_ne!(id(None).await, made);
    assert_eq!(id(Some("has space")).await.len(), 32);
    assert_eq!(id(Some(&"x".repeat(129))).await.len(), 32);
    let unknown = server.get("/nothing").await;
    assert_eq!(unknown.headers["x-request-id"], "test");
}

#[tokio::test]
async fn unknown_parameters_are_accepted_and_named_in_a_header() {
    let server = Server::start().await;
    let body = with_model(json!({ "prompt": "ab", "frobnicate": 1, "tempratur,é": 2 }));
    let answer = server.post("/v1/completions", &body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["x-weft-unknown-params"], "frobnicate,tempratur??");
    let body = with_model(json!({ "prompt": "ab", "stream": true, "x": 1 }));
    let answer = server.post("/v1/completions", &body).await;
    assert_eq!(answer.headers["x-weft-unknown-params"], "x");
    let answer = server.post("/v1/completions", &with_model(json!({ "prompt": "ab" }))).await;
    assert!(!answer.headers.contains_key("x-weft-unknown-params"));
}
