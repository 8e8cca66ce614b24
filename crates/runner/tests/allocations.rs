//! A step of a steady decode allocates nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::{adapter, announce, executor, load, model, plan_decode, reference};
use weft_runner::CpuExecutor;
use weft_testkit::allocations::{CountingAllocator, count_this_thread, num_allocations};
use weft_types::{
    Activation, AdapterId, BaseModelSpec, Bottleneck, BottleneckInput, Executor, LoweredAdapter,
    Module, Site, SiteVectors, StepOutput, StepPlan, TokenId,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_steady_decode_of_sixteen_sequences_of_four_adapters_allocates_nothing() {
    for path in ["models/tiny-llama", "gguf/tiny-mixed.gguf"] {
        let model = model(path);
        // On one thread all work is the calling thread's.
        for (num_threads, adapter) in
            [(1, adapter as MakeAdapter), (2, adapter), (1, adapter_with_parts)]
        {
            let executor = executor(&model, num_threads);
            let counts = count_steps(executor, model.spec(), adapter);
            assert!(counts[0] > 0, "the first step makes its buffers");
            assert!(counts[2..].iter().all(|&count| count == 0), "{path}: {counts:?}");
        }
    }
}

/// Of a rank.
type MakeAdapter = fn(&BaseModelSpec, usize) -> LoweredAdapter;

/// Allocations of each of 32 steps.
fn count_steps(mut executor: CpuExecutor, spec: &BaseModelSpec, adapter: MakeAdapter) -> Vec<u64> {
    count_this_thread();
    let mut first_chunk = 32;
    let ranks = [3, 8, 16, 40];
    for (id, rank) in (0..).zip(ranks) {
        first_chunk = load(&mut executor, AdapterId(id), &adapter(spec, rank), first_chunk);
    }
    let mut tokens: Vec<TokenId> = (1..=16).collect();
    for seq in 0..16 {
        let id = seq as usize % ranks.len();
        announce(&mut executor, seq, Some(reference(id as u32, ranks[id])));
    }
    let (mut plan, mut output) = (StepPlan::default(), StepOutput::default());
    let mut counts = Vec::new();
    for position in 0..32 {
        plan_decode(&mut plan, &tokens, position);
        let before = num_allocations();
        executor.execute(&plan, &mut output).unwrap();
        counts.push(num_allocations() - before);
        for (token, output) in tokens.iter_mut().zip(&output.sequences) {
            *token = output.token.unwrap();
        }
    }
    counts
}

/// [`adapter`] with gains and shifts of all of these linears, and bottlenecks.
fn adapter_with_parts(spec: &BaseModelSpec, rank: usize) -> LoweredAdapter {
    let mut adapter = adapter(spec, rank);
    let vector = |len: usize| Some((0..len).map(|i| 0.9 + 0.01 * (i % 20) as f32).collect());
    for module in Module::ALL {
        let (site, shape) = (Site::Layer { layer: 0, module }, spec.linear(module));
        let (input, output) = (vector(shape.num_inputs), vector(shape.num_outputs));
        adapter.vectors.push(SiteVectors { site, input, output, shift: vector(shape.num_outputs) });
        if matches!(module, Module::O | Module::Down) {
            let Some(b_bias) = vector(shape.num_outputs) else { continue };
            let b = adapter.at(site).expect("it has all").b.clone();
            let (a, a_bias, activation) = (b.clone(), vec![0.1; rank].into(), Activation::Gelu);
            adapter.bottlenecks.push(Bottleneck {
                site,
                reads: BottleneckInput::Output,
                a,
                a_bias,
                activation,
                b,
                b_bias,
            });
        }
    }
    adapter
}
