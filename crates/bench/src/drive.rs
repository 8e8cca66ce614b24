//! Runs a workload against a target and writes down what happened to each request. In: a workload
//! and a target. Out: one record per request. Knows neither HTTP nor engines, and always ends: a
//! request is given up after its time limit, the run after its own.

use crate::arrivals::Arrivals;
use crate::workload::{BenchRequest, Workload};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Something that answers requests token by token.
pub trait Target: Send + Sync + 'static {
    /// Answers one request, and calls [`TokenClock::tick`] whenever output arrives.
    ///
    /// # Errors
    /// A sentence saying why there was no (complete) answer.
    fn answer(
        &self,
        request: &BenchRequest,
        clock: &mut TokenClock,
    ) -> impl Future<Output = Result<TokenCounts, String>> + Send;
}

/// What a target knows of a finished answer's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the prompt as the target counted them.
    pub prompt_tokens: Option<usize>,
    /// Tokens made; where the target does not say, the number of ticks stands in.
    pub completion_tokens: Option<usize>,
}

/// Notes when output arrives.
#[derive(Debug)]
pub struct TokenClock {
    start: Instant,
    ticks: Vec<Duration>,
}

impl TokenClock {
    fn start() -> Self {
        Self { start: Instant::now(), ticks: Vec::new() }
    }

    /// Output arrived just now.
    pub fn tick(&mut self) {
        self.ticks.push(self.start.elapsed());
    }

    /// How often output arrived.
    #[must_use]
    pub fn num_ticks(&self) -> usize {
        self.ticks.len()
    }
}

/// What happened to one request.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestRecord {
    /// [`BenchRequest::index`]
    pub index: usize,
    /// The name that was asked for.
    pub model: String,
    /// When it was sent, from the start of the run.
    pub sent_at: Duration,
    /// When output arrived, from `sent_at`; the first is the time to first token.
    pub ticks: Vec<Duration>,
    /// From `sent_at` to the end of the answer.
    pub latency: Duration,
    /// Tokens of the prompt: the target's count, or what was sent.
    pub prompt_tokens: usize,
    /// Tokens made.
    pub completion_tokens: usize,
    /// Tokens asked for.
    pub requested_tokens: usize,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct DriveLimits {
    /// The longest that one request may take.
    pub max_request: Duration,
    /// The longest that the run may take; what is not sent by then is an error.
    pub max_run: Duration,
}

/// The outcome of [`drive`].
#[derive(Clone, Debug)]
pub struct Run {
    /// One per request of the workload, in its order.
    pub records: Vec<RequestRecord>,
    /// From the start to the end of the last answer.
    pub wall: Duration,
}

/// Sends the warm-up, then the workload. `on_done` is called after each reported request.
///
/// # Errors
/// The sentence of the first warm-up request that failed: nothing worth measuring would follow.
pub async fn drive<T: Target>(
    target: Arc<T>,
    workload: Workload,
    limits: DriveLimits,
    on_done: impl Fn() + Send + Sync + 'static,
) -> Result<Run, String> {
    let deadline = Instant::now() + limits.max_run;
    for request in &workload.warmup {
        let clock_zero = Instant::now();
        let record = send(&*target, request, clock_zero, limits, deadline).await;
        if let Some(error) = record.error {
            return Err(format!("warm-up request for `{}` failed: {error}", record.model));
        }
    }
    let num_requests = workload.requests.len();
    let num_clients = match workload.config.arrivals {
        Arrivals::Closed { concurrency } => concurrency.min(num_requests),
        Arrivals::Open { .. } => num_requests,
    };
    let requests = Arc::new(workload.requests);
    let next = Arc::new(AtomicUsize::new(0));
    let on_done = Arc::new(on_done);
    let start = Instant::now();
    // In an open loop every request is its own client, asleep until its time: none waits for
    // another. In a closed loop all times are zero and each client takes one after the other.
    let mut clients = JoinSet::new();
    for _ in 0..num_clients {
        let (target, requests) = (Arc::clone(&target), Arc::clone(&requests));
        let (next, on_done) = (Arc::clone(&next), Arc::clone(&on_done));
        clients.spawn(async move {
            let mut records = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                sleep_until((start + request.at).min(deadline)).await;
                records.push(send(&*target, request, start, limits, deadline).await);
                on_done();
                if matches!(workload.config.arrivals, Arrivals::Open { .. }) {
                    break;
                }
            }
            records
        });
    }
    let mut records = Vec::with_capacity(num_requests);
    while let Some(client) = clients.join_next().await {
        records.extend(client.map_err(|error| format!("a client ended early: {error}"))?);
    }
    records.sort_by_key(|record| record.index);
    let end = records.iter().map(|record| record.sent_at + record.latency).max();
    Ok(Run { records, wall: end.unwrap_or_default() })
}

async fn send<T: Target>(
    target: &T,
    request: &BenchRequest,
    start: Instant,
    limits: DriveLimits,
    deadline: Instant,
) -> RequestRecord {
    let sent = Instant::now();
    let mut clock = TokenClock::start();
    let give_up = deadline.min(sent + limits.max_request);
    let outcome = if sent >= deadline {
        Err("not sent: the run reached its time limit".to_owned())
    } else {
        match timeout_at(give_up, target.answer(request, &mut clock)).await {
            Ok(outcome) => outcome,
            Err(_) if give_up == deadline => Err("the run reached its time limit".to_owned()),
            Err(_) => Err(format!("no answer within {} s", limits.max_request.as_secs())),
        }
    };
    let latency = sent.elapsed();
    let ticks = clock.ticks;
    let (counts, error) = match outcome {
        Ok(counts) => (counts, None),
        Err(error) => (TokenCounts::default(), Some(error)),
    };
    RequestRecord {
        index: request.index,
        model: request.model.clone(),
        sent_at: sent.duration_since(start),
        latency,
        prompt_tokens: counts.prompt_tokens.unwrap_or(request.prompt.len()),
        completion_tokens: counts.completion_tokens.unwrap_or(ticks.len()),
        requested_tokens: request.output_len,
        ticks,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::WorkloadConfig;
    use crate::workload::tests::small;
    use std::sync::Mutex;

    const PATIENT: DriveLimits =
        DriveLimits { max_request: Duration::from_secs(60), max_run: Duration::from_secs(600) };

    /// Answers with one token per 10 ms; notes how many requests are in flight.
    #[derive(Default)]
    struct Paced {
        in_flight: AtomicUsize,
        most_in_flight: AtomicUsize,
        order: Mutex<Vec<(usize, Instant)>>,
    }

    impl Target for Paced {
        async fn answer(
            &self,
            request: &BenchRequest,
            clock: &mut TokenClock,
        ) -> Result<TokenCounts, String> {
            self.order.lock().unwrap().push((request.index, Instant::now()));
            let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_in_flight.fetch_max(now, Ordering::SeqCst);
            for _ in 0..request.output_len {
                tokio::time::sleep(Duration::from_millis(10)).await;
                clock.tick();
            }
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if request.model == "c" {
                Err("c is broken".into())
            } else {
                Ok(TokenCounts::default())
            }
        }
    }

    async fn run(config: WorkloadConfig, limits: DriveLimits) -> (Arc<Paced>, Run) {
        let target = Arc::new(Paced::default());
        let workload = config.generate().unwrap();
        let run = drive(Arc::clone(&target), workload, limits, || {}).await.unwrap();
        (target, run)
    }

    #[tokio::test(start_paused = true)]
    async fn closed_loop_keeps_exactly_its_concurrency_in_flight() {
        let (target, run) = run(small(), PATIENT).await;
        assert_eq!(target.most_in_flight.load(Ordering::SeqCst), 4);
        assert_eq!(run.records.iter().map(|r| r.index).collect::<Vec<_>>(), Vec::from_iter(0..12));
        // Three rounds of four tokens at 10 ms.
        assert_eq!(run.wall, Duration::from_millis(120));
        let ticks = [10, 20, 30, 40].map(Duration::from_millis);
        assert!(run.records.iter().all(|record| record.ticks == ticks));
        assert!(run.records.iter().all(|record| record.latency == ticks[3]));
    }

    #[tokio::test(start_paused = true)]
    async fn open_loop_sends_at_the_given_times_whoever_is_waiting() {
        let arrivals = Arrivals::Open { rate: 100.0, cv: 0.0 };
        let (target, run) =
            run(WorkloadConfig { arrivals, num_warmup: 0, ..small() }, PATIENT).await;
        let sent: Vec<u128> = run.records.iter().map(|r| r.sent_at.as_millis()).collect();
        assert_eq!(sent, Vec::from_iter((1..=12).map(|i| i * 10)));
        assert!(target.order.lock().unwrap().is_sorted_by_key(|&(index, _)| index));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_request_is_a_record_with_its_sentence() {
        let (_, run) = run(small(), PATIENT).await;
        let failed: Vec<_> = run.records.iter().filter(|r| r.error.is_some()).collect();
        assert_eq!(failed.len(), 4);
        assert!(failed.iter().all(|r| r.model == "c" && r.error.as_deref() == Some("c is broken")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_given_up_and_the_rest_go_on() {
        let limits = DriveLimits { max_request: Duration::from_millis(35), ..PATIENT };
        let config = WorkloadConfig { num_warmup: 0, ..small() };
        let (_, run) = run(config, limits).await;
        assert_eq!(run.records.len(), 12);
        assert!(run.records.iter().all(|record| record.ticks.len() == 3));
        assert!(run.records[0].error.as_deref().unwrap().contains("no answer within"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_run_ends_at_its_limit_and_counts_what_was_not_sent() {
        let limits = DriveLimits { max_run: Duration::from_millis(45), ..PATIENT };
        let config = WorkloadConfig { num_warmup: 0, adapters: Vec::new(), ..small() };
        let (_, run) = run(config, limits).await;
        let errors = run.records.iter().filter_map(|record| record.error.as_deref());
        assert_eq!(errors.clone().count(), 8);
        assert_eq!(errors.filter(|error| error.starts_with("not sent")).count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_warm_up_stops_the_run() {
        let config = WorkloadConfig { num_warmup: 3, ..small() };
        let workload = config.generate().unwrap();
        let error = drive(Arc::new(Paced::default()), workload, PATIENT, || {}).await.unwrap_err();
        assert!(error.contains("warm-up request for `c` failed"), "{error}");
    }
}
