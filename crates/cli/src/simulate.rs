//! `weft bench simulate`: flags in, the figures of a simulation out.

use crate::args::simulate::{BenchSimulateArgs, WorkloadChoice};
use crate::progress::count_bar;
use crate::serve::target_step;
use crate::trace_source::{self, TraceSource};
use anyhow::{Context, Result, ensure};
use weft_bench::{SLoraLoad, SimReport, SyntheticTrace};
use weft_simulator::{CostModel, SchedulerConfig, SimulationConfig, simulate};
use weft_types::ExecutorLimits;

/// Tokens of a chunk.
const BLOCK_SIZE: usize = 16;
/// Of a request of S-LoRA's, in and out each.
const MEAN_TOKENS: f64 = 259.5;

/// Runs the simulation.
///
/// # Errors
/// If a file cannot be read, or the flags contradict each other.
pub fn run(args: &BenchSimulateArgs) -> Result<SimReport> {
    let costs = match &args.costs {
        Some(path) => {
            let text =
                std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| path.display().to_string())?
        }
        None => CostModel::default(),
    };
    let limits = ExecutorLimits {
        block_size: BLOCK_SIZE,
        num_blocks: args.memory.0 as usize / args.chunk_bytes.max(1),
        chunk_bytes: args.chunk_bytes,
        max_model_len: 8192,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
    };
    ensure!(limits.num_blocks > 0, "--memory holds no chunk of {} bytes", args.chunk_bytes);
    ensure!(args.max_num_seqs > 0 && args.max_num_batched_tokens > 0, "limits must not be 0");
    let mut config = SimulationConfig {
        title: title(args),
        scheduling: SchedulerConfig {
            eviction: args.eviction,
            costs,
            target_step: target_step(args.target_step_ms),
            ..SchedulerConfig::new(limits)
        },
        adapters: Vec::new(),
        bytes_per_rank: args.bytes_per_rank,
        default_rank: args.setting.ranks()[0],
        max_waiting: args.max_waiting,
        max_in_flight: None,
        tenants: Vec::new(),
    };
    let source = match args.workload {
        WorkloadChoice::Slora => {
            let rate = args.rate.unwrap_or_else(|| 0.9 * capacity(args, &costs));
            let load = SLoraLoad { alpha: args.alpha, rate, cv: args.cv, duration_s: 1.0 };
            let trace = SyntheticTrace {
                num_requests: args.requests,
                ..SyntheticTrace::s_lora(args.setting, args.adapters, load, args.seed)
            };
            trace_source::synthetic(trace, args.flood, "base", None)?
        }
        WorkloadChoice::Punica => {
            config.max_in_flight = Some(32);
            let trace = SyntheticTrace::punica(args.distribution, args.requests, args.seed);
            trace_source::synthetic(trace, None, "base", None)?
        }
        WorkloadChoice::Trace => {
            let path = args.trace.as_deref().context("--workload trace needs --trace FILE")?;
            trace_source::recorded(path)?
        }
    };
    let TraceSource { header, requests, num_requests } = source;
    config.tenants = header.tenants;
    config.adapters = header.adapters;
    let bar = count_bar(num_requests, "simulating");
    let report = simulate(requests, config, |done| bar.set_position(done));
    bar.finish_and_clear();
    Ok(report)
}

fn title(args: &BenchSimulateArgs) -> String {
    let workload = match args.workload {
        WorkloadChoice::Slora => {
            format!("S-LoRA's {:?}, {} adapters, alpha {}", args.setting, args.adapters, args.alpha)
        }
        WorkloadChoice::Punica => format!("Punica's {:?}", args.distribution),
        WorkloadChoice::Trace => "a recorded trace".to_owned(),
    };
    let eviction = format!("{:?}", args.eviction).to_lowercase();
    format!("{workload}, {} of memory, {eviction}, seed {}", args.memory, args.seed)
}

/// Requests per second that a full batch of S-LoRA's requests gets, if no adapter is ever shared.
fn capacity(args: &BenchSimulateArgs, costs: &CostModel) -> f64 {
    let batch = args.max_num_seqs as f64;
    let ranks = args.setting.ranks();
    let mean_rank = f64::from(ranks.iter().sum::<u32>()) / ranks.len() as f64;
    let distinct = batch.min(f64::from(args.adapters));
    let step_s = costs.step(args.max_num_seqs, (distinct * mean_rank) as usize);
    1.0 / (MEAN_TOKENS * (step_s / batch + costs.token_s))
}
