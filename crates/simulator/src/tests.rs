//! Small traces whose figures can be known beforehand.

use crate::{CostModel, SchedulerConfig, SimulationConfig, simulate};
use weft_bench::{Popularity, SLoraLoad, SLoraSetting, SyntheticTrace, TraceAdapter, TraceRequest};
use weft_types::ExecutorLimits;

fn config(num_blocks: usize) -> SimulationConfig {
    let limits = ExecutorLimits {
        block_size: 16,
        num_blocks,
        chunk_bytes: 1 << 20,
        max_model_len: 2048,
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
    };
    let costs =
        CostModel { step_s: 0.01, token_s: 0.001, rank_s: 0.0, load_s: 0.5, load_chunk_s: 0.0 };
    SimulationConfig {
        title: "test".into(),
        scheduling: SchedulerConfig { costs, ..SchedulerConfig::new(limits) },
        adapters: Vec::new(),
        bytes_per_rank: 1 << 17,
        default_rank: 8,
        max_waiting: 1000,
        max_in_flight: None,
        tenants: Vec::new(),
    }
}

fn request(arrival_s: f64, adapter: Option<u32>) -> TraceRequest {
    TraceRequest { arrival_s, adapter, tenant: 0, prompt_tokens: 10, output_tokens: 3, rank: None }
}

#[test]
fn time_is_what_the_cost_model_says() {
    let report = simulate([request(1.0, None)].into_iter(), config(64), |_| {});
    // A prefill of ten tokens and two decodes.
    assert!((report.simulated_s - (1.0 + 3.0 * 0.01 + 12.0 * 0.001)).abs() < 1e-9);
    assert_eq!((report.num_finished, report.num_steps), (1, 3));
}

#[test]
fn a_cold_adapter_delays_its_own_request_and_no_other() {
    let requests = [request(0.0, Some(1)), request(0.0, None), request(2.0, Some(1))];
    let report = simulate(requests.into_iter(), config(64), |_| {});
    assert_eq!((report.num_finished, report.adapters.loads), (3, 1));
    assert_eq!((report.adapters.lookups, report.adapters.hits), (2, 1));
    assert!(report.ttft.max_ms > 500.0 && report.ttft.p50_ms < 50.0, "{:?}", report.ttft);
}

#[test]
fn bytes_and_ranks_are_those_that_the_header_says() {
    let known = TraceAdapter { name: "a".into(), rank: Some(16), bytes: Some((5 << 20) + 1) };
    let mut config = SimulationConfig { adapters: vec![known], ..config(64) };
    config.scheduling.costs.rank_s = 1.0;
    let report = simulate([request(0.0, Some(0))].into_iter(), config.clone(), |_| {});
    assert_eq!(report.adapters.bytes_moved, 6 << 20);
    assert!((report.simulated_s - (0.5 + 3.0 * 0.01 + 12.0 * 0.001 + 3.0 * 16.0)).abs() < 1e-9);
    // Of another adapter nothing is known.
    let report = simulate([request(0.0, Some(1))].into_iter(), config, |_| {});
    assert_eq!(report.adapters.bytes_moved, 1 << 20);
}

#[test]
fn same_trace_same_report() {
    let load = SLoraLoad { alpha: 0.3, rate: 20.0, cv: 1.0, duration_s: 20.0 };
    let trace = SyntheticTrace::s_lora(SLoraSetting::S2, 50, load, 7);
    let run = || simulate(trace.requests().unwrap(), config(300), |_| {});
    let report = run();
    assert_eq!(report, run());
    assert_eq!(report.num_finished + report.num_rejected, report.num_requests);
    assert!(report.adapters.evictions > 0);
}

#[test]
fn a_closed_loop_keeps_as_many_in_flight_as_it_says() {
    let trace = SyntheticTrace::punica(Popularity::Uniform, 40, 3);
    let closed = SimulationConfig { max_in_flight: Some(4), ..config(2000) };
    let report = simulate(trace.requests().unwrap(), closed, |_| {});
    assert_eq!((report.num_finished, report.num_rejected), (40, 0));
}
