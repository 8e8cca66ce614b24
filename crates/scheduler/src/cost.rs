//! What a step and a load cost, as a linear model: `β + γ · tokens + α · Σ rank` seconds a step.
//!
//! The scheduler needs only ratios: how many tokens a rank is worth, and whether an adapter is
//! dearer to load than a prefix is to compute again. `weft bench calibrate` fits all of it.

/// Seconds that things take. The defaults are those of a small model on two cores.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// β: a step, whatever is in it.
    pub step_s: f64,
    /// γ: a token of a step.
    pub token_s: f64,
    /// α: a rank of a distinct adapter in a step.
    pub rank_s: f64,
    /// A load, whatever its size.
    pub load_s: f64,
    /// A chunk of a load.
    pub load_chunk_s: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self { step_s: 6e-3, token_s: 5e-4, rank_s: 3e-5, load_s: 1e-4, load_chunk_s: 6e-5 }
    }
}

impl CostModel {
    /// Seconds of a step.
    #[must_use]
    pub fn step(&self, num_tokens: usize, sum_rank: usize) -> f64 {
        self.step_s + self.token_s * num_tokens as f64 + self.rank_s * sum_rank as f64
    }

    /// Seconds of a load.
    #[must_use]
    pub fn load(&self, num_chunks: usize) -> f64 {
        self.load_s + self.load_chunk_s * num_chunks as f64
    }

    /// Tokens that take as long as an adapter of this rank.
    pub(crate) fn tokens_of_rank(&self, rank: usize) -> f64 {
        if self.token_s > 0.0 { self.rank_s * rank as f64 / self.token_s } else { 0.0 }
    }
}
