//! `weft serve`: flags in, a running server out. Everything that can be refused is refused before
//! the port opens.

use crate::adapter_flags;
use crate::announcement::{Announcement, ServedAdapter};
use crate::args::{EngineArgs, ServeArgs};
use crate::cache::cache_dir;
use crate::demo;
use crate::device::{self, BuiltExecutor};
use crate::known_models::DEMO_MODEL;
use crate::model_source::{self, ModelSource};
use crate::progress::Terminal;
use crate::text_side;
use anyhow::{Context, Result, anyhow};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_adapters::{AdapterInfo, AdapterTier, RegistryConfig};
use weft_bench::{TraceAdapter, TraceHeader};
use weft_engine::EngineConfig;
use weft_server::{AppState, ServerConfig, TraceRecorder};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A server that answers.
#[derive(Debug)]
pub struct RunningServer {
    /// Where; the port is the real one if 0 was asked for.
    pub addr: SocketAddr,
    /// What to tell the user.
    pub announcement: Announcement,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl RunningServer {
    /// Stops accepting, lets running requests finish, stops the engine.
    ///
    /// # Errors
    /// If serving had failed.
    pub async fn shutdown(self) -> Result<()> {
        // An error here means that the server has ended already; its own outcome says why.
        let _ = self.stop.send(());
        self.task.await.context("the server ended early")??;
        Ok(())
    }

    /// Serves until `signal` resolves, then [`Self::shutdown`]s.
    ///
    /// # Errors
    /// If serving failed.
    pub async fn run_until(mut self, signal: impl Future<Output = ()>) -> Result<()> {
        tokio::select! {
            () = signal => self.shutdown().await,
            ended = &mut self.task => Ok(ended.context("the server ended early")??),
        }
    }
}

/// Starts a server: resolves and loads the model, loads the adapters, opens the port.
///
/// # Errors
/// A sentence about the flag, model or adapter that cannot be served.
pub async fn start(args: ServeArgs) -> Result<RunningServer> {
    let began = Instant::now();
    let host = SocketAddr::new(args.host, args.port);
    // Taken first and opened last: a port in use is known before a model is loaded, and until all
    // is ready connections are refused rather than kept waiting.
    let socket = reserve(host)?;
    let prepared = tokio::task::spawn_blocking(move || prepare(args))
        .await
        .map_err(|error| anyhow!("loading stopped: {error}"))??;
    let listener = socket.listen(BACKLOG)?;
    let addr = listener.local_addr()?;
    let announcement = Announcement { addr, took: began.elapsed(), ..prepared.announcement };
    let (stop, task) = spawn(listener, prepared.state);
    Ok(RunningServer { addr, announcement, stop, task })
}

fn reserve(host: SocketAddr) -> Result<TcpSocket> {
    let socket = if host.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(host).with_context(|| {
        format!("cannot listen on {host}; choose another --port, or stop what listens there")
    })?;
    Ok(socket)
}

fn spawn(
    listener: TcpListener,
    state: AppState,
) -> (oneshot::Sender<()>, JoinHandle<io::Result<()>>) {
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(weft_server::serve(listener, state, async {
        // A dropped sender is the wish to stop, too.
        let _ = stopped.await;
    }));
    (stop, task)
}

/// All that a server needs but the port.
struct Prepared {
    state: AppState,
    announcement: Announcement,
}

fn prepare(args: ServeArgs) -> Result<Prepared> {
    for note in adapter_flags::notes(&args.adapters) {
        tracing::info!("{note}");
    }
    let mut named = adapter_flags::named_adapters(&args.adapters)?;
    if args.demo {
        named.extend(demo::adapters(args.demo_dir.as_deref())?);
    }
    let source = find_model(args.model.as_deref())?;
    let text = text_side::load(&source.path)?;
    let BuiltExecutor { executor, spec, chunk_bytes, pages, base_weights, facts } =
        device::build_executor(&source.path, &args.engine, args.adapters.max_lora_rank)
            .with_context(|| format!("cannot serve {}", source.given))?;
    let mut names = args.served_model_name.clone();
    if names.is_empty() {
        names.push(source.default_name.clone());
    }
    let config = RegistryConfig {
        pages,
        base_weights,
        ..adapter_flags::registry_config(&args.adapters, spec.clone(), names.clone(), chunk_bytes)
    };
    let registry = adapter_flags::open_registry(&args.adapters, config, &named)?;
    let adapters = registry.list();
    let engine_config = queueing_config(&args, engine_config(&args.engine, args.max_queue))?;
    let handle = weft_engine::start(executor, spec.vocab_size, engine_config);
    let engine = handle.clone();
    registry.set_is_busy(move |tenant| engine.others_run(tenant));
    for hash in adapters.iter().filter(|info| info.pinned).filter_map(|info| info.content_hash) {
        handle.set_pinned(hash, true);
    }
    let mut config = ServerConfig::new(names[0].clone(), root_of(&source));
    config.served_model_names = names.clone();
    config.allow_runtime_adapters = args.allow_runtime_adapters;
    if let Some(path) = &args.record_trace {
        let header = trace_header(&names[0], &adapters);
        let recorder = TraceRecorder::create(path, header);
        config.trace_recorder =
            Some(recorder.with_context(|| format!("--record-trace {}", path.display()))?);
    }
    let can_chat = text.template.is_some();
    let announcement = Announcement {
        addr: SocketAddr::new(args.host, args.port),
        took: std::time::Duration::ZERO,
        base: names[0].clone(),
        facts,
        can_chat,
        adapters: adapters.into_iter().map(ServedAdapter::from).collect(),
    };
    let state = AppState::new(handle, registry, text.tokenizer, text.template, config);
    Ok(Prepared { state, announcement })
}

/// The model that was asked for, or the demo's.
///
/// # Errors
/// If there is none and none can be fetched.
pub(crate) fn find_model(given: Option<&str>) -> Result<ModelSource> {
    let given = given.unwrap_or(DEMO_MODEL.name);
    Ok(model_source::resolve(given, cache_dir().as_deref(), &Terminal::default())?)
}

pub(crate) fn engine_config(args: &EngineArgs, max_waiting: usize) -> EngineConfig {
    EngineConfig {
        max_waiting,
        enable_prefix_caching: !args.no_prefix_caching,
        eviction: args.eviction,
        target_step: target_step(args.target_step_ms),
        ..EngineConfig::default()
    }
}

/// Zero is no target.
pub(crate) fn target_step(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// What the flags say of how requests wait.
fn queueing_config(args: &ServeArgs, config: EngineConfig) -> Result<EngineConfig> {
    let weights = args.tenant_weight.iter().map(|given| {
        let parsed = given.rsplit_once('=').and_then(|(name, weight)| {
            let weight: f64 = weight.parse().ok()?;
            (weight.is_finite() && weight > 0.0)
                .then(|| (Arc::from(format!("user:{name}")), weight))
        });
        parsed.with_context(|| {
            format!("--tenant-weight {given}: write NAME=WEIGHT, such as acme=4, above 0")
        })
    });
    let timeout = args.queue_timeout.map(Duration::try_from_secs_f64).transpose();
    Ok(EngineConfig {
        queue_timeout: timeout.context("--queue-timeout is out of range")?,
        tenant_weights: weights.collect::<Result<_>>()?,
        ..config
    })
}

/// What is known of the adapters when a recording begins.
fn trace_header(base: &str, adapters: &[AdapterInfo]) -> TraceHeader {
    let adapters = adapters.iter().map(|info| TraceAdapter {
        name: info.name.clone(),
        rank: info.rank.and_then(|rank| u32::try_from(rank).ok()),
        bytes: (info.num_bytes > 0).then_some(info.num_bytes as u64),
    });
    TraceHeader::new(base, adapters.collect())
}

fn root_of(source: &ModelSource) -> String {
    let path: PathBuf = source.path.canonicalize().unwrap_or_else(|_| source.path.clone());
    path.display().to_string()
}

impl From<weft_adapters::AdapterInfo> for ServedAdapter {
    fn from(info: weft_adapters::AdapterInfo) -> Self {
        let is_loaded = info.tier == AdapterTier::Host;
        Self {
            name: info.name,
            rank: info.rank,
            num_bytes: is_loaded.then_some(info.num_bytes as u64),
        }
    }
}
