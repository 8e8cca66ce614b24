//! The program with `--device cuda`, on the emulated driver.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");

fn weft(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(args).env("WEFT_CUDA_EMULATOR", weft_emulator::LIBRARY);
    command
}

/// Killed at the end.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(device: &str) -> Self {
        let model = format!("{GOLDEN}/models/tiny-llama");
        let adapter = format!("one={GOLDEN}/adapters/rank8-linears");
        let args = ["serve", &model, "--port", "0", "--memory", "16MiB", "--device", device];
        let mut process = weft(&args)
            .args(["--adapter", &adapter])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Self { process, url: String::new() };
        for line in lines {
            if let Some((_, rest)) = line.unwrap().split_once("http://") {
                server.url = format!("http://{}", rest.split_whitespace().next().unwrap());
                return server;
            }
        }
        panic!("the server ended without an announcement");
    }

    async fn complete(&self, model: &str) -> String {
        let body = json!({"model": model, "prompt": [5, 6, 7, 8], "max_tokens": 8,
            "temperature": 0, "ignore_eos": true, "return_token_ids": true});
        let url = format!("{}/v1/completions", self.url);
        let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_served_model_answers_as_on_the_cpu() {
    let (cpu, gpu) = (Server::start("cpu"), Server::start("cuda"));
    for model in ["tiny-llama", "one"] {
        // The second time the step was recorded, the third it is replayed.
        for _ in 0..3 {
            assert_eq!(gpu.complete(model).await, cpu.complete(model).await, "{model}");
        }
    }
    assert_ne!(cpu.complete("one").await, cpu.complete("tiny-llama").await);
}

#[test]
fn random_weights_and_random_adapters_need_no_files() {
    let output = weft(&["bench", "engine", "tiny", "--load-format", "dummy", "--device", "cuda"])
        .args(["--adapters", "20", "--rank", "8,16", "--memory", "64MiB", "--num-requests", "12"])
        .args(["--input-len", "20", "--output-len", "4", "--token-ids", "1-200"])
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("emulated GPU"), "{out}");
}

#[test]
fn a_shape_that_nobody_knows_is_told() {
    let output = weft(&["bench", "engine", "huge", "--load-format", "dummy", "--device", "cuda"])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("llama-3.1-8b"), "{err}");
}

#[test]
fn kernels_are_checked_at_tiny_shapes_and_say_that_nothing_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("kernels.json");
    let output = weft(&["bench", "kernels", "--shapes", "tiny", "--filter", "Norm"])
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("nothing is measured") && out.contains("all right"), "{out}");
    let row = out.lines().find(|line| line.starts_with("RMSNorm ") && line.contains("[8, 64]"));
    let cells: Vec<&str> = row.unwrap_or_else(|| panic!("{out}")).split_whitespace().collect();
    // The error, and no time, rate, bound or share of it.
    assert!(cells[3].parse::<f64>().is_ok_and(|error| error > 0.0 && error < 1e-3), "{out}");
    assert_eq!(cells[4..], ["-"; 4], "{out}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&report["measured"], &report["num_wrong"]), (&json!(false), &json!(0)));
    let rows = report["kernels"].as_array().unwrap();
    assert!(rows.len() == 10 && rows.iter().all(|row| row["ms"].is_null()), "{report}");
}

/// Every family of kernels runs, is compared, and is right: one row of each is enough here.
#[test]
fn every_family_of_kernels_is_right_at_a_tiny_shape() {
    for filter in [
        "linear W4 o [8,",
        "linear NF4 q k v [128,",
        "attention, decode 8 x 256",
        "attention, prefill 128 rows, 256",
        "RoPE, store [8,",
        "BGMV q k v zipf r8,16,32,64 [8,",
        "SGMV down of 4 r16",
        "gains [32,",
        "gated activation [8,",
        "gather [128, 64] → [8,",
        "embedding [256, 64] → [8,",
        "sampling, top-k 40, top-p 0.95 [8,",
    ] {
        let output =
            weft(&["bench", "kernels", "--shapes", "tiny", "--filter", filter]).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && out.contains("1 rows, all right"), "{out}\n{err}");
    }
    let nothing = weft(&["bench", "kernels", "--shapes", "tiny", "--filter", "fft"]);
    let err = { nothing }.output().unwrap().stderr;
    assert!(String::from_utf8_lossy(&err).contains("--filter fft"));
}

/// Runs the engine on a tiny model with random weights; what it says on both streams, if it fails.
fn bench_tiny(args: &[&str], order: &str) -> Result<(), String> {
    let output = weft(&["bench", "engine", "tiny", "--load-format", "dummy"])
        .args(["--num-requests", "2", "--warmup", "0", "--input-len", "9", "--output-len", "3"])
        .args(["--max-num-seqs", "2", "--max-num-batched-tokens", "16", "--max-lora-rank", "8"])
        .args(["--memory", "1MiB", "--max-model-len", "32", "--token-ids", "1-200"])
        .args(args)
        .env("WEFT_CUDA_EMULATOR_ORDER", order)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(format!("{out}\n{err}")) }
}

#[test]
fn numbers_of_activations_and_of_the_cache_are_chosen_by_flags() {
    for args in [["--dtype", "bf16"], ["--kv-cache-dtype", "bf16"], ["--kv-cache-dtype", "fp8"]] {
        bench_tiny(&[&["--device", "cuda"], &args[..]].concat(), "fixed").unwrap();
    }
}

#[test]
fn numbers_that_a_device_has_not_are_refused() {
    let refused = |args: &str, sentence: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        let said = bench_tiny(&args, "fixed").unwrap_err();
        assert!(said.contains(sentence), "{args:?}: {said}");
    };
    let f32_on_gpu = "--kv-cache-dtype f32 is for the CPU; a GPU takes f16, bf16 or fp8";
    refused("--device cuda --kv-cache-dtype f32", f32_on_gpu);
    let fp8_on_cpu = "--kv-cache-dtype fp8 is for GPUs; the CPU takes f32, f16, bf16 or int8";
    refused("--device cpu --kv-cache-dtype fp8", fp8_on_cpu);
    let int8_on_gpu = "--kv-cache-dtype int8 is for the CPU; a GPU takes f16, bf16 or fp8";
    refused("--device cuda --kv-cache-dtype int8", int8_on_gpu);
    refused("--device cuda --cpu-activations int12", "--cpu-activations is for the CPU");
    refused("--device cpu --dtype f16", "--dtype is for activations on a GPU");
}

#[test]
fn an_engine_does_not_depend_on_the_order_of_threads() {
    let args = ["--device", "cuda", "--adapters", "2", "--rank", "8"];
    bench_tiny(&args, "compared").unwrap();
    let said = bench_tiny(&args, "sideways").unwrap_err();
    assert!(said.contains("WEFT_CUDA_EMULATOR_ORDER: there is no order `sideways`"), "{said}");
}
