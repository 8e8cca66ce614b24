//! The memory pool and the scheduler alone: `cargo bench -p weft-scheduler --bench pool`.
//!
//! Prints nanoseconds per operation, the median of some runs, for pools of several sizes; then a
//! whole plan and commit per running sequence. Nothing is computed and no adapter is copied.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use weft_scheduler::{
    AdapterSpec, CostModel, EvictionKind, Memory, NewSequence, Scheduler, SchedulerConfig,
};
use weft_types::{
    ContentHash, ExecutorLimits, SeqId, SequenceOutput, StepOutput, StepPlan, StopConditions,
};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const ADAPTER_CHUNKS: usize = 16;

fn main() {
    println!("nanoseconds, median\n");
    println!("| operation | {} |", SIZES.map(|size| format!("{size} chunks")).join(" | "));
    println!("|---{}|", "|---".repeat(SIZES.len()));
    row("allocate a block", allocate);
    row("release a block", release);
    row("begin and end the use of an adapter", use_adapter);
    row("load an adapter, evicting another: per chunk", churn);
    println!("\n| plan and commit, per sequence of 512 tokens | 16 run | 64 run | 256 run |");
    println!("|---|---|---|---|");
    println!("| decode | {} |", [16, 64, 256].map(decode).join(" | "));
}

fn row(name: &str, measure: fn(usize) -> f64) {
    println!("| {name} | {} |", SIZES.map(|size| format!("{:.0}", measure(size))).join(" | "));
}

fn median(num_ops: usize, mut run: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..15).map(|_| run() / num_ops as f64).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn memory(num_chunks: usize) -> Memory {
    Memory::new(num_chunks, 16, EvictionKind::Gdsf.policy(), CostModel::default())
}

fn allocate(num_chunks: usize) -> f64 {
    median(num_chunks, || {
        let mut memory = memory(num_chunks);
        let began = Instant::now();
        while let Some(block) = memory.allocate() {
            black_box(block);
        }
        began.elapsed().as_nanos() as f64
    })
}

fn release(num_chunks: usize) -> f64 {
    median(num_chunks, || {
        let mut memory = memory(num_chunks);
        let blocks: Vec<_> = std::iter::from_fn(|| memory.allocate()).collect();
        let began = Instant::now();
        for block in blocks {
            memory.release(block);
        }
        began.elapsed().as_nanos() as f64
    })
}

fn spec(index: usize) -> AdapterSpec {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&(index as u64).to_le_bytes());
    AdapterSpec { hash: ContentHash(hash), num_chunks: ADAPTER_CHUNKS, rank: 16 }
}

/// As many idle adapters as there is room for.
fn full_of_adapters(num_chunks: usize) -> Memory {
    let mut memory = memory(num_chunks);
    for index in 0..num_chunks / ADAPTER_CHUNKS {
        visit(&mut memory, index);
    }
    memory
}

/// A sequence comes, its adapter is loaded if it is not there, it runs and ends.
fn visit(memory: &mut Memory, index: usize) {
    let id = memory.add_waiting(spec(index));
    if memory.load(id, true).is_some() {
        memory.end_load(id);
    }
    memory.begin_use(id);
    memory.end_use(id, false);
}

fn use_adapter(num_chunks: usize) -> f64 {
    let mut memory = full_of_adapters(num_chunks);
    let num_adapters = num_chunks / ADAPTER_CHUNKS;
    median(num_adapters, || {
        let began = Instant::now();
        for index in 0..num_adapters {
            let id = memory.add_waiting(spec(index));
            memory.begin_use(id);
            memory.end_use(id, false);
        }
        began.elapsed().as_nanos() as f64
    })
}

fn churn(num_chunks: usize) -> f64 {
    let mut memory = full_of_adapters(num_chunks);
    let mut next = num_chunks;
    let num_loads = 1_000;
    median(num_loads * ADAPTER_CHUNKS, || {
        let began = Instant::now();
        for _ in 0..num_loads {
            visit(&mut memory, next);
            next += 1;
        }
        began.elapsed().as_nanos() as f64
    })
}

fn decode(num_running: usize) -> String {
    let limits = ExecutorLimits {
        block_size: 16,
        num_blocks: num_running * 64,
        chunk_bytes: 1 << 20,
        max_model_len: 2048,
        max_num_seqs: num_running,
        max_num_batched_tokens: num_running * 512,
    };
    let mut scheduler = Scheduler::new(SchedulerConfig::new(limits));
    for index in 0..num_running {
        let new = NewSequence {
            id: SeqId(index as u64),
            prompt: (0..512).map(|position| (position * 7 + index as u32) % 1000).collect(),
            stop: StopConditions { max_tokens: 500, ..StopConditions::default() },
            num_virtual_tokens: 0,
            active_from: 0,
            adapter: None,
            tenant: Arc::from(""),
            priority: 0,
            deadline_ms: None,
            cache_salt: None,
            uses_cache: true,
        };
        scheduler.add(new).expect("it fits");
    }
    let (mut plan, mut output, mut events) =
        (StepPlan::default(), StepOutput::default(), Vec::new());
    let mut step = || {
        let began = Instant::now();
        scheduler.plan(&mut plan);
        let planned = began.elapsed();
        output.sequences.clear();
        let token = |sample: bool| sample.then_some(1);
        output.sequences.extend(plan.sequences.iter().map(|chunk| SequenceOutput {
            token: token(chunk.sample),
            ..SequenceOutput::default()
        }));
        let began = Instant::now();
        scheduler.commit(&plan, &mut output, &mut events);
        events.clear();
        (planned + began.elapsed()).as_nanos() as f64
    };
    step();
    format!("{:.0}", median(20 * num_running, || (0..20).map(|_| step()).sum()))
}
