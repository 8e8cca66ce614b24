//! In: what requests do, and the engine's counters. Out: Prometheus text under vLLM's names.
//!
//! What the engine counts is read from its atomics at each scrape; what only HTTP sees is kept
//! here. No series per adapter: gateways scrape twenty times a second.

use crate::state::{AppState, unix_seconds};
use crate::trace_recorder::TraceRecorder;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec,
    Opts, Registry, TextEncoder,
};
use std::time::Instant;
use weft_engine::{LoopTimes, MemoryStats, PoolUse};

/// The content type of the text format.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// What HTTP sees of requests.
pub(crate) struct Metrics {
    registry: Registry,
    base_name: String,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    /// By `finished_reason`.
    request_success: IntCounterVec,
    /// By `route` and `status`.
    http_responses: IntCounterVec,
}

impl Metrics {
    /// `base_name` is the `model_name` of every series.
    pub(crate) fn new(base_name: &str) -> Self {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts {
                common_opts: opts(name, help, base_name),
                buckets: buckets.to_vec(),
            };
            Histogram::with_opts(opts).expect("names are valid and buckets ascend")
        };
        let counters = |opts: Opts, labels: &[&str]| {
            IntCounterVec::new(opts, labels).expect("names are valid")
        };
        let metrics = Self {
            registry: Registry::new(),
            base_name: base_name.to_owned(),
            time_to_first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "Time from the arrival of a request to its first token.",
                FIRST_TOKEN_SECONDS,
            ),
            inter_token_latency: histogram(
                "vllm:inter_token_latency_seconds",
                "Time between two tokens of a request.",
                BETWEEN_TOKENS_SECONDS,
            ),
            e2e_request_latency: histogram(
                "vllm:e2e_request_latency_seconds",
                "Time from the arrival of a request to its end.",
                REQUEST_SECONDS,
            ),
            request_success: counters(
                opts("vllm:request_success_total", "Requests that ended.", base_name),
                &["finished_reason"],
            ),
            http_responses: counters(
                Opts::new("weft_http_responses_total", "Responses by route and status."),
                &["route", "status"],
            ),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        for reason in ["stop", "length", "abort", "error"] {
            self.request_success.with_label_values(&[reason]);
        }
        let collectors: [Box<dyn Collector>; 5] = [
            Box::new(self.time_to_first_token.clone()),
            Box::new(self.inter_token_latency.clone()),
            Box::new(self.e2e_request_latency.clone()),
            Box::new(self.request_success.clone()),
            Box::new(self.http_responses.clone()),
        ];
        for collector in collectors {
            self.registry.register(collector).expect("no two metrics share a name");
        }
    }

    /// Counts a response.
    pub(crate) fn response(&self, route: &str, status: u16) {
        self.http_responses.with_label_values(&[route, &status.to_string()]).inc();
    }

    /// Starts the clock of a sequence.
    pub(crate) fn start_sequence(&self) -> SequenceTimer {
        SequenceTimer {
            time_to_first_token: self.time_to_first_token.clone(),
            inter_token_latency: self.inter_token_latency.clone(),
            e2e_request_latency: self.e2e_request_latency.clone(),
            request_success: self.request_success.clone(),
            started: Instant::now(),
            last_token: None,
            finished: false,
        }
    }
}

/// Times one sequence. A sequence that is dropped before its end counts as aborted.
pub(crate) struct SequenceTimer {
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    request_success: IntCounterVec,
    started: Instant,
    last_token: Option<Instant>,
    finished: bool,
}

impl SequenceTimer {
    /// A token came.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.time_to_first_token.observe((now - self.started).as_secs_f64()),
            Some(last) => self.inter_token_latency.observe((now - last).as_secs_f64()),
        }
    }

    /// The sequence ended; only the first call counts.
    pub(crate) fn finish(&mut self, reason: &str) {
        if !self.finished {
            self.finished = true;
            self.request_success.with_label_values(&[reason]).inc();
            self.e2e_request_latency.observe(self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for SequenceTimer {
    fn drop(&mut self) {
        self.finish("abort");
    }
}

/// All metrics in the text format.
pub(crate) fn render(state: &AppState) -> Vec<u8> {
    let metrics = state.metrics();
    let mut families = engine_families(state);
    families.extend(metrics.registry.gather());
    let mut text = Vec::with_capacity(16 << 10);
    let encoded = TextEncoder::new().encode(&families, &mut text);
    encoded.expect("no family is empty, and writing to memory cannot fail");
    text
}

/// The engine's counters and gauges, as they are now.
fn engine_families(state: &AppState) -> Vec<MetricFamily> {
    let (stats, limits) = (state.engine().stats(), state.engine().limits());
    let memory = stats.memory();
    let base_name = &state.metrics().base_name;
    let gauge = |name: &str, help: &str, value: f64| {
        let gauge = Gauge::with_opts(opts(name, help, base_name)).expect("names are valid");
        gauge.set(value);
        gauge.collect()
    };
    let counter = |name: &str, help: &str, value: u64| {
        let counter = IntCounter::with_opts(opts(name, help, base_name)).expect("names are valid");
        counter.inc_by(value);
        counter.collect()
    };
    let recorder = state.config().trace_recorder.as_ref();
    let used_share = memory.pool.kv as f64 / limits.num_blocks.max(1) as f64;
    let families = [
        gauge("vllm:num_requests_running", "Sequences that run.", stats.running() as f64),
        gauge("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting() as f64),
        gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", used_share),
        counter(
            "vllm:prompt_tokens_total",
            "Prompt tokens, without virtual ones.",
            stats.prompt_tokens(),
        ),
        counter("vllm:prompt_tokens_cached_total", "Of those, cached.", stats.cached_tokens()),
        counter("vllm:generation_tokens_total", "Tokens drawn.", stats.generation_tokens()),
        counter("vllm:num_preemptions_total", "Preempted sequences.", stats.preemptions()),
        counter(
            "vllm:prefix_cache_queries_total",
            "Tokens looked up in the prefix cache.",
            stats.prefix_queries(),
        ),
        counter(
            "vllm:prefix_cache_hits_total",
            "Tokens found in the prefix cache.",
            stats.prefix_hits(),
        ),
        counter("weft:steps_total", "Steps that were computed or failed.", stats.steps()),
        counter(
            "weft:requests_expired_total",
            "Requests that waited longer than they may.",
            stats.expired(),
        ),
        counter(
            "weft:pool_audit_failures_total",
            "Audits of the memory pool that found a bug.",
            stats.damages(),
        ),
        counter(
            "weft:trace_lines_dropped_total",
            "Lines that a recorded trace lacks.",
            recorder.map_or(0, TraceRecorder::num_dropped),
        ),
        lora_info(state),
        cache_info(state),
        pool_chunks(&memory, base_name),
        loop_seconds(stats.loop_times(), base_name),
    ];
    families.into_iter().flatten().chain(adapter_families(state, &memory)).collect()
}

/// Chunks of the device's memory pool, by what is in them.
fn pool_chunks(memory: &MemoryStats, base_name: &str) -> Vec<MetricFamily> {
    let opts = opts("weft:pool_chunks", "Chunks of the device's memory pool.", base_name);
    let gauge = GaugeVec::new(opts, &["state"]).expect("names are valid");
    let PoolUse { free, kv, prefix, adapters, idle_adapters, .. } = memory.pool;
    for (state, chunks) in [
        ("free", free),
        ("kv", kv),
        ("prefix", prefix),
        ("adapters", adapters),
        ("idle_adapters", idle_adapters),
    ] {
        gauge.with_label_values(&[state]).set(chunks as f64);
    }
    gauge.collect()
}

/// What the engine's loop did with its time.
fn loop_seconds(times: LoopTimes, base_name: &str) -> Vec<MetricFamily> {
    let help = "What the engine's loop did with its time: execute is computing.";
    let opts = opts("weft:loop_seconds_total", help, base_name);
    let counter = CounterVec::new(opts, &["state"]).expect("names are valid");
    let LoopTimes { execute, plan, tell, idle } = times;
    for (state, time) in [("execute", execute), ("plan", plan), ("tell", tell), ("idle", idle)] {
        counter.with_label_values(&[state]).inc_by(time.as_secs_f64());
    }
    counter.collect()
}

/// Adapters between source, host and device.
fn adapter_families(state: &AppState, memory: &MemoryStats) -> Vec<MetricFamily> {
    let base_name = &state.metrics().base_name;
    let host = state.adapters().stats();
    let chunk_bytes = state.engine().limits().chunk_bytes as u64;
    let device = memory.counters;
    let num_resident = memory.adapters.iter().filter(|adapter| adapter.is_resident).count();
    let gauges = [
        ("weft:adapters_on_device", "Adapters on the device.", num_resident as f64),
        ("weft:adapters_in_host_memory", "Adapters in host memory.", host.num_in_host as f64),
        ("weft:adapters_loading", "Loads from sources in flight.", host.num_loading as f64),
        ("weft:adapter_host_bytes", "Host memory of adapters.", host.host_bytes as f64),
    ];
    let counters = [
        ("weft:adapter_hits_total", "Sequences that found their adapter loaded.", device.hits),
        ("weft:adapter_misses_total", "Sequences that waited for it.", device.misses),
        ("weft:adapter_loads_total", "Copies to the device.", device.loads),
        ("weft:adapter_loaded_bytes_total", "Bytes of those.", device.loaded_chunks * chunk_bytes),
        ("weft:adapter_evictions_total", "Adapters that left the device.", device.evictions),
        ("weft:adapter_host_evictions_total", "Adapters that left the host.", host.evictions),
        ("weft:adapter_source_loads_total", "Loads from sources.", host.loads_ok),
        ("weft:adapter_source_failures_total", "Those that failed.", host.loads_failed),
        ("weft:adapter_source_bytes_total", "Bytes read from sources.", host.bytes_read),
    ];
    let gauges = gauges.into_iter().flat_map(|(name, help, value)| {
        let gauge = Gauge::with_opts(opts(name, help, base_name)).expect("names are valid");
        gauge.set(value);
        gauge.collect()
    });
    let counters = counters.into_iter().flat_map(|(name, help, value)| {
        let counter = IntCounter::with_opts(opts(name, help, base_name)).expect("names are valid");
        counter.inc_by(value);
        counter.collect()
    });
    gauges.chain(counters).collect()
}

/// One series only: gateways take the newest, and old ones would pile up.
fn lora_info(state: &AppState) -> Vec<MetricFamily> {
    let adapters = state.engine().stats().adapters();
    let max_lora = state.engine().limits().max_num_seqs.to_string();
    let labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"];
    let opts = Opts::new("vllm:lora_requests_info", "Adapters of running and waiting requests.");
    let gauge = GaugeVec::new(opts, &labels).expect("names are valid");
    let values = [max_lora, adapters.running.join(","), adapters.waiting.join(",")];
    gauge.with_label_values(&values).set(unix_seconds() as f64);
    gauge.collect()
}

fn cache_info(state: &AppState) -> Vec<MetricFamily> {
    let limits = state.engine().limits();
    let opts = opts("vllm:cache_config_info", "The KV cache.", &state.metrics().base_name)
        .const_label("block_size", limits.block_size.to_string())
        .const_label("num_gpu_blocks", limits.num_blocks.to_string());
    let gauge = Gauge::with_opts(opts).expect("names are valid");
    gauge.set(1.0);
    gauge.collect()
}

fn opts(name: &str, help: &str, base_name: &str) -> Opts {
    Opts::new(name, help).const_label("model_name", base_name).const_label("engine", "0")
}
