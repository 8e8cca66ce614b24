//! Adapters come to the device beside the steps, and leave it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::sync::Arc;
use support::{adapter, announce, config, load, model, plan_decode, reference, wait_for};
use weft_runner::CpuExecutor;
use weft_types::{
    AdapterId, AdapterLoad, AdapterRef, BlockId, Executor, PackedAdapter, SeqId, StepOutput,
    StepPlan, TokenId,
};

/// Eight greedy tokens of two sequences, the first with an adapter.
fn answer(executor: &mut CpuExecutor, adapter: Option<AdapterRef>) -> Vec<Vec<TokenId>> {
    announce(executor, 0, adapter);
    announce(executor, 1, None);
    let (mut plan, mut output) = (StepPlan::default(), StepOutput::default());
    let mut answers = vec![vec![1], vec![2]];
    for position in 0..8 {
        let last: Vec<TokenId> = answers.iter().map(|tokens| tokens[position]).collect();
        plan_decode(&mut plan, &last, position);
        executor.execute(&plan, &mut output).unwrap();
        for (tokens, output) in answers.iter_mut().zip(&output.sequences) {
            tokens.push(output.token.unwrap());
        }
    }
    executor.remove_sequence(SeqId(0));
    executor.remove_sequence(SeqId(1));
    answers
}

#[test]
fn an_adapter_answers_the_same_wherever_its_chunks_are() {
    let model = model("models/tiny-llama");
    let mut executor = CpuExecutor::new(model.clone(), &config(&model, 2)).unwrap();
    let lowered = adapter(model.spec(), 40);
    let (id, reference) = (AdapterId(3), reference(3, 40));
    let base = answer(&mut executor, None);
    load(&mut executor, id, &lowered, 10);
    let want = answer(&mut executor, Some(reference));
    assert_ne!(want[0], base[0]);
    assert_eq!(want[1], base[1]);
    // Again backwards, in chunks that came back from the first copy.
    executor.unload_adapter(id);
    let packed = Arc::new(PackedAdapter::pack(&lowered, executor.limits().chunk_bytes).unwrap());
    assert!(packed.num_chunks > 2);
    let chunks = (10..10 + packed.num_chunks as u32).rev().map(BlockId).collect();
    executor.load_adapter(&AdapterLoad { adapter: id, chunks }, packed);
    wait_for(&mut executor, id);
    assert_eq!(answer(&mut executor, Some(reference)), want);
}

#[test]
fn a_sequence_whose_adapter_is_not_on_the_device_fails_its_step_only() {
    let model = model("models/tiny-llama");
    let mut executor = CpuExecutor::new(model.clone(), &config(&model, 1)).unwrap();
    let id = AdapterId(7);
    announce(&mut executor, 0, Some(reference(7, 2)));
    let (mut plan, mut output) = (StepPlan::default(), StepOutput::default());
    plan_decode(&mut plan, &[1], 0);
    let error = executor.execute(&plan, &mut output).unwrap_err();
    assert!(error.message.contains("not on the device"), "{error}");
    // Another one under the same id is not it.
    load(&mut executor, id, &adapter(model.spec(), 3), 4);
    assert!(executor.execute(&plan, &mut output).is_err());
    executor.unload_adapter(id);
    load(&mut executor, id, &adapter(model.spec(), 2), 4);
    executor.execute(&plan, &mut output).unwrap();
    executor.unload_adapter(id);
    assert!(executor.execute(&plan, &mut output).is_err());
}

#[test]
fn an_executor_ends_while_copies_are_under_way() {
    let model = model("models/tiny-llama");
    let mut executor = CpuExecutor::new(model.clone(), &config(&model, 1)).unwrap();
    let packed =
        PackedAdapter::pack(&adapter(model.spec(), 16), executor.limits().chunk_bytes).unwrap();
    let (packed, len) = (Arc::new(packed.clone()), packed.num_chunks as u32);
    for id in 0..4 {
        let chunks = (id * len..(id + 1) * len).map(BlockId).collect();
        executor.load_adapter(&AdapterLoad { adapter: AdapterId(id), chunks }, Arc::clone(&packed));
    }
}
