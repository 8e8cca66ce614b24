//! What a server records of its requests.

use crate::harness::BASE;
use crate::parrot::{Parrot, Seen};
use crate::tokenizer_files::{self, VOCAB_SIZE};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use weft_adapters::{AdapterRegistry, RegistryConfig};
use weft_engine::EngineConfig;
use weft_server::{AppState, ServerConfig, TraceRecorder, serve};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;
use weft_text::Tokenizer;
use weft_trace::{TraceAdapter, TraceHeader, TraceReader, TraceRequest};
use weft_types::ExecutorLimits;

/// A server with the adapters `loud`, which the header knows, and `late`, which it does not.
fn state(dir: &Path, trace: &Path) -> AppState {
    tokenizer_files::write(dir).unwrap();
    let registry = AdapterRegistry::new(RegistryConfig {
        base_names: vec![BASE.into(), "alias".into()],
        ..RegistryConfig::new(tiny_llama_spec())
    });
    let registry = registry.unwrap();
    for (name, rank) in [("loud", 4), ("late", 2)] {
        RandomAdapter::of_rank(rank, 1).write(&tiny_llama_spec(), &dir.join(name)).unwrap();
        registry.add_static(name, &dir.join(name)).unwrap();
    }
    let limits = ExecutorLimits {
        block_size: 16,
        num_blocks: 10_000,
        chunk_bytes: 1 << 16,
        max_model_len: 100_000,
        max_num_seqs: 4,
        max_num_batched_tokens: 1024,
    };
    let parrot = Box::new(Parrot::new(limits, Seen::default()));
    let engine = weft_engine::start(parrot, VOCAB_SIZE, EngineConfig::default());
    let loud = TraceAdapter { name: "loud".into(), rank: Some(4), bytes: Some(512) };
    let recorder = TraceRecorder::create(trace, TraceHeader::new(BASE, vec![loud])).unwrap();
    let config = ServerConfig {
        served_model_names: vec![BASE.into(), "alias".into()],
        trace_recorder: Some(recorder),
        ..ServerConfig::new(BASE, "models/base.gguf")
    };
    AppState::new(engine, registry, Tokenizer::from_hf_dir(dir).unwrap(), None, config)
}

/// The request that was recorded for this model, and its tenant.
fn find(trace: &Path, model: &str, nth: usize) -> (TraceRequest, String) {
    let reader = TraceReader::new(BufReader::new(File::open(trace).unwrap())).unwrap();
    let (header, requests) = reader.into_sorted().unwrap();
    let name = |request: &TraceRequest| {
        request.adapter.map_or(BASE, |index| &header.adapters[index as usize].name)
    };
    let found = requests.iter().filter(|request| name(request) == model).nth(nth).unwrap();
    (*found, header.tenants[found.tenant as usize].clone())
}

#[tokio::test]
async fn each_sequence_that_ends_leaves_a_line() {
    let dir = TempDir::new().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/completions", listener.local_addr().unwrap());
    let metrics = url.replace("/v1/completions", "/metrics");
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(serve(listener, state(dir.path(), &trace), async move {
        let _ = stopped.await;
    }));
    let client = reqwest::Client::new();
    let send = |body: Value| {
        let request = client.post(&url).bearer_auth("sk-secret").json(&body);
        async move { request.send().await.unwrap() }
    };

    let prompt = [7, 8, 9];
    let answer =
        send(json!({ "model": "loud", "prompt": prompt, "max_tokens": 5, "user": "acme" }));
    assert_eq!(answer.await.status(), 200);
    let streamed = json!({ "model": "late", "prompt": prompt, "max_tokens": 4, "stream": true });
    assert!(send(streamed).await.text().await.unwrap().contains("[DONE]"));
    let both = json!({ "model": "alias", "prompt": prompt, "max_tokens": 2, "n": 2 });
    assert_eq!(send(both).await.status(), 200);
    assert_eq!(send(json!({ "model": "nobody", "prompt": prompt })).await.status(), 404);
    let endless = json!({ "model": BASE, "prompt": "~", "max_tokens": 90_000, "stream": true });
    let mut cancelled = send(endless).await;
    assert!(cancelled.chunk().await.unwrap().is_some());
    drop(cancelled);
    let failing = json!({ "model": "loud", "prompt": "!", "max_tokens": 9 });
    assert_eq!(send(failing).await.status(), 500);

    let text = client.get(metrics).send().await.unwrap().text().await.unwrap();
    let dropped = text.lines().find(|line| line.starts_with("weft:trace_lines_dropped_total"));
    assert!(dropped.unwrap().ends_with(" 0"), "{dropped:?}");
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap().unwrap();

    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(text.lines().count(), 1 + 6, "{text}");
    let (loud, tenant) = find(&trace, "loud", 0);
    assert_eq!((loud.prompt_tokens, loud.output_tokens, loud.rank), (3, 5, Some(4)));
    assert_eq!(tenant, "acme");
    let (late, tenant) = find(&trace, "late", 0);
    assert_eq!((late.prompt_tokens, late.output_tokens, late.rank), (3, 4, Some(2)));
    assert!(tenant.starts_with("key-") && late.arrival_s > loud.arrival_s, "{tenant} {text}");
    for nth in 0..2 {
        assert_eq!(find(&trace, BASE, nth).0.output_tokens, 2);
    }
    let cancelled = find(&trace, BASE, 2).0.output_tokens;
    assert!((1..90_000).contains(&cancelled), "{cancelled}");
    assert_eq!(find(&trace, "loud", 1).0.output_tokens, 0);
}
