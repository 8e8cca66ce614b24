//! Who gives way when chunks or places are short.

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Sends a running sequence back to the queue; returns how many of its tokens were planned. It
    /// keeps what was drawn; its full blocks stay findable, so that little is computed twice if it
    /// returns before their room is needed.
    pub(crate) fn preempt_at(&mut self, index: usize) -> usize {
        let mut seq = self.running.remove(index);
        seq.release_blocks(&mut self.memory);
        if let Some(adapter) = seq.adapter {
            self.memory.end_use(adapter, true);
        }
        let num_planned = std::mem::take(&mut seq.num_planned);
        self.waiting.stop_running(seq.tenant);
        self.waiting.push(seq);
        self.counters.num_preemptions += 1;
        self.roster_version += 1;
        num_planned
    }
}
