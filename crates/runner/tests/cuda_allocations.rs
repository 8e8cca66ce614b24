//! A step of a steady decode allocates nothing on the host when it is replayed on an emulated GPU.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::path::Path;
use std::sync::Arc;
use support::{adapter, announce, config, load, model, plan_decode, reference};
use weft_cuda::{EmulatedDriver, Gpu, HalfType, Order};
use weft_model::cuda::CudaModel;
use weft_runner::{CudaExecutor, KvCacheDtype, RunnerConfig};
use weft_testkit::allocations::{CountingAllocator, count_this_thread, num_allocations};
use weft_types::{AdapterId, Executor, StepOutput, StepPlan, TokenId};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const RANKS: [usize; 3] = [3, 8, 16];

#[test]
fn a_steady_decode_of_eight_sequences_of_three_adapters_allocates_nothing() {
    let model = model("models/tiny-llama");
    let driver = EmulatedDriver::load(Path::new(weft_emulator::LIBRARY), Order::Fixed).unwrap();
    let gpu = Gpu::new(Arc::new(driver));
    let half = HalfType::F16;
    let uploaded = CudaModel::upload(&gpu, half, &model).unwrap();
    let config = RunnerConfig { kv_dtype: Some(KvCacheDtype::F16), ..config(&model, 1) };
    let mut executor = CudaExecutor::on_gpu(&gpu, uploaded, half, &config).unwrap();
    count_this_thread();
    let mut first_chunk = 32;
    for (id, rank) in (0..).zip(RANKS) {
        let adapter = adapter(model.spec(), rank);
        first_chunk = load(&mut executor, AdapterId(id), &adapter, first_chunk);
    }
    for seq in 0..8 {
        let id = seq as usize % RANKS.len();
        announce(&mut executor, seq, Some(reference(id as u32, RANKS[id])));
    }
    let mut tokens: Vec<TokenId> = (1..=8).collect();
    let (mut plan, mut output) = (StepPlan::default(), StepOutput::default());
    let mut counts = Vec::new();
    for position in 0..8 {
        plan_decode(&mut plan, &tokens, position);
        let before = num_allocations();
        executor.execute(&plan, &mut output).unwrap();
        counts.push(num_allocations() - before);
        for (token, output) in tokens.iter_mut().zip(&output.sequences) {
            *token = output.token.unwrap();
        }
    }
    // The second step is recorded, which is written down.
    assert!(counts[0] > 0 && counts[1] > 0, "the first steps make their buffers: {counts:?}");
    assert!(counts[3..].iter().all(|&count| count == 0), "{counts:?}");
}
