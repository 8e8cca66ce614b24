//! An audit of everything that must hold between two calls. For tests and for idle time.

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Checks that every block is free, cached or held with an exact count, that sequences hold
    /// blocks for what they have computed, and that order is kept.
    ///
    /// # Errors
    /// A sentence that names the first thing found wrong.
    pub fn check_integrity(&self) -> Result<(), String> {
        let block_size = self.limits.block_size;
        let mut num_holders = vec![0; self.pool.num_blocks()];
        for seq in &self.running {
            for block in &seq.blocks {
                num_holders[block.0 as usize] += 1;
            }
            if seq.num_computed > seq.tokens.len() {
                return Err(format!("{:?} has computed more than it knows", seq.id));
            }
            if seq.num_computed > seq.blocks.len() * block_size {
                return Err(format!("{:?} has computed more than its blocks hold", seq.id));
            }
        }
        for seq in self.waiting.iter() {
            if !seq.blocks.is_empty() || seq.num_computed != 0 || seq.is_planned {
                return Err(format!("{:?} waits and holds blocks", seq.id));
            }
        }
        if self.running.len() > self.limits.max_num_seqs {
            return Err(format!("{} sequences run", self.running.len()));
        }
        let in_order = self.running.iter().chain(self.waiting.iter());
        if !in_order.map(|seq| seq.arrival).is_sorted() {
            return Err("a later arrival comes before an earlier one".to_owned());
        }
        self.pool.check_integrity(&num_holders)
    }
}
