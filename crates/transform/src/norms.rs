//! How large an adapter's updates are, and of how many dimensions. In: an adapter and its base's shapes.
//! Out: a row per module.

use crate::error::Result;
use crate::factors::{Factors, read_lowered, updates};
use crate::svd::singular_values;
use serde::Serialize;
use std::path::Path;
use weft_types::{BaseModelSpec, LoweredAdapter};

/// One module's update.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleNorm {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// Of the factors.
    pub rank: usize,
    /// What multiplies `B·A`: alpha / r, …
    pub scale: f64,
    /// `‖ΔW‖` (Frobenius), with the scale.
    pub norm: f64,
    /// `exp(entropy of σᵢ / Σσ)` (Roy and Vetterli 2007): how many directions the update really uses.
    pub effective_rank: f64,
}

/// All modules of an adapter that was lowered already.
///
/// # Errors
/// If it adds something else than low-rank products.
pub fn module_norms(lowered: &LoweredAdapter) -> Result<Vec<ModuleNorm>> {
    let mut scales: Vec<f64> =
        lowered.low_rank.iter().map(|update| f64::from(update.scale)).collect();
    scales.extend(lowered.embedding.iter().map(|update| f64::from(update.scale)));
    // Both are in the order of weights.
    let all = updates(lowered.clone(), 1.0)?;
    Ok(all
        .iter()
        .zip(scales)
        .map(|((weight, factors), scale)| ModuleNorm {
            module: weight.key(),
            rank: factors.rank(),
            scale,
            norm: norm(factors),
            effective_rank: effective_rank(&singular_values(factors)),
        })
        .collect())
}

/// [`module_norms`] of a PEFT directory.
///
/// # Errors
/// As it, or if the directory is refused.
pub fn read_module_norms(path: &Path, base: &BaseModelSpec) -> Result<Vec<ModuleNorm>> {
    module_norms(&read_lowered(path, base)?)
}

/// `‖b·aᵀ‖`, without the product: its square is the inner product of both Gram matrices.
pub(crate) fn norm(factors: &Factors) -> f64 {
    let gram_a = factors.a.transpose() * &factors.a;
    let gram_b = factors.b.transpose() * &factors.b;
    gram_a.dot(&gram_b).max(0.0).sqrt()
}

fn effective_rank(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let entropy: f64 = values
        .iter()
        .map(|value| value / sum)
        .filter(|share| *share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    entropy.exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::tests::random_factors;
    use weft_testkit::peft::RandomAdapter;

    #[test]
    fn norms_are_those_of_the_products() {
        let factors = random_factors(9, 14, 3, 2);
        assert!((norm(&factors) - factors.product().norm()).abs() < 1e-9);
    }

    #[test]
    fn the_effective_rank_counts_equal_directions() {
        assert!((effective_rank(&[2.0, 2.0, 2.0]) - 3.0).abs() < 1e-12);
        assert!((effective_rank(&[5.0, 0.0]) - 1.0).abs() < 1e-12);
        assert_eq!(effective_rank(&[0.0]), 0.0);
    }

    #[test]
    fn every_module_has_a_row_with_its_rank_and_scale() {
        let base = weft_testkit::tiny_llama_spec();
        let dir = tempfile::tempdir().unwrap();
        let adapter = RandomAdapter {
            embedding: true,
            lm_head: true,
            rank_pattern: vec![("up_proj".into(), 3)],
            ..RandomAdapter::default()
        };
        adapter.write(&base, dir.path()).unwrap();
        let rows = read_module_norms(dir.path(), &base).unwrap();
        assert_eq!(rows.len(), 2 * 7 + 2);
        for row in &rows {
            assert_eq!(row.rank, adapter.rank_at(&row.module), "{}", row.module);
            let scale = f64::from(adapter.scale_at(&row.module));
            assert!((row.scale - scale).abs() < 1e-6 && row.norm > 0.0);
            assert!(row.effective_rank > 1.0 && row.effective_rank <= row.rank as f64 + 1e-9);
        }
    }
}
