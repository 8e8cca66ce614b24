//! An adapter as what it adds to weights: `ΔW = B·A` per weight, scales folded in. In: a PEFT directory.
//! Out: factors in double precision. What adds something else to the base than low-rank products is
//! refused.

use crate::error::{Result, TransformError, refuse};
use crate::matrix::{Matrix, of_tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_types::{BaseModelSpec, EmbeddingUpdate, LowRankUpdate, LoweredAdapter, Site};

/// A weight of the base that adapters change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weight {
    /// `[N, K]`
    Linear(Site),
    /// `[vocab, hidden]`
    Embedding,
}

impl Weight {
    /// The module's name in Hugging Face checkpoints: `model.layers.0.self_attn.q_proj`.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Linear(site) => site.hf_name(),
            Self::Embedding => "model.embed_tokens".to_owned(),
        }
    }

    /// Its last part: `q_proj`, `lm_head`, `embed_tokens`.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Self::Linear(Site::Layer { module, .. }) => module.hf_name(),
            Self::Linear(Site::LmHead) => "lm_head",
            Self::Embedding => "embed_tokens",
        }
    }
}

/// An adapter and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInput {
    /// A PEFT directory.
    pub path: PathBuf,
    /// What its update is multiplied with.
    pub scale: f64,
}

/// What is added to a weight `[rows, cols]`: the transpose of `b·aᵀ`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factors {
    /// `cols × rank`: of a linear, Aᵀ.
    pub(crate) a: Matrix,
    /// `rows × rank`: of a linear, B times the scale.
    pub(crate) b: Matrix,
}

impl Factors {
    pub(crate) fn rank(&self) -> usize {
        self.a.ncols()
    }

    /// `ΔWᵀ`, `cols × rows`: in the order of the file.
    pub(crate) fn product(&self) -> Matrix {
        &self.a * self.b.transpose()
    }

    /// The sum of these updates, exactly: their ranks beside each other. There is at least one.
    pub(crate) fn concatenated(all: &[&Self]) -> Self {
        let beside = |part: fn(&Self) -> &Matrix| {
            let columns: Vec<_> = all.iter().flat_map(|one| part(one).column_iter()).collect();
            Matrix::from_columns(&columns)
        };
        Self { a: beside(|one| &one.a), b: beside(|one| &one.b) }
    }
}

/// All factors of an adapter.
pub(crate) type Updates = BTreeMap<Weight, Factors>;

/// Reads an adapter, of whatever rank, and scales it.
pub(crate) fn read_updates(input: &AdapterInput, base: &BaseModelSpec) -> Result<Updates> {
    let lowered = read_lowered(&input.path, base)?;
    updates(lowered, input.scale)
        .map_err(|error| TransformError::Refused(format!("{}: {error}", input.path.display())))
}

/// Reads an adapter of whatever rank.
pub(crate) fn read_lowered(path: &Path, base: &BaseModelSpec) -> Result<LoweredAdapter> {
    // No rank beyond this is of use: the update would be larger than the weight.
    let max_lora_rank = base.hidden_size.max(base.intermediate_size);
    Ok(load_peft_dir(path, base, &LoadLimits { max_lora_rank })?)
}

/// Takes every part of a lowered adapter apart by name, so that a new kind of part is noticed here.
pub(crate) fn updates(lowered: LoweredAdapter, scale: f64) -> Result<Updates> {
    if !scale.is_finite() {
        return refuse(format!("the scale {scale} is no finite number"));
    }
    let (low_rank, embedding) = low_rank_parts(lowered)?;
    let mut updates = Updates::new();
    for LowRankUpdate { site, scale: own, a, b } in low_rank {
        let factors = Factors { a: of_tensor(&a), b: of_tensor(&b) * (f64::from(own) * scale) };
        updates.insert(Weight::Linear(site), factors);
    }
    if let Some(EmbeddingUpdate { scale: own, a, b }) = embedding {
        // a: [vocab, rank] and b: [rank, hidden] of a weight [vocab, hidden].
        let factors =
            Factors { a: of_tensor(&b), b: of_tensor(&a).transpose() * (f64::from(own) * scale) };
        updates.insert(Weight::Embedding, factors);
    }
    Ok(updates)
}

/// The parts of an adapter that is nothing but low-rank updates.
pub(crate) fn low_rank_parts(
    lowered: LoweredAdapter,
) -> Result<(Vec<LowRankUpdate>, Option<EmbeddingUpdate>)> {
    let LoweredAdapter {
        content_hash: _,
        low_rank,
        embedding,
        vectors,
        bottlenecks,
        token_rows,
        kv_prefix,
        num_virtual_tokens,
        invocation_tokens,
    } = lowered;
    let others = [
        (!vectors.is_empty(), "scales or shifts outputs (DoRA, IA3, biases)"),
        (!bottlenecks.is_empty(), "has bottlenecks"),
        (token_rows.is_some(), "has embeddings of its own"),
        (kv_prefix.is_some() || num_virtual_tokens > 0, "has virtual tokens"),
        (invocation_tokens.is_some(), "is active from its invocation on only"),
    ];
    match others.iter().find(|(has, _)| *has) {
        Some((_, what)) => refuse(format!(
            "the adapter {what}: only low-rank updates can be taken to weights by this command"
        )),
        None => Ok((low_rank, embedding)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use weft_testkit::rng::SplitMix64;

    /// Factors of random numbers.
    pub(crate) fn random_factors(cols: usize, rows: usize, rank: usize, seed: u64) -> Factors {
        let mut rng = SplitMix64::new(seed);
        let mut matrix = |n: usize| Matrix::from_fn(n, rank, |_, _| f64::from(rng.symmetric(1.0)));
        Factors { a: matrix(cols), b: matrix(rows) }
    }

    #[test]
    fn concatenated_factors_give_the_sum() {
        let (x, y) = (random_factors(5, 7, 2, 1), random_factors(5, 7, 3, 2));
        let sum = Factors::concatenated(&[&x, &y]);
        assert_eq!(sum.rank(), 5);
        assert!((sum.product() - x.product() - y.product()).norm() < 1e-12);
    }

    #[test]
    fn names_are_those_of_checkpoints() {
        let site = Site::Layer { layer: 3, module: weft_types::Module::Down };
        assert_eq!(Weight::Linear(site).key(), "model.layers.3.mlp.down_proj");
        assert_eq!(Weight::Linear(Site::LmHead).key(), "lm_head");
        assert_eq!(Weight::Embedding.key(), "model.embed_tokens");
    }
}
