//! Calls the executor so that nothing it does ends the loop. In: a plan. Out: an output of the
//! plan's shape, or one sentence for the clients of that step.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weft_types::{ExecuteError, Executor, StepOutput, StepPlan};

/// Begins `plan`, if there is something to compute.
pub(crate) fn begin(executor: &mut dyn Executor, plan: &StepPlan) -> Result<(), ExecuteError> {
    if plan.is_empty() { Ok(()) } else { guard(|| executor.begin(plan))? }
}

/// Computes `plan` into `output`. A panic, or an output of another shape, is an error like others.
pub(crate) fn execute(
    executor: &mut dyn Executor,
    plan: &StepPlan,
    output: &mut StepOutput,
) -> Result<(), ExecuteError> {
    guard(|| executor.execute(plan, output))??;
    let fits = |(chunk, out): (&weft_types::PlannedSequence, &weft_types::SequenceOutput)| {
        out.failed.is_some() || out.token.is_some() == chunk.sample
    };
    if output.sequences.len() == plan.sequences.len()
        && plan.sequences.iter().zip(&output.sequences).all(fits)
    {
        return Ok(());
    }
    let message = "the executor answered another step than it was asked for, which is a bug";
    Err(ExecuteError { message: message.to_owned() })
}

/// Runs `call`; a panic becomes an error. By its contract the executor stays usable after one.
pub(crate) fn guard<T>(call: impl FnOnce() -> T) -> Result<T, ExecuteError> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let message = format!("a bug in the server ended this request: {}", reason(&*panic));
        ExecuteError { message }
    })
}

fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason")
}
