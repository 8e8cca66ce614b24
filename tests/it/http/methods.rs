//! Requests with fourteen different methods and the base, streamed in one batch: each gets the tokens and
//! the log probabilities that it gets alone, bit for bit.

use super::tiny_server;
use crate::support::golden;
use crate::support::server::Server;
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// The model that a request names and what it shows; the adapters are peft's, of `tests/golden`.
const REQUESTS: [(&str, &str); 15] = [
    ("base", "none"),
    ("rank8-rslora", "rsLoRA"),
    ("lora-bias", "LoRA with a bias of B"),
    ("dora", "DoRA"),
    ("adalora", "AdaLoRA"),
    ("vera", "VeRA"),
    ("ia3", "IA3"),
    ("loha", "LoHa"),
    ("lokr", "LoKr"),
    ("prompt-tuning", "prompt tuning"),
    ("prefix-tuning", "prefix tuning"),
    ("trained-tokens", "trained tokens"),
    ("houlsby", "bottlenecks of AdapterHub"),
    ("alora", "activated LoRA"),
    ("0.5*rank8-rslora+rank3-q-v", "composition"),
];
/// So many that the first request is far from its end when the last one comes.
const NUM_TOKENS: usize = 160;

/// Has the trained tokens of `trained-tokens` and the invocation of `alora` among others.
fn prompt() -> Vec<u32> {
    let text = (0..20).map(|i| 110 + i * 7 % 150);
    text.chain([7, 300, 41, 12, 1, 97, 98, 9, 8]).collect()
}

/// Each token's number and log probability, and the reason of the end, from the stream of one request.
async fn stream(server: &Server, model: &str) -> (Vec<u64>, Vec<Value>, Value) {
    let body = json!({ "model": model, "prompt": prompt(), "max_tokens": NUM_TOKENS, "temperature": 0,
                       "ignore_eos": true, "stream": true, "logprobs": 2, "return_token_ids": true });
    let (status, text) = server.post("/v1/completions", body.to_string()).await;
    assert_eq!(status, 200, "{model}: {text}");
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = data.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let (mut tokens, mut logprobs, mut reason) = (Vec::new(), Vec::new(), Value::Null);
    for chunk in chunks {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        assert_eq!(chunk["model"], model);
        let choice = &chunk["choices"][0];
        let ids = choice["token_ids"].as_array();
        tokens.extend(ids.into_iter().flatten().map(|id| id.as_u64().unwrap()));
        for key in ["token_logprobs", "top_logprobs"] {
            logprobs.extend(choice["logprobs"][key].as_array().into_iter().flatten().cloned());
        }
        reason = choice["finish_reason"].clone();
    }
    assert_eq!((tokens.len(), logprobs.len()), (NUM_TOKENS, 2 * NUM_TOKENS), "{model}");
    (tokens, logprobs, reason)
}

/// The most sequences that ran at once, and the most adapters, as the metrics have them until `ended`.
async fn peak(server: &Server, ended: &AtomicBool) -> (usize, usize) {
    let (mut sequences, mut adapters) = (0, 0);
    while !ended.load(Ordering::Relaxed) {
        let text = server.get("/metrics").await.1;
        let running = text.lines().find(|line| line.starts_with("vllm:num_requests_running"));
        let running = running.unwrap().rsplit(' ').next().unwrap();
        sequences = sequences.max(running.parse::<f64>().unwrap() as usize);
        let names = text.split("running_lora_adapters=\"").nth(1).unwrap().split('"').next();
        adapters = adapters.max(names.unwrap().split(',').filter(|name| !name.is_empty()).count());
    }
    (sequences, adapters)
}

#[tokio::test(flavor = "multi_thread")]
async fn fourteen_methods_stream_in_one_batch_and_each_answers_as_it_does_alone() {
    let adapter = |name: &str, path: &str| format!("{name}={}", golden(path).display());
    let more = [
        adapter("rank8-rslora", "adapters/rank8-rslora"),
        adapter("rank3-q-v", "adapters/rank3-q-v"),
        adapter("alora", "activated/linears"),
    ];
    let flags: Vec<&str> = more.iter().flat_map(|adapter| ["--adapter", adapter]).collect();
    let server = tiny_server("tiny-llama", "methods", &flags);
    let mut alone = Vec::new();
    for (model, _) in REQUESTS {
        alone.push(stream(&server, model).await);
    }

    let (mut together, mut seen) = (Vec::new(), (0, 0));
    // A busy machine may read the metrics too late: then once more.
    for _ in 0..10 {
        let ended = AtomicBool::new(false);
        let all = async {
            let answers = join_all(REQUESTS.map(|(model, _)| stream(&server, model))).await;
            ended.store(true, Ordering::Relaxed);
            answers
        };
        (together, seen) = tokio::join!(all, peak(&server, &ended));
        for ((model, _), (together, alone)) in REQUESTS.iter().zip(together.iter().zip(&alone)) {
            assert_eq!(together, alone, "{model}");
        }
        if seen == (REQUESTS.len(), REQUESTS.len() - 1) {
            break;
        }
    }
    let (sequences, adapters) = seen;
    println!("{sequences} sequences ran at once, with {adapters} adapters");
    println!(
        "| request | method | first of {NUM_TOKENS} tokens | log probability |\n|---|---|---|---|"
    );
    for ((model, method), (tokens, logprobs, _)) in REQUESTS.iter().zip(&together) {
        println!("| {model} | {method} | {:?} | {} |", &tokens[..8], logprobs[0]);
    }
    assert_eq!((sequences, adapters), (REQUESTS.len(), REQUESTS.len() - 1), "in one batch");
    let distinct: HashSet<String> =
        alone.iter().map(|(_, logprobs, _)| format!("{logprobs:?}")).collect();
    assert_eq!(distinct.len(), REQUESTS.len(), "each method changes the answer");
    server.assert_idle().await;
}
