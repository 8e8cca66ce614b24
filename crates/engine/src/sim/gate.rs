//! Lets a test hold the loop inside a step. In: permits. Out: notice of each step that begins.

use std::sync::mpsc::{Receiver, Sender, channel};

/// The test's end. Once it is dropped, every step passes.
pub struct StepGate {
    entered: Receiver<()>,
    permits: Sender<()>,
}

impl StepGate {
    /// Waits until a step is inside `execute`, held at the gate.
    ///
    /// # Panics
    /// If the executor is gone.
    pub fn wait_for_step(&self) {
        self.entered.recv().expect("the executor still exists");
    }

    /// Lets the held step pass, or the next one, if none is held.
    pub fn pass(&self) {
        // Without an executor there is nothing to let pass.
        let _ = self.permits.send(());
    }

    /// Waits for a step and lets it pass.
    pub fn step(&self) {
        self.wait_for_step();
        self.pass();
    }
}

pub(super) struct Gate {
    entered: Sender<()>,
    permits: Receiver<()>,
}

impl Gate {
    pub(super) fn wait(&mut self) {
        // An error in either means that the test has let go.
        if self.entered.send(()).is_ok() {
            let _ = self.permits.recv();
        }
    }
}

pub(super) fn pair() -> (Gate, StepGate) {
    let ((entered, entered_outside), (permits_outside, permits)) = (channel(), channel());
    (Gate { entered, permits }, StepGate { entered: entered_outside, permits: permits_outside })
}
