//! An audit of everything that must hold between two calls. For tests and for idle time.

use crate::scheduler::Scheduler;
use rustc_hash::FxHashMap;
use weft_types::AdapterId;

impl Scheduler {
    /// Checks that every chunk is free, cached or held with an exact count, that sequences hold
    /// blocks for what they have computed, and that adapters and tenants count their sequences.
    ///
    /// # Errors
    /// A sentence that names the first thing found wrong.
    pub fn check_integrity(&self) -> Result<(), String> {
        let block_size = self.limits.block_size;
        let mut num_holders = vec![0; self.memory.num_chunks()];
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
            if !seq.blocks.is_empty() || seq.num_computed != 0 || seq.num_planned != 0 {
                return Err(format!("{:?} waits and holds blocks", seq.id));
            }
        }
        if self.running.len() > self.limits.max_num_seqs {
            return Err(format!("{} sequences run", self.running.len()));
        }
        let mut uses = FxHashMap::<AdapterId, (u32, u32)>::default();
        for seq in &self.running {
            seq.adapter.iter().for_each(|&id| uses.entry(id).or_default().0 += 1);
        }
        for seq in self.waiting.iter() {
            seq.adapter.iter().for_each(|&id| uses.entry(id).or_default().1 += 1);
        }
        for (id, entry) in self.memory.residency.iter() {
            let counted = (entry.num_running, entry.num_waiting);
            if counted != uses.remove(&id).unwrap_or_default() {
                return Err(format!("adapter {} counts {counted:?} wrongly", entry.spec.hash));
            }
        }
        if !uses.is_empty() {
            return Err("a sequence names an adapter that is not known".to_owned());
        }
        self.waiting.check_integrity(&self.running)?;
        self.memory.check_integrity(num_holders)
    }
}
