//! In: the engine, the adapters and the text side. Out: what every route shares, cheap to clone.

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::offload::Offload;
use crate::routes::openai::prompt::Context;
use crate::trace_recorder::TraceRecorder;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_adapters::{AdapterLease, AdapterRegistry};
use weft_engine::EngineHandle;
use weft_text::{ChatTemplate, Tokenizer};

/// How the server presents and limits itself.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The names of the base, the first being the one that cards and metrics use. Not empty.
    pub served_model_names: Vec<String>,
    /// What the base's card shows as `root`: the path or name it was started with.
    pub base_root: String,
    /// Whether `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` are open.
    pub allow_runtime_adapters: bool,
    /// Larger bodies are refused.
    pub max_body_bytes: usize,
    /// A silent stream sends a comment this often, so that proxies keep it open.
    pub keep_alive: Duration,
    /// Requests still running this long after shutdown began are ended.
    pub shutdown_timeout: Duration,
    /// Where each sequence that ends leaves a line.
    pub trace_recorder: Option<TraceRecorder>,
}

impl ServerConfig {
    /// The defaults, for a base called `name` that was started from `root`.
    #[must_use]
    pub fn new(name: impl Into<String>, root: impl Into<String>) -> Self {
        Self {
            served_model_names: vec![name.into()],
            base_root: root.into(),
            allow_runtime_adapters: false,
            max_body_bytes: 8 << 20,
            keep_alive: Duration::from_secs(15),
            shutdown_timeout: Duration::from_secs(30),
            trace_recorder: None,
        }
    }

    /// The name that cards and metrics use.
    #[must_use]
    pub fn base_name(&self) -> &str {
        self.served_model_names.first().map_or("base", String::as_str)
    }
}

/// What every route shares.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

struct Inner {
    engine: EngineHandle,
    adapters: AdapterRegistry,
    tokenizer: Tokenizer,
    template: Option<Arc<ChatTemplate>>,
    config: ServerConfig,
    metrics: Metrics,
    offload: Offload,
    started_unix: u64,
}

impl AppState {
    /// `template` is `None` for a base that cannot chat.
    #[must_use]
    pub fn new(
        engine: EngineHandle,
        adapters: AdapterRegistry,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        config: ServerConfig,
    ) -> Self {
        let metrics = Metrics::new(config.base_name());
        let template = template.map(Arc::new);
        let (offload, started_unix) = (Offload::new(), unix_seconds());
        let inner =
            Inner { engine, adapters, tokenizer, template, config, metrics, offload, started_unix };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.inner.engine
    }

    pub(crate) fn adapters(&self) -> &AdapterRegistry {
        &self.inner.adapters
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    pub(crate) fn template(&self) -> Option<&Arc<ChatTemplate>> {
        self.inner.template.as_ref()
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.inner.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Where tokenizing and rendering of long inputs goes.
    pub(crate) fn offload(&self) -> &Offload {
        &self.inner.offload
    }

    /// The longest prompt and output together, in tokens.
    pub(crate) fn max_model_len(&self) -> usize {
        let limits = self.inner.engine.limits();
        limits.max_model_len.min(limits.num_blocks * limits.block_size)
    }

    /// What a prompt for an adapter must fit.
    pub(crate) fn context(&self, adapter: Option<&AdapterLease>) -> Context {
        let num_virtual = adapter.map_or(0, |lease| lease.weights().num_virtual_tokens);
        Context { max_model_len: self.max_model_len(), num_virtual }
    }

    /// When the base was loaded, for its card.
    pub(crate) fn started_unix(&self) -> u64 {
        self.inner.started_unix
    }

    pub(crate) fn is_base(&self, model: &str) -> bool {
        self.inner.config.served_model_names.iter().any(|name| name == model)
    }

    /// The adapter that `model` names, pinned and loaded for a tenant; `None` is the base.
    pub(crate) async fn resolve(
        &self,
        model: &str,
        tenant: &Arc<str>,
    ) -> Result<Option<AdapterLease>, ApiError> {
        if self.is_base(model) {
            return Ok(None);
        }
        let lease = self.inner.adapters.resolve_for(model, tenant).await;
        lease.map(Some).map_err(|error| ApiError::from_resolve(&error, model))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
