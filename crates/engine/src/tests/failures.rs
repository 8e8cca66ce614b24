//! What goes wrong, and who notices.

use super::*;
use crate::SubmitError;
use crate::sim::Fault;
use std::sync::Arc;
use weft_types::{
    AdapterId, AdapterLoad, ExecuteError, Executor, PackedAdapter, SeqId, StepOutput, StepPlan,
};

#[tokio::test]
async fn a_failing_step_fails_its_sequences_and_the_engine_goes_on() {
    let engine = engine(sim().with_fault(Fault::FailStep(3)));
    let failed = answer(engine.submit(request(&prompt(1, 10), 20), None).unwrap()).await;
    assert_eq!(failed.error(), "simulated failure");
    assert_eq!(failed.tokens.len(), 3);
    assert_idle(&engine);

    let again = request(&prompt(1, 10), 20);
    let good = answer(engine.submit(again.clone(), None).unwrap()).await;
    assert_eq!(good.tokens, expected(&again, None));
    assert_eq!(engine.stats().failed_steps(), 1);
}

#[tokio::test]
async fn a_panic_in_execute_is_a_failed_step() {
    let engine = engine(sim().with_fault(Fault::PanicOnToken(7)));
    let failed = answer(engine.submit(request(&[5, 6, 7], 4), None).unwrap()).await;
    assert!(failed.error().contains("simulated panic"), "{}", failed.error());
    assert!(engine.is_alive());
    assert_idle(&engine);

    let good = request(&[5, 6, 8], 4);
    let tokens = answer(engine.submit(good.clone(), None).unwrap()).await.tokens;
    assert_eq!(tokens, expected(&good, None));
}

/// Adds panic for some prompts; answers are of the wrong shape for others.
struct Broken(SimExecutor);

impl Executor for Broken {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>) {
        self.0.load_adapter(load, adapter);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        self.0.finished_loads(finished);
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        self.0.unload_adapter(adapter);
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        assert_ne!(spec.prompt[0], 1, "one is too many");
        self.0.add_sequence(seq, spec);
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.0.remove_sequence(seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        self.0.execute(plan, output)?;
        match plan.tokens[0] {
            2 => output.sequences.clear(),
            3 => output.sequences[0].token = None,
            4 => {
                let message = "not finite".to_owned();
                output.sequences[0].failed = Some(ExecuteError { message });
            }
            _ => {}
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_broken_executor_fails_requests_and_not_the_engine() {
    let engine = start(Box::new(Broken(sim())), VOCAB_SIZE, EngineConfig::default());
    for (token, reason) in
        [(1, "one is too many"), (2, "another step"), (3, "another step"), (4, "not finite")]
    {
        let failed = answer(engine.submit(request(&[token], 4), None).unwrap()).await;
        assert!(failed.error().contains(reason), "{}", failed.error());
    }
    let good = answer(engine.submit(request(&[9], 4), None).unwrap()).await;
    assert_eq!(good.tokens, expected(&request(&[9], 4), None));
    assert_idle(&engine);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let limits = ExecutorLimits { max_num_seqs: 1, ..sim_limits() };
    let (executor, gate) = SimExecutor::new(limits, VOCAB_SIZE).with_gate();
    let config = EngineConfig { max_waiting: 2, ..EngineConfig::default() };
    let engine = start(Box::new(executor), VOCAB_SIZE, config);
    let submit = |seed| engine.submit(request(&prompt(seed, 5), 2), None);

    // The first step is held inside the executor.
    let first = submit(1).unwrap();
    gate.wait_for_step();
    let second = submit(2).unwrap();
    let third = submit(3).unwrap();
    assert_eq!(submit(4).unwrap_err(), SubmitError::QueueFull { max: 2 });
    assert_eq!((engine.stats().running(), engine.stats().waiting()), (1, 2));
    gate.pass();
    gate.wait_for_step();
    assert_eq!(submit(4).unwrap_err(), SubmitError::QueueFull { max: 2 });

    drop(gate);
    for stream in [first, second, third] {
        assert_eq!(answer(stream).await.tokens.len(), 2);
    }
    assert_idle(&engine);
    assert_eq!(answer(submit(5).unwrap()).await.tokens.len(), 2);
}
