//! The engine of this process as a target of the load generator: no HTTP, no text.

use std::collections::HashMap;
use std::sync::Arc;
use weft_adapters::AdapterLease;
use weft_bench::drive::TokenCounts;
use weft_bench::{BenchRequest, Target, TokenClock};
use weft_engine::EngineHandle;
use weft_types::{GenerateRequest, Queueing, SamplingParams, StopConditions, TokenEvent};

/// An engine and the adapters that requests may name.
pub struct EngineTarget {
    engine: EngineHandle,
    adapters: HashMap<String, AdapterLease>,
}

impl EngineTarget {
    /// Requests that name none of `adapters` go to the base.
    #[must_use]
    pub fn new(engine: EngineHandle, adapters: HashMap<String, AdapterLease>) -> Self {
        Self { engine, adapters }
    }
}

impl Target for EngineTarget {
    async fn answer(
        &self,
        request: &BenchRequest,
        clock: &mut TokenClock,
    ) -> Result<TokenCounts, String> {
        let generate = GenerateRequest {
            prompt: Arc::from(request.prompt.as_slice()),
            sampling: SamplingParams::greedy(),
            stop: StopConditions {
                max_tokens: u32::try_from(request.output_len).unwrap_or(u32::MAX),
                ..StopConditions::default()
            },
            cache_salt: None,
            queueing: Queueing::default(),
        };
        let lease = self.adapters.get(&request.model).cloned();
        let mut stream = self.engine.submit(generate, lease).map_err(|error| error.to_string())?;
        while let Some(event) = stream.next().await {
            match event {
                TokenEvent::Token { .. } => clock.tick(),
                TokenEvent::PromptLogprobs(_) => {}
                TokenEvent::Finished { usage, .. } => {
                    return Ok(TokenCounts {
                        prompt_tokens: Some(usage.prompt_tokens),
                        completion_tokens: Some(usage.completion_tokens),
                    });
                }
                TokenEvent::Failed(error) => return Err(error.to_string()),
                TokenEvent::Expired => return Err("it waited too long".to_owned()),
            }
        }
        Err("the engine stopped".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_bench::{Arrivals, DriveLimits, LengthRange, Popularity, WorkloadConfig, drive};
    use weft_engine::EngineConfig;
    use weft_engine::sim::{SimExecutor, sim_limits};

    #[tokio::test]
    async fn every_request_gets_as_many_tokens_as_it_asked_for() {
        let executor = SimExecutor::new(sim_limits(), 1000);
        let config = EngineConfig { max_waiting: 100, ..EngineConfig::default() };
        let engine = weft_engine::start(Box::new(executor), 1000, config);
        let target = Arc::new(EngineTarget::new(engine.clone(), HashMap::new()));
        let workload = WorkloadConfig {
            num_requests: 20,
            num_warmup: 1,
            base: "base".into(),
            adapters: Vec::new(),
            popularity: Popularity::Uniform,
            arrivals: Arrivals::Closed { concurrency: 5 },
            input_len: LengthRange { min: 10, max: 40 },
            output_len: LengthRange { min: 1, max: 9 },
            shared_prefix_len: 4,
            token_low: 0,
            token_high: 1000,
            seed: 1,
        };
        let minute = Duration::from_secs(60);
        let limits = DriveLimits { max_request: minute, max_run: minute };
        let workload = workload.generate().unwrap();
        let asked: Vec<usize> = workload.requests.iter().map(|r| r.output_len).collect();
        let run = drive(target, workload, limits, || {}).await.unwrap();
        let made: Vec<usize> = run.records.iter().map(|r| r.completion_tokens).collect();
        assert_eq!(made, asked);
        assert!(
            run.records.iter().all(|r| r.error.is_none() && r.ticks.len() == r.completion_tokens)
        );
        engine.shutdown(false);
    }
}
