//! What requests may load from where, and models that nobody loaded.

use crate::harness::{Answer, Options, Server};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::get;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use weft_sources::{AllowList, ResolverRule, Sources, SourcesConfig};
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;

/// A web server over a directory with the adapter `sql`; the directory may be loaded from, too.
struct Elsewhere {
    dir: TempDir,
    url: String,
}

impl Elsewhere {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        for (name, seed) in [("sql", 7), ("secret", 8)] {
            let adapter = RandomAdapter::of_rank(4, seed);
            adapter.write(&tiny_llama_spec(), &dir.path().join(name)).unwrap();
        }
        let app = Router::new().fallback(get(file)).with_state(dir.path().to_owned());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { dir, url }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    async fn server(&self, allow: &[&str], rules: &[&str]) -> Server {
        let cache = self.dir.path().join("cache");
        let mut config = SourcesConfig::new(cache.clone(), cache.join("hub"));
        config.allow = AllowList::parse(allow.iter().copied()).unwrap();
        config.rules = rules.iter().map(|rule| ResolverRule::parse(rule).unwrap()).collect();
        let remote = Arc::new(Sources::new(config).unwrap());
        Server::with(Options { remote, ..Options::default() }).await
    }
}

async fn file(State(root): State<PathBuf>, uri: Uri) -> Result<Vec<u8>, StatusCode> {
    let path = Path::new(uri.path().trim_start_matches('/'));
    std::fs::read(root.join(path)).map_err(|_| StatusCode::NOT_FOUND)
}

async fn load(server: &Server, given: &str) -> Answer {
    server.post("/v1/load_lora_adapter", &json!({ "lora_name": "x", "lora_path": given })).await
}

async fn complete(server: &Server, model: &str) -> Answer {
    let body = json!({ "model": model, "prompt": "ab", "max_tokens": 2 });
    server.post("/v1/completions", &body).await
}

fn assert_forbidden(answer: &Answer) {
    assert_eq!(answer.status, 403, "{}", answer.text);
    assert_eq!(answer.json()["error"]["code"], "adapter_source_not_allowed");
    assert_eq!(answer.json()["error"]["param"], "lora_path");
    assert!(answer.message().contains("--adapter-source-allow"), "{}", answer.message());
}

#[tokio::test]
async fn without_an_allow_list_requests_load_only_from_this_machine() {
    let elsewhere = Elsewhere::start().await;
    let server = elsewhere.server(&[], &[]).await;
    let url = format!("{}/sql/", elsewhere.url);
    for given in ["hf://acme/sql", "s3://bucket/sql", "https://example.com/sql", &url] {
        assert_forbidden(&load(&server, given).await);
    }
    assert_eq!(load(&server, &elsewhere.path("sql")).await.status, 200);
}

#[tokio::test]
async fn with_an_allow_list_requests_load_what_it_covers_and_nothing_else() {
    let elsewhere = Elsewhere::start().await;
    let (local, web) = (elsewhere.path("sql"), format!("{}/sql", elsewhere.url));
    let server = elsewhere.server(&[&local, &web], &[]).await;
    assert_forbidden(&load(&server, &elsewhere.path("secret")).await);
    assert_forbidden(&load(&server, &format!("{}/secret", elsewhere.url)).await);
    let upwards = load(&server, &format!("{local}/../secret")).await;
    assert_eq!(upwards.status, 403, "{}", upwards.text);
    let odd = load(&server, "ftp://example.com/sql").await;
    assert_eq!(odd.status, 400, "{}", odd.text);
    assert!(odd.message().contains("write a path, hf://"), "{}", odd.message());
    let loaded = load(&server, &web).await;
    assert_eq!(loaded.text, "Success: LoRA adapter 'x' added successfully.");
    assert_eq!(complete(&server, "x").await.status, 200);
    let listed = server.get("/v1/adapters").await.json();
    let paths: Vec<_> = listed["data"].as_array().unwrap().iter().map(|a| &a["path"]).collect();
    assert!(paths.contains(&&json!(format!("{web}/"))), "{paths:?}");
}

#[tokio::test]
async fn a_model_that_a_rule_finds_is_served_and_another_does_not_exist() {
    let elsewhere = Elsewhere::start().await;
    let rule = format!("acme/*={}/{{name}}", elsewhere.url);
    let server = elsewhere.server(&[], &[&rule]).await;
    assert_eq!(complete(&server, "acme/sql").await.status, 200);
    for unknown in ["acme/none", "other/sql"] {
        for _ in 0..2 {
            let answer = complete(&server, unknown).await;
            assert_eq!(answer.status, 404);
            assert_eq!(answer.message(), format!("The model `{unknown}` does not exist."));
        }
    }
}
