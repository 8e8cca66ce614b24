//! Steps that go wrong on purpose.

use weft_types::{ExecuteError, StepPlan, TokenId};

/// Which step goes wrong, and how. Steps are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step with this number returns an error.
    FailStep(u64),
    /// The step with this number panics.
    PanicAtStep(u64),
    /// Every step that computes this token returns an error.
    FailOnToken(TokenId),
    /// Every step that computes this token panics.
    PanicOnToken(TokenId),
}

#[derive(Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    num_steps: u64,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Counts a step, and fails it if it is to fail.
    pub(super) fn strike(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        let step = self.num_steps;
        self.num_steps += 1;
        for fault in &self.faults {
            match *fault {
                Fault::FailStep(at) if at == step => return Err(failed()),
                Fault::FailOnToken(token) if plan.tokens.contains(&token) => return Err(failed()),
                Fault::PanicAtStep(at) if at == step => panic!("simulated panic"),
                Fault::PanicOnToken(token) if plan.tokens.contains(&token) => {
                    panic!("simulated panic")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn failed() -> ExecuteError {
    ExecuteError { message: "simulated failure".to_owned() }
}
