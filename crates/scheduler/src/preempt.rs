//! Who gives way when the KV cache is full.

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Sends the sequence that began to run last back to the queue. It keeps what was drawn; its
    /// full blocks stay findable, so that little is computed twice if it returns before their room
    /// is needed.
    pub(crate) fn preempt_latest(&mut self) {
        let Some(mut seq) = self.running.pop() else { return };
        debug_assert!(!seq.is_planned, "{:?} was planned and then preempted", seq.id);
        seq.release_blocks(&mut self.memory);
        if let Some(adapter) = seq.adapter {
            self.memory.end_use(adapter, true);
        }
        self.waiting.stop_running(seq.tenant);
        self.waiting.push(seq);
        self.counters.num_preemptions += 1;
        self.roster_version += 1;
    }
}
