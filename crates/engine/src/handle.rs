//! The engine as others see it: start it, send it requests, ask how it is, stop it.

use crate::adapted_prompt::AdaptedPrompt;
use crate::command::{Command, Outlet, Submission};
use crate::shared::{AliveGuard, Phase, Shared};
use crate::stats::EngineStats;
use crate::step::Engine;
use crate::stream::RequestStream;
use crate::submit::{SubmitError, check_request, max_events};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tokio::sync::mpsc;
use weft_adapters::AdapterLease;
use weft_scheduler::{CostModel, EvictionKind, SchedulerConfig};
use weft_types::{ContentHash, Executor, ExecutorLimits, GenerateRequest};

/// How the engine treats requests. What it can hold is the executor's to say.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Requests that may be accepted and not run yet; more are refused at once. At least 1.
    pub max_waiting: usize,
    /// Whether KV blocks of earlier requests are reused for equal prefixes.
    pub enable_prefix_caching: bool,
    /// How long a request that says nothing else may wait before it runs.
    pub queue_timeout: Option<Duration>,
    /// What leaves the memory first.
    pub eviction: EvictionKind,
    /// What steps and loads cost on this device.
    pub costs: CostModel,
    /// How long a step should take while requests decode; `None` is any time.
    pub target_step: Option<Duration>,
    /// Shares of tenants; others have 1.
    pub tenant_weights: Vec<(Arc<str>, f64)>,
}

impl Default for EngineConfig {
    /// 1024 waiting requests, steps of a tenth of a second, with prefix caching.
    fn default() -> Self {
        Self {
            max_waiting: 1024,
            enable_prefix_caching: true,
            queue_timeout: None,
            eviction: EvictionKind::default(),
            costs: CostModel::default(),
            target_step: Some(Duration::from_millis(100)),
            tenant_weights: Vec::new(),
        }
    }
}

/// Reaches the loop from any thread. Cheap to clone. When the last one is dropped, the loop
/// completes what it has accepted, and ends.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

struct Inner {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
    vocab_size: usize,
    max_waiting: usize,
    queue_timeout: Option<Duration>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Starts the loop on a thread named `weft-engine`, which costs nothing while it has no requests.
///
/// # Panics
/// If the operating system gives no thread, or if the executor can hold nothing.
#[must_use]
pub fn start(executor: Box<dyn Executor>, vocab_size: usize, config: EngineConfig) -> EngineHandle {
    let max_waiting = config.max_waiting.max(1);
    let shared = Arc::new(Shared::new(executor.limits()));
    // At most `max_waiting` requests are accepted and unread; one more place is for `Wake`.
    let (commands, inbox) = sync_channel(max_waiting + 1);
    let queue_timeout = config.queue_timeout;
    let scheduling = SchedulerConfig {
        enable_prefix_caching: config.enable_prefix_caching,
        eviction: config.eviction,
        costs: config.costs,
        target_step: config.target_step,
        tenant_weights: config.tenant_weights,
        ..SchedulerConfig::new(shared.limits.clone())
    };
    let engine = Engine::new(executor, scheduling, inbox, Arc::clone(&shared));
    let guard = AliveGuard(Arc::clone(&shared));
    let run = move || {
        let _guard = guard;
        engine.run();
    };
    let thread = Builder::new().name("weft-engine".to_owned()).spawn(run);
    let thread = thread.expect("the operating system gives a thread for the engine");
    let thread = Mutex::new(Some(thread));
    let inner = Inner { commands, shared, vocab_size, max_waiting, queue_timeout, thread };
    EngineHandle { inner: Arc::new(inner) }
}

impl EngineHandle {
    /// Queues a request. `adapter` stays pinned until its last event. Never blocks.
    ///
    /// # Errors
    /// As the variants of [`SubmitError`] say.
    pub fn submit(
        &self,
        mut request: GenerateRequest,
        adapter: Option<AdapterLease>,
    ) -> Result<RequestStream, SubmitError> {
        let Inner { commands, shared, vocab_size, max_waiting, queue_timeout, .. } = &*self.inner;
        if shared.phase() != Phase::Open || !shared.is_alive() {
            return Err(SubmitError::Stopped);
        }
        let layout = adapter.as_ref().map(|lease| &*lease.weights().layout);
        let prompt = AdaptedPrompt::new(&request.prompt, layout, *vocab_size);
        let active = layout.filter(|_| prompt.active_from.is_some());
        let adapter_chunks = active.map_or(0, |layout| layout.num_chunks);
        check_request(&request, prompt.num_virtual, &shared.limits, *vocab_size, adapter_chunks)?;
        let queueing = &mut request.queueing;
        queueing.timeout = queueing.timeout.or(*queue_timeout);
        if let (Some(timeout), Some(wait)) = (queueing.timeout, shared.stats.expected_wait())
            && wait > timeout
        {
            return Err(SubmitError::TooLate { wait_s: wait.as_secs_f64().ceil() as u64 });
        }
        let slot = shared.take_slot(&queueing.tenant, *max_waiting)?;
        let id = shared.next_id();
        let (sender, receiver) = mpsc::channel(max_events(&request, &shared.limits));
        let outlet = Outlet { events: sender, lease: adapter, adapter: None, slot };
        let timeout_ms = request.queueing.timeout.map(|timeout| timeout.as_millis() as u64);
        let deadline_ms = timeout_ms.map(|timeout| shared.now_ms().saturating_add(timeout));
        let submission = Box::new(Submission { id, request, prompt, deadline_ms, outlet });
        commands.try_send(Command::Submit(submission)).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::QueueFull { max: *max_waiting },
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })?;
        Ok(RequestStream::new(id, receiver))
    }

    /// Whether the adapter with this content, once it is on the device, stays there.
    pub fn set_pinned(&self, content: ContentHash, is_pinned: bool) {
        // Waits for a place if there is none: the loop reads all that has come before each step.
        let _ = self.inner.commands.send(Command::Pin(content, is_pinned));
    }

    /// Takes what has this content off the device, pinned or not, if no request uses it; else it
    /// leaves like others.
    pub fn discard(&self, content: ContentHash) {
        let _ = self.inner.commands.send(Command::Discard(content));
    }

    /// What the executor can hold.
    #[must_use]
    pub fn limits(&self) -> &ExecutorLimits {
        &self.inner.shared.limits
    }

    /// What the engine counts.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        &self.inner.shared.stats
    }

    /// Whether requests of others than this tenant are being served.
    #[must_use]
    pub fn others_run(&self, tenant: &str) -> bool {
        self.inner.shared.others_run(tenant)
    }

    /// Whether the loop thread is there. False after a shutdown, or after a bug ended it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.shared.is_alive()
    }

    /// Accepts no more requests, and returns at once. With `drain` those accepted are completed,
    /// without it they fail before the next step; then the loop ends.
    pub fn begin_shutdown(&self, drain: bool) {
        self.inner.shared.move_to(if drain { Phase::Draining } else { Phase::Stopping });
        // If the channel is full, the loop has something to read and is awake anyway.
        let _ = self.inner.commands.try_send(Command::Wake);
    }

    /// As [`Self::begin_shutdown`], and blocks until the loop has ended. May be called again, from
    /// any thread: without `drain` it cuts short a draining that is under way.
    pub fn shutdown(&self, drain: bool) {
        self.begin_shutdown(drain);
        // Whoever comes second waits for the lock, and so for the thread.
        if let Some(thread) = self.inner.thread.lock().take() {
            // A panic of the loop was reported when it happened.
            let _ = thread.join();
        }
    }
}
