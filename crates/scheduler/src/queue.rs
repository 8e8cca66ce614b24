//! The sequences that wait, in the order in which they will run. In: arrivals and preempted
//! sequences. Out: the next one. First come, first served; a policy of fairness belongs here.

use crate::sequence::Sequence;
use std::collections::VecDeque;
use weft_types::SeqId;

#[derive(Default)]
pub(crate) struct WaitingQueue {
    sequences: VecDeque<Sequence>,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter()
    }

    /// A new arrival.
    pub(crate) fn push(&mut self, seq: Sequence) {
        self.sequences.push_back(seq);
    }

    /// One that ran already: it came before all that wait.
    pub(crate) fn push_preempted(&mut self, seq: Sequence) {
        self.sequences.push_front(seq);
    }

    /// Who runs next.
    pub(crate) fn next_mut(&mut self) -> Option<&mut Sequence> {
        self.sequences.front_mut()
    }

    pub(crate) fn pop(&mut self) -> Option<Sequence> {
        self.sequences.pop_front()
    }

    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let index = self.sequences.iter().position(|seq| seq.id == id)?;
        self.sequences.remove(index)
    }
}
