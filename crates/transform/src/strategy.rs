//! How several updates of one weight become one. In: dense updates. Out: their sum, or what TIES and
//! DARE make of them. Each weight is treated on its own, so that one is in memory at a time.
//!
//! * *Linear*: the sum (task arithmetic).
//! * *TIES* (Yadav 2023): of each update the `density` largest entries by magnitude stay; then each
//!   entry takes the sign that has the larger sum, and the mean of the updates that have that sign. The
//!   paper ranks the entries of the whole model together; here each weight keeps its own share.
//! * *DARE* (Yu 2023): each entry stays with probability `density`, divided by `density`, so that the
//!   expectation is unchanged; then the sum, or TIES's sign and mean. What stays depends on seed, place
//!   and adapter alone.
//!
//! The result is multiplied with `lambda`.

use crate::error::{Result, refuse};
use crate::matrix::Matrix;
use serde::Serialize;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The sum.
    Linear,
    /// Trim, elect sign, disjoint mean.
    Ties,
    /// Drop at random and rescale, then the sum.
    DareLinear,
    /// Drop at random and rescale, then elect sign and disjoint mean.
    DareTies,
}

/// A strategy and its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StrategyOptions {
    /// Which way.
    pub strategy: Strategy,
    /// The share of entries that stay, above 0 and at most 1; [`Strategy::Linear`] keeps all.
    pub density: f64,
    /// Of DARE's choices.
    pub seed: u64,
    /// What the result is multiplied with.
    pub lambda: f64,
}

impl Default for StrategyOptions {
    /// The sum, as it is.
    fn default() -> Self {
        Self { strategy: Strategy::Linear, density: 1.0, seed: 0, lambda: 1.0 }
    }
}

impl StrategyOptions {
    /// Refuses numbers that mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if !(self.density > 0.0 && self.density <= 1.0) {
            return refuse(format!("density {} is not above 0 and at most 1", self.density));
        }
        if self.strategy == Strategy::Linear && self.density < 1.0 {
            return refuse("a density below 1 needs strategy ties, dare-linear or dare-ties");
        }
        if !self.lambda.is_finite() {
            return refuse(format!("lambda {} is no finite number", self.lambda));
        }
        Ok(())
    }

    /// One update from several of the same shape, at least one; `place` tells weights apart. Each comes
    /// with the number of its adapter.
    pub(crate) fn combine(&self, mut updates: Vec<(usize, Matrix)>, place: u64) -> Matrix {
        for (adapter, update) in &mut updates {
            match self.strategy {
                Strategy::Linear => {}
                Strategy::Ties => trim(update.as_mut_slice(), self.density),
                Strategy::DareLinear | Strategy::DareTies => {
                    let stream = mix(mix(self.seed ^ mix(place)) ^ *adapter as u64);
                    drop_and_rescale(update.as_mut_slice(), self.density, stream);
                }
            }
        }
        let mut result = match self.strategy {
            Strategy::Linear | Strategy::DareLinear => {
                let mut updates = updates.into_iter().map(|(_, update)| update);
                let first = updates.next().unwrap_or_default();
                updates.fold(first, |sum, update| sum + update)
            }
            Strategy::Ties | Strategy::DareTies => {
                let updates: Vec<_> = updates.into_iter().map(|(_, update)| update).collect();
                disjoint_mean(&updates)
            }
        };
        if self.lambda != 1.0 {
            result *= self.lambda;
        }
        result
    }
}

/// Sets all but the largest `density · n` entries to zero; those that are equal to the least of them stay.
fn trim(values: &mut [f64], density: f64) {
    let num_kept = (values.len() as f64 * density).ceil() as usize;
    if num_kept == 0 || num_kept >= values.len() {
        return;
    }
    let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    let index = sizes.len() - num_kept;
    let (_, &mut least, _) = sizes.select_nth_unstable_by(index, f64::total_cmp);
    values.iter_mut().filter(|value| value.abs() < least).for_each(|value| *value = 0.0);
}

fn drop_and_rescale(values: &mut [f64], density: f64, stream: u64) {
    for (index, value) in values.iter_mut().enumerate() {
        let bits = mix(stream.wrapping_add((index as u64).wrapping_mul(GOLDEN)));
        let unit = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        *value = if unit < density { *value / density } else { 0.0 };
    }
}

/// For each entry the mean of those that have the sign of the sum; zeros take no part.
fn disjoint_mean(updates: &[Matrix]) -> Matrix {
    let Some(first) = updates.first() else { return Matrix::default() };
    Matrix::from_fn(first.nrows(), first.ncols(), |row, column| {
        let entries = || updates.iter().map(|update| update[(row, column)]);
        let sum: f64 = entries().sum();
        let agreeing = || entries().filter(|entry| entry * sum > 0.0);
        match agreeing().count() {
            0 => 0.0,
            count => agreeing().sum::<f64>() / count as f64,
        }
    })
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f64]) -> Matrix {
        Matrix::from_row_slice(1, values.len(), values)
    }

    fn combined(strategy: Strategy, density: f64, updates: &[&[f64]]) -> Vec<f64> {
        let options = StrategyOptions { strategy, density, ..StrategyOptions::default() };
        options.check().unwrap();
        let updates = updates.iter().map(|values| row(values)).enumerate().collect();
        options.combine(updates, 7).as_slice().to_vec()
    }

    #[test]
    fn ties_trims_elects_the_larger_side_and_averages_it() {
        // Half of the entries stay: 4 and -3; -5 and 2.
        let got = combined(Strategy::Ties, 0.5, &[&[4.0, 1.0, -3.0, 0.5], &[-5.0, 0.1, -1.0, 2.0]]);
        assert_eq!(got, [-5.0, 0.0, -3.0, 2.0]);
        let got = combined(Strategy::Ties, 1.0, &[&[1.0, -1.0], &[3.0, 1.0], &[-2.0, 0.0]]);
        // 1 + 3 > 2; -1 and 1 cancel.
        assert_eq!(got, [2.0, 0.0]);
    }

    #[test]
    fn linear_is_the_sum() {
        assert_eq!(combined(Strategy::Linear, 1.0, &[&[1.0, 2.0], &[3.0, -5.0]]), [4.0, -3.0]);
    }

    #[test]
    fn dare_keeps_its_share_rescaled_and_so_the_expectation() {
        let ones = vec![1.0; 20_000];
        let got = combined(Strategy::DareLinear, 0.25, &[&ones]);
        assert!(got.iter().all(|&value| value == 0.0 || value == 4.0));
        let mean = got.iter().sum::<f64>() / got.len() as f64;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert_eq!(got, combined(Strategy::DareLinear, 0.25, &[&ones]));
    }

    #[test]
    fn dare_drops_other_entries_of_another_adapter_weight_or_seed() {
        let kept = |seed, adapter, place| {
            let strategy = Strategy::DareTies;
            let options = StrategyOptions { strategy, density: 0.5, seed, lambda: 1.0 };
            options.combine(vec![(adapter, row(&[1.0; 64]))], place).as_slice().to_vec()
        };
        let first = kept(0, 0, 0);
        assert!(first != kept(1, 0, 0) && first != kept(0, 1, 0) && first != kept(0, 0, 1));
    }

    #[test]
    fn lambda_scales_the_result_and_numbers_without_meaning_are_refused() {
        let options = StrategyOptions { lambda: 0.5, ..StrategyOptions::default() };
        assert_eq!(options.combine(vec![(0, row(&[3.0]))], 0)[0], 1.5);
        let ties = |density| StrategyOptions {
            strategy: Strategy::Ties,
            density,
            ..StrategyOptions::default()
        };
        assert!(ties(0.0).check().is_err() && ties(f64::NAN).check().is_err());
        assert!(ties(1.1).check().is_err() && ties(0.2).check().is_ok());
        assert!(StrategyOptions { density: 0.5, ..StrategyOptions::default() }.check().is_err());
    }
}
