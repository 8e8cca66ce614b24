//! Several adapters made into one. In: PEFT directories and their base's shapes. Out: a PEFT directory.
//!
//! The sum is exact: the factors stand beside each other, and ranks add up. What TIES and DARE make has
//! no low rank, so that it is approximated by truncated SVD; so is a sum if a rank is asked for. The
//! error of each module is reported.

use crate::error::{Result, refuse};
use crate::factors::{AdapterInput, Factors, Updates, Weight, read_updates};
use crate::merge::{Progress, all_weights};
use crate::norms::norm;
use crate::staging::Staging;
use crate::strategy::{Strategy, StrategyOptions};
use crate::svd::{recompressed, truncated};
use crate::{matrix::Matrix, peft_dir};
use serde::Serialize;
use std::path::Path;
use weft_types::{BaseModelSpec, Dtype};

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineOptions {
    /// Of every module; `None` is the sum of the adapters' ranks there.
    pub rank: Option<usize>,
    /// Of all tensors.
    pub dtype: Dtype,
}

/// One module of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CombinedModule {
    /// `model.layers.0.self_attn.q_proj`
    pub module: String,
    /// In the result.
    pub rank: usize,
    /// `‖ΔW‖` of what was wanted.
    pub norm: f64,
    /// `‖ΔW - B·A‖ / ‖ΔW‖`, before rounding to the element type; 0 if it is exact.
    pub relative_error: f64,
}

/// Combines `adapters` and writes the result to `out`, which must not exist.
///
/// # Errors
/// A sentence: an adapter does not fit the base or is no plain low-rank update, numbers without meaning,
/// or `out` is in the way.
pub fn combine(
    adapters: &[AdapterInput],
    base: &BaseModelSpec,
    (strategy, options): (&StrategyOptions, &CombineOptions),
    out: &Path,
    progress: Progress<'_>,
) -> Result<Vec<CombinedModule>> {
    strategy.check()?;
    if adapters.is_empty() {
        return refuse("no adapter is named; there is nothing to merge");
    }
    if options.rank == Some(0) {
        return refuse("a rank is a whole number from 1");
    }
    let inputs = adapters
        .iter()
        .map(|adapter| read_updates(adapter, base))
        .collect::<Result<Vec<Updates>>>()?;
    let staging = Staging::new(out)?;
    let weights = all_weights(&inputs);
    let (mut combined, mut report) = (Updates::new(), Vec::new());
    for (index, &weight) in weights.iter().enumerate() {
        let of_weight: Vec<(usize, &Factors)> = inputs
            .iter()
            .enumerate()
            .filter_map(|(adapter, updates)| Some((adapter, updates.get(&weight)?)))
            .collect();
        let (factors, module) = combined_weight(weight, &of_weight, index, strategy, options.rank);
        combined.insert(weight, factors);
        report.push(module);
        progress(index + 1, weights.len());
    }
    let base_name = base_name_of(&adapters[0].path);
    peft_dir::write(staging.path(), &combined, options.dtype, base, &base_name)?;
    staging.publish()?;
    Ok(report)
}

fn combined_weight(
    weight: Weight,
    updates: &[(usize, &Factors)],
    place: usize,
    strategy: &StrategyOptions,
    rank: Option<usize>,
) -> (Factors, CombinedModule) {
    let all: Vec<&Factors> = updates.iter().map(|(_, factors)| *factors).collect();
    let sum_of_ranks: usize = all.iter().map(|factors| factors.rank()).sum();
    let (factors, norm, error) = if strategy.strategy == Strategy::Linear {
        let mut sum = Factors::concatenated(&all);
        sum.b *= strategy.lambda;
        let norm = norm(&sum);
        match rank.filter(|&rank| rank < sum.rank()) {
            None => (sum, norm, 0.0),
            Some(rank) => {
                let fewer = recompressed(&sum, rank);
                let error = (fewer.product() - sum.product()).norm();
                (fewer, norm, error)
            }
        }
    } else {
        let dense = updates.iter().map(|(adapter, factors)| (*adapter, factors.product()));
        let wanted: Matrix = strategy.combine(dense.collect(), place as u64);
        let factors = truncated(&wanted, rank.unwrap_or(sum_of_ranks));
        let error = (factors.product() - &wanted).norm();
        (factors, wanted.norm(), error)
    };
    let relative_error = if norm > 0.0 { error / norm } else { 0.0 };
    let module = weight.key();
    let rank = factors.rank();
    (factors, CombinedModule { module, rank, norm, relative_error })
}

/// What the adapter says that it was trained on.
fn base_name_of(adapter: &Path) -> String {
    let config = std::fs::read(adapter.join("adapter_config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    config["base_model_name_or_path"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::peft::RandomAdapter;

    fn inputs(dir: &Path, base: &BaseModelSpec) -> Vec<AdapterInput> {
        let recipes = [
            RandomAdapter { rank: 3, use_rslora: true, ..RandomAdapter::of_rank(3, 1) },
            RandomAdapter { layers: Some(vec![1]), ..RandomAdapter::of_rank(5, 2) },
        ];
        let scales = [1.0, 0.25];
        recipes
            .iter()
            .zip(scales)
            .map(|(recipe, scale)| {
                let path = dir.join(recipe.seed.to_string());
                recipe.write(base, &path).unwrap();
                AdapterInput { path, scale }
            })
            .collect()
    }

    fn combined(strategy: StrategyOptions, rank: Option<usize>) -> (Vec<CombinedModule>, f64) {
        let dir = tempfile::tempdir().unwrap();
        let base = weft_testkit::tiny_llama_spec();
        let inputs = inputs(dir.path(), &base);
        let out = dir.path().join("out");
        let options = CombineOptions { rank, dtype: Dtype::F32 };
        let report = combine(&inputs, &base, (&strategy, &options), &out, &|_, _| {}).unwrap();
        let result = read_updates(&AdapterInput { path: out, scale: 1.0 }, &base).unwrap();
        // The largest distance from the sum, relative to it.
        let parts: Vec<_> =
            inputs.iter().map(|input| read_updates(input, &base).unwrap()).collect();
        let mut error = 0.0_f64;
        for (weight, factors) in &result {
            let all: Vec<_> = parts.iter().filter_map(|part| part.get(weight)).collect();
            let sum = Factors::concatenated(&all).product();
            error = error.max((factors.product() - &sum).norm() / sum.norm());
        }
        (report, error)
    }

    #[test]
    fn a_sum_is_exact_and_its_ranks_add_up() {
        let (report, error) = combined(StrategyOptions::default(), None);
        assert!(error < 1e-6, "{error}");
        let ranks = |prefix: &str| -> Vec<usize> {
            let of_layer = report.iter().filter(|module| module.module.starts_with(prefix));
            of_layer.map(|module| module.rank).collect()
        };
        assert_eq!(ranks("model.layers.0."), [3; 7]);
        assert_eq!(ranks("model.layers.1."), [8; 7]);
        assert!(report.iter().all(|module| module.relative_error == 0.0));
    }

    #[test]
    fn a_smaller_rank_is_an_approximation_with_the_error_that_is_reported() {
        let (report, error) = combined(StrategyOptions::default(), Some(4));
        let largest = report.iter().map(|module| module.relative_error).fold(0.0, f64::max);
        assert!(report.iter().all(|module| module.rank <= 4));
        assert!(largest > 0.01 && (largest - error).abs() < 1e-5, "{largest} {error}");
    }

    #[test]
    fn ties_and_dare_with_nothing_dropped_keep_what_one_adapter_has() {
        for strategy in [Strategy::Ties, Strategy::DareTies, Strategy::DareLinear] {
            let options = StrategyOptions { strategy, ..StrategyOptions::default() };
            let (report, _) = combined(options, None);
            // Layer 0 is changed by one adapter only: nothing disagrees with it.
            let of_first = report.iter().filter(|m| m.module.starts_with("model.layers.0."));
            assert!(of_first.clone().count() == 7);
            assert!(of_first.clone().all(|module| module.relative_error < 1e-8), "{strategy:?}");
        }
        let ties = StrategyOptions {
            strategy: Strategy::Ties,
            density: 0.2,
            ..StrategyOptions::default()
        };
        assert!(combined(ties, None).0.iter().all(|module| module.relative_error > 0.1));
    }
}
