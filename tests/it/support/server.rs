//! A real server on a free loopback port, in a thread of its own.

use clap::Parser;
use serde_json::{Value, json};
use std::sync::mpsc;
use tokio::sync::oneshot;
use weft::args::{Cli, Command};

/// Ends with its value.
pub(crate) struct Server {
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// `weft serve` with these arguments, and nothing kept for a next start but where they say so.
    pub(crate) fn start(args: &[&str]) -> Self {
        let is_kept = args.iter().any(|arg| arg.starts_with("--weight-cache"));
        let cache = if is_kept { &[][..] } else { &["--weight-cache=off"] };
        let words = ["weft", "serve", "--port", "0"].iter().chain(cache).chain(args);
        let Some(Command::Serve(args)) = Cli::try_parse_from(words).expect("valid flags").command
        else {
            unreachable!("the command is serve")
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = weft::serve::start(*args).await.expect("the server starts");
                ready.send(server.addr).unwrap();
                let stopped = async {
                    let _ = stopped.await;
                };
                server.run_until(stopped).await.expect("the server ends well");
            });
        });
        let addr = started.recv().expect("the server starts");
        Self { url: format!("http://{addr}"), stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).body(body);
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post(path, body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The answer's text, greedily, of at most `max_tokens`.
    pub(crate) async fn chat(&self, model: &str, user: &str, max_tokens: u32) -> String {
        let body = json!({"model": model, "messages": [{"role": "user", "content": user}],
            "temperature": 0, "max_tokens": max_tokens});
        let (status, answer) = self.post_json("/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
    }

    /// The value of a metric without labels other than those it always has.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text
            .lines()
            .find(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until nothing runs or waits, then checks that all KV blocks are free.
    pub(crate) async fn assert_idle(&self) {
        for _ in 0..600 {
            let active = self.metric("vllm:num_requests_running").await
                + self.metric("vllm:num_requests_waiting").await;
            if active == 0.0 {
                assert_eq!(self.metric("vllm:kv_cache_usage_perc").await, 0.0, "a leaked block");
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("requests are still active");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("taken once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server ended with a panic");
    }
}
