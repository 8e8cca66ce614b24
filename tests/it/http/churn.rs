//! More adapters than the device holds, and than the host holds: each answers as if it were alone.

use crate::support::golden;
use crate::support::server::Server;
use futures::future::join_all;
use serde_json::{Value, json};
use std::path::Path;
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;

const NUM_ADAPTERS: usize = 40;
const ADAPTER: &str = "adapter_model.safetensors";

/// Adapters `a0`, `a1`, …, of 8 KiB for each rank.
fn write_adapters(dir: &Path, num_adapters: usize) {
    for index in 0..num_adapters {
        write(&dir.join(format!("a{index}")), index);
    }
}

fn write(path: &Path, index: usize) {
    let rank = [4, 8, 6][index % 3];
    RandomAdapter::of_rank(rank, index as u64).write(&tiny_llama_spec(), path).unwrap();
}

fn server(dir: &Path, flags: &[&str]) -> Server {
    let model = golden("models/tiny-llama");
    let mut args = vec![model.to_str().unwrap(), "--served-model-name=base"];
    args.extend(["--max-model-len=128", "--adapter-dir", dir.to_str().unwrap()]);
    args.extend(flags);
    Server::start(&args)
}

async fn post(server: &Server, model: &str, index: usize) -> (u16, Value) {
    let body = json!({"model": model, "prompt": format!("the number {}", index % 5),
        "temperature": 0, "max_tokens": 12 + index % 3, "ignore_eos": true, "logprobs": 1});
    server.post_json("/v1/completions", &body).await
}

/// Text and log probabilities: all that must not change.
async fn ask(server: &Server, model: &str, index: usize) -> Value {
    let (status, answer) = post(server, model, index).await;
    assert_eq!(status, 200, "{model}: {answer}");
    json!([answer["choices"][0]["text"], answer["choices"][0]["logprobs"]])
}

fn model_of(index: usize) -> String {
    format!("a{}", (index * 7 + index / 9) % NUM_ADAPTERS)
}

async fn assert_sound(server: &Server) {
    server.assert_idle().await;
    assert_eq!(server.metric("weft:pool_audit_failures_total").await, 0.0);
    let list: Value = serde_json::from_str(&server.get("/v1/adapters").await.1).unwrap();
    assert_eq!(list["pool"]["kv"], 0, "{list}");
    let leases = list["data"].as_array().unwrap().iter().map(|one| one["leases"].as_u64().unwrap());
    assert_eq!(leases.sum::<u64>(), 0, "{list}");
}

/// 64 requests of 8 clients under `tight` flags get what each gets alone with plenty of memory.
async fn churn(dtype: &str, tight: &[&str]) -> Server {
    let dir = tempfile::tempdir().unwrap();
    write_adapters(dir.path(), NUM_ADAPTERS);
    let ample = server(dir.path(), &["--memory=16MiB", dtype]);
    let mut alone = Vec::new();
    for index in 0..64 {
        alone.push(ask(&ample, &model_of(index), index).await);
    }
    let distinct: std::collections::HashSet<_> = alone.iter().map(Value::to_string).collect();
    assert!(distinct.len() > 40, "adapters do differ: {}", distinct.len());

    let mut flags = vec![dtype];
    flags.extend(tight);
    let tight = server(dir.path(), &flags);
    let client = async |client: usize| {
        for index in (0..64).filter(|index| index % 8 == client) {
            assert_eq!(ask(&tight, &model_of(index), index).await, alone[index], "request {index}");
        }
    };
    join_all((0..8).map(client)).await;
    assert!(tight.metric("weft:adapter_evictions_total").await > 0.0, "the device was too large");
    assert_sound(&tight).await;
    assert_eq!(ask(&tight, &model_of(1), 1).await, alone[1]);
    tight
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_adapters_in_room_for_four_answer_as_each_alone() {
    let server = churn("--adapter-dtype=auto", &["--memory=500KiB"]).await;
    assert_eq!(server.metric("weft:adapter_host_evictions_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_adapters_in_a_small_host_memory_answer_as_each_alone() {
    let flags = ["--memory=500KiB", "--adapter-host-memory=1MiB"];
    let server = churn("--adapter-dtype=auto", &flags).await;
    assert!(server.metric("weft:adapter_host_evictions_total").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_adapters_of_eight_bits_in_small_memories_answer_as_each_alone() {
    let flags = ["--memory=200KiB", "--adapter-host-memory=300KiB"];
    let server = churn("--adapter-dtype=int8", &flags).await;
    assert!(server.metric("weft:adapter_host_evictions_total").await > 0.0);
}

/// What happens to the files of an adapter.
fn damage(path: &Path, how: usize) {
    let file = path.join(ADAPTER);
    match how {
        0 => std::fs::remove_dir_all(path).unwrap(),
        1 => {
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        }
        // What cannot be read, even by root: a directory in place of the file.
        2 => {
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
        }
        _ => std::fs::write(path.join("adapter_config.json"), "{").unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_lose_their_files_fail_alone_and_come_back_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |index: usize| dir.path().join(format!("a{index}"));
    write_adapters(dir.path(), 16);
    write(&dir.path().join("new"), 21);
    let server = server(dir.path(), &["--memory=500KiB", "--adapter-host-memory=300KiB"]);
    let mut before = Vec::new();
    for index in 0..16 {
        before.push(ask(&server, &format!("a{index}"), 0).await);
    }
    let (base, new) = (ask(&server, "base", 0).await, ask(&server, "new", 0).await);
    let others_go_on = async || {
        for (index, before) in before.iter().enumerate().skip(5) {
            assert_eq!(ask(&server, &format!("a{index}"), 0).await, *before, "a{index}");
        }
        assert_eq!(ask(&server, "base", 0).await, base);
    };
    // Until the first five are on disk only, from which they are read when they are asked for.
    let others_push_them_out = async || {
        for attempt in 0.. {
            assert!(attempt < 20, "they stay in memory");
            others_go_on().await;
            let list: Value = serde_json::from_str(&server.get("/v1/adapters").await.1).unwrap();
            let first = |one: &&Value| (0..5).any(|index| one["name"] == format!("a{index}"));
            let mut first = list["data"].as_array().unwrap().iter().filter(first);
            if first.all(|one| one["tier"] == "source") {
                break;
            }
        }
    };
    (0..4).for_each(|index| damage(&path(index), index));
    // The fifth becomes another adapter.
    write(&path(4), 21);
    others_push_them_out().await;
    for _ in 0..3 {
        let failing = async |index: usize| {
            let (status, answer) = post(&server, &format!("a{index}"), 0).await;
            assert!((400..500).contains(&status) || status == 503, "a{index}: {status} {answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.len() > 20 && message.contains(&format!("a{index}")), "{message}");
        };
        tokio::join!(join_all((0..4).map(failing)), others_go_on());
        assert_eq!(ask(&server, "a4", 0).await, new);
    }

    for index in 0..5 {
        let _ = std::fs::remove_dir_all(path(index));
        write(&path(index), index);
    }
    others_push_them_out().await;
    for (index, before) in before.iter().enumerate().take(5) {
        let model = format!("a{index}");
        // A failure is remembered for a while.
        for attempt in 0.. {
            assert!(attempt < 200, "{model} does not come back");
            if post(&server, &model, 0).await.0 == 200 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(ask(&server, &model, 0).await, *before, "{model}");
    }
    assert_sound(&server).await;
}
