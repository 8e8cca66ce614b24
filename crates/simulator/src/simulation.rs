//! The loop of the engine, with a clock that jumps: arrivals → plan → time passes → commit.

use crate::device::Device;
use rustc_hash::FxHashMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;
use weft_bench::{SimRecorder, SimReport, TraceAdapter, TraceRequest};
use weft_scheduler::{AdapterSpec, NewSequence, Scheduler, SchedulerConfig, SequenceEvent};
use weft_types::{
    ContentHash, SeqId, SequenceOutput, StepOutput, StepPlan, StopConditions, TokenEvent, TokenId,
};

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimulationConfig {
    /// For the report.
    pub title: String,
    /// The scheduler, the memory, and what things cost.
    pub scheduling: SchedulerConfig,
    /// What is known of the adapters, by index; may be empty.
    pub adapters: Vec<TraceAdapter>,
    /// Bytes of an adapter for each unit of its rank, if its bytes are not known.
    pub bytes_per_rank: u64,
    /// The rank of adapters of which neither the trace nor `adapters` says it.
    pub default_rank: u32,
    /// Requests that may wait; more are refused.
    pub max_waiting: usize,
    /// Closed loop: a request comes when another ends, so that so many are there; else by the
    /// trace's times.
    pub max_in_flight: Option<usize>,
    /// Tenants' names, by index.
    pub tenants: Vec<String>,
}

/// Runs `requests`, which are sorted by arrival, to the end. `progress` is called with how many
/// have ended, now and then.
pub fn simulate(
    requests: impl Iterator<Item = TraceRequest>,
    config: SimulationConfig,
    progress: impl FnMut(u64),
) -> SimReport {
    let mut simulation = Simulation::new(config, progress);
    simulation.run(&mut requests.peekable());
    simulation.report()
}

struct Simulation<P> {
    config: SimulationConfig,
    scheduler: Scheduler,
    device: Device,
    now_s: f64,
    num_arrived: u64,
    num_ended: u64,
    live: FxHashMap<SeqId, Live>,
    /// The last step that each adapter was part of.
    last_step: FxHashMap<ContentHash, u64>,
    tenant_names: Vec<Arc<str>>,
    recorder: SimRecorder,
    progress: P,
    num_steps: u64,
    plan: StepPlan,
    output: StepOutput,
    events: Vec<SequenceEvent>,
}

struct Live {
    request: TraceRequest,
    adapter: Option<AdapterSpec>,
    first_token_s: f64,
    last_token_s: f64,
}

/// Requests between two calls of `progress`.
const PROGRESS_STEP: u64 = 1000;

impl<P: FnMut(u64)> Simulation<P> {
    fn new(config: SimulationConfig, progress: P) -> Self {
        Self {
            scheduler: Scheduler::new(config.scheduling.clone()),
            device: Device::new(config.scheduling.costs),
            tenant_names: config.tenants.iter().map(|name| Arc::from(name.as_str())).collect(),
            config,
            now_s: 0.0,
            num_arrived: 0,
            num_ended: 0,
            live: FxHashMap::default(),
            last_step: FxHashMap::default(),
            recorder: SimRecorder::default(),
            progress,
            num_steps: 0,
            plan: StepPlan::default(),
            output: StepOutput::default(),
            events: Vec::new(),
        }
    }

    fn run(&mut self, requests: &mut Peekable<impl Iterator<Item = TraceRequest>>) {
        loop {
            self.admit_arrived(requests);
            while let Some(adapter) = self.device.loaded(self.now_s) {
                self.scheduler.adapter_loaded(adapter);
            }
            self.scheduler.expire((self.now_s * 1e3) as u64, &mut self.events);
            self.scheduler.plan(&mut self.plan);
            self.begin_loads();
            if self.plan.is_empty() {
                self.handle_events();
                let next_arrival = match self.config.max_in_flight {
                    Some(_) => None,
                    None => requests.peek().map(|request| request.arrival_s),
                };
                let next_load = self.device.next_load_s();
                match (next_arrival, next_load) {
                    (Some(arrival), Some(load)) => self.now_s = arrival.min(load),
                    (Some(next), None) | (None, Some(next)) => self.now_s = next,
                    (None, None) if self.live.is_empty() && requests.peek().is_some() => {}
                    (None, None) => return,
                }
                continue;
            }
            self.compute();
            self.scheduler.commit(&self.plan, &mut self.output, &mut self.events);
            self.handle_events();
        }
    }

    fn admit_arrived(&mut self, requests: &mut Peekable<impl Iterator<Item = TraceRequest>>) {
        let closed = self.config.max_in_flight;
        loop {
            let has_come = |request: &TraceRequest| match closed {
                Some(max) => self.live.len() < max,
                None => request.arrival_s <= self.now_s,
            };
            let Some(mut request) = requests.next_if(has_come) else { return };
            if closed.is_some() {
                request.arrival_s = self.now_s;
            }
            self.admit(request);
        }
    }

    fn admit(&mut self, request: TraceRequest) {
        self.recorder.arrived(&request);
        let id = SeqId(self.num_arrived);
        self.num_arrived += 1;
        let adapter = request.adapter.map(|adapter| self.adapter_spec(adapter, request.rank));
        let new = NewSequence {
            id,
            prompt: prompt(id, request.prompt_tokens),
            num_virtual_tokens: 0,
            active_from: 0,
            stop: StopConditions { max_tokens: request.output_tokens, ..StopConditions::default() },
            adapter,
            tenant: self.tenant_name(request.tenant),
            priority: 0,
            deadline_ms: None,
            cache_salt: None,
            uses_cache: true,
        };
        let is_full = self.scheduler.num_waiting() >= self.config.max_waiting;
        if is_full || self.scheduler.add(new).is_err() {
            self.recorder.rejected(&request);
            return self.count_end();
        }
        let (first_token_s, last_token_s) = (0.0, 0.0);
        self.live.insert(id, Live { request, adapter, first_token_s, last_token_s });
    }

    fn adapter_spec(&self, adapter: u32, rank: Option<u32>) -> AdapterSpec {
        let known = self.config.adapters.get(adapter as usize);
        let rank = rank.or_else(|| known?.rank).unwrap_or(self.config.default_rank);
        let bytes = known.and_then(|known| known.bytes);
        let bytes = bytes.unwrap_or(u64::from(rank) * self.config.bytes_per_rank);
        let chunk_bytes = self.config.scheduling.limits.chunk_bytes as u64;
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&adapter.to_le_bytes());
        AdapterSpec {
            hash: ContentHash(hash),
            num_chunks: bytes.div_ceil(chunk_bytes) as usize,
            rank: rank as usize,
        }
    }

    fn tenant_name(&mut self, tenant: u32) -> Arc<str> {
        let index = tenant as usize;
        while self.tenant_names.len() <= index {
            let name = format!("tenant-{}", self.tenant_names.len());
            self.tenant_names.push(Arc::from(name));
        }
        Arc::clone(&self.tenant_names[index])
    }

    fn begin_loads(&mut self) {
        let chunk_bytes = self.config.scheduling.limits.chunk_bytes as u64;
        self.recorder.evicted(self.plan.evictions.len() as u64);
        for load in &self.plan.loads {
            self.device.load(self.now_s, load.adapter, load.chunks.len());
            self.recorder.adapter_loaded(load.chunks.len() as u64 * chunk_bytes);
        }
    }

    /// Lets the time of the step pass, and makes its tokens.
    fn compute(&mut self) {
        self.num_steps += 1;
        let mut sum_rank = 0;
        self.output.sequences.clear();
        for chunk in &self.plan.sequences {
            let token = chunk.sample.then_some(0);
            self.output.sequences.push(SequenceOutput { token, ..SequenceOutput::default() });
            let adapter = self.live.get(&chunk.seq).and_then(|live| live.adapter);
            if let Some(adapter) = adapter
                && self.last_step.insert(adapter.hash, self.num_steps) != Some(self.num_steps)
            {
                sum_rank += adapter.rank;
            }
            if let Some(live) = self.live.get(&chunk.seq) {
                self.recorder.served(live.request.tenant, chunk.tokens.len() as u64);
            }
        }
        let took_s = self.device.step(self.plan.tokens.len(), sum_rank);
        self.now_s += took_s;
        self.scheduler.note_step(&self.plan, Duration::from_secs_f64(took_s));
        self.recorder.step();
    }

    fn handle_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for SequenceEvent { seq, event } in events.drain(..) {
            match event {
                TokenEvent::Token { .. } => {
                    let Some(live) = self.live.get_mut(&seq) else { continue };
                    if live.first_token_s == 0.0 {
                        live.first_token_s = self.now_s;
                    } else {
                        self.recorder.token_gap(self.now_s - live.last_token_s, 1);
                    }
                    live.last_token_s = self.now_s;
                }
                TokenEvent::Finished { .. } => {
                    let Some(live) = self.live.remove(&seq) else { continue };
                    self.recorder.finished(&live.request, live.first_token_s, self.now_s);
                    self.count_end();
                }
                TokenEvent::Failed(_) | TokenEvent::Expired => {
                    let Some(live) = self.live.remove(&seq) else { continue };
                    self.recorder.rejected(&live.request);
                    self.count_end();
                }
                TokenEvent::PromptLogprobs(_) => {}
            }
        }
        self.events = events;
    }

    fn count_end(&mut self) {
        self.num_ended += 1;
        if self.num_ended.is_multiple_of(PROGRESS_STEP) {
            (self.progress)(self.num_ended);
        }
    }

    fn report(&mut self) -> SimReport {
        let counters = self.scheduler.residency_counters();
        self.recorder.lookups(counters.hits + counters.misses, counters.hits);
        self.recorder.preempted(self.scheduler.counters().num_preemptions);
        let tenants: Vec<String> = self.tenant_names.iter().map(|name| name.to_string()).collect();
        self.recorder.report(&self.config.title, &tenants, self.now_s)
    }
}

/// A prompt that no other request begins with.
fn prompt(id: SeqId, num_tokens: u32) -> Arc<[TokenId]> {
    let id = [id.0 as u32, (id.0 >> 32) as u32];
    (0..num_tokens.max(1)).map(|index| id.get(index as usize).copied().unwrap_or(0)).collect()
}
