//! A server on a loopback port, and a client for it.

use crate::parrot::{Parrot, Seen};
use crate::tokenizer_files::{self, VOCAB_SIZE};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_adapters::{AdapterRegistry, LocalOnly, RegistryConfig, RemoteSources};
use weft_engine::{EngineConfig, EngineHandle};
use weft_server::{AppState, ServerConfig, serve};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;
use weft_text::{ChatTemplate, Tokenizer};
use weft_types::ExecutorLimits;

/// The base's name.
pub(crate) const BASE: &str = "base";
pub(crate) const MAX_MODEL_LEN: usize = 512;

pub(crate) struct Options {
    pub(crate) allow_runtime_adapters: bool,
    pub(crate) max_waiting: usize,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_model_len: usize,
    pub(crate) with_template: bool,
    pub(crate) keep_alive: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) remote: Arc<dyn RemoteSources>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow_runtime_adapters: true,
            max_waiting: 256,
            max_body_bytes: 8 << 20,
            max_num_seqs: 32,
            max_model_len: MAX_MODEL_LEN,
            with_template: true,
            keep_alive: Duration::from_secs(15),
            shutdown_timeout: Duration::from_secs(30),
            remote: Arc::new(LocalOnly),
        }
    }
}

pub(crate) struct Server {
    pub(crate) client: reqwest::Client,
    pub(crate) url: String,
    pub(crate) engine: EngineHandle,
    pub(crate) seen: Seen,
    pub(crate) adapter_dir: PathBuf,
    pub(crate) running: JoinHandle<std::io::Result<()>>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    _dir: TempDir,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The `data:` of all events but the last, which must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<_> =
            self.text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// With the adapters `loud` (loaded) and `calm` (in the adapter directory, not loaded).
    pub(crate) async fn with(options: Options) -> Self {
        let dir = TempDir::new().unwrap();
        tokenizer_files::write(dir.path()).unwrap();
        let adapter_dir = dir.path().join("adapters");
        for (name, seed) in [("calm", 1), ("../loud", 2), ("../other", 3)] {
            let adapter = RandomAdapter::of_rank(4, seed);
            let path = adapter_dir.join(name);
            std::fs::create_dir_all(&adapter_dir).unwrap();
            adapter.write(&tiny_llama_spec(), &path).unwrap();
        }
        let registry = AdapterRegistry::new(RegistryConfig {
            base_names: vec![BASE.into(), "alias".into()],
            max_lora_rank: 64,
            adapter_dir: Some(adapter_dir.clone()),
            remote: options.remote,
            ..RegistryConfig::new(tiny_llama_spec())
        });
        let registry = registry.unwrap();
        registry.add_static("loud", &dir.path().join("loud")).unwrap();

        let limits = ExecutorLimits {
            block_size: 16,
            num_blocks: options.max_model_len.div_ceil(16) * 4,
            chunk_bytes: 1 << 16,
            max_model_len: options.max_model_len,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: 1024,
        };
        let engine_config =
            EngineConfig { max_waiting: options.max_waiting, ..EngineConfig::default() };
        let seen = Seen::default();
        let parrot = Parrot::new(limits, seen.clone());
        let engine = weft_engine::start(Box::new(parrot), VOCAB_SIZE, engine_config);

        let tokenizer = Tokenizer::from_hf_dir(dir.path()).unwrap();
        let template = ChatTemplate::from_hf_dir(dir.path()).unwrap();
        let template = template.filter(|_| options.with_template);
        let config = ServerConfig {
            served_model_names: vec![BASE.into(), "alias".into()],
            allow_runtime_adapters: options.allow_runtime_adapters,
            max_body_bytes: options.max_body_bytes,
            keep_alive: options.keep_alive,
            shutdown_timeout: options.shutdown_timeout,
            ..ServerConfig::new(BASE, "models/base.gguf")
        };
        let state = AppState::new(engine.clone(), registry, tokenizer, template, config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let running = tokio::spawn(serve(listener, state, shutdown));
        let client = reqwest::Client::new();
        Self { client, url, engine, seen, adapter_dir, running, stop: Some(stop), _dir: dir }
    }

    /// A path beside the adapter directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self._dir.path().join(name).display().to_string()
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.header("x-request-id", "test").send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(format!("{}{path}", self.url))).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub(crate) async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url));
        self.send(request.header(CONTENT_TYPE, "application/json").body(body)).await
    }

    /// The answer of a completion that must succeed.
    pub(crate) async fn complete(&self, body: Value) -> Value {
        let answer = self.post("/v1/completions", &with_model(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    /// The same for a chat.
    pub(crate) async fn chat(&self, body: Value) -> Value {
        let answer = self.post("/v1/chat/completions", &with_model(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    /// Waits until the engine holds nothing.
    pub(crate) async fn idle(&self) {
        let stats = self.engine.stats();
        while stats.running() + stats.waiting() + stats.blocks_used() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Adds the base as `model` if there is none.
pub(crate) fn with_model(mut body: Value) -> Value {
    body.as_object_mut().unwrap().entry("model").or_insert_with(|| BASE.into());
    body
}
