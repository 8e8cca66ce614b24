//! The device: how long a step takes, and when copies of adapters end. One copy at a time, beside
//! the steps.

use std::collections::VecDeque;
use weft_scheduler::CostModel;
use weft_types::AdapterId;

pub(crate) struct Device {
    costs: CostModel,
    /// Copies that have begun, and when they end; soonest first.
    loads: VecDeque<(f64, AdapterId)>,
}

impl Device {
    pub(crate) fn new(costs: CostModel) -> Self {
        Self { costs, loads: VecDeque::new() }
    }

    /// Begins a copy behind those under way.
    pub(crate) fn load(&mut self, now_s: f64, adapter: AdapterId, num_chunks: usize) {
        let begin = self.loads.back().map_or(now_s, |&(end, _)| end.max(now_s));
        self.loads.push_back((begin + self.costs.load(num_chunks), adapter));
    }

    /// A copy that has ended by now.
    pub(crate) fn loaded(&mut self, now_s: f64) -> Option<AdapterId> {
        let (_, adapter) = self.loads.pop_front_if(|(end, _)| *end <= now_s)?;
        Some(adapter)
    }

    /// When the next copy ends.
    pub(crate) fn next_load_s(&self) -> Option<f64> {
        self.loads.front().map(|&(end, _)| end)
    }

    /// Seconds of a step.
    pub(crate) fn step(&self, num_tokens: usize, sum_rank: usize) -> f64 {
        self.costs.step(num_tokens, sum_rank)
    }
}
