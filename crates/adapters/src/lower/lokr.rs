//! LoKr (Yeh 2024): `ΔW = s W₁ ⊗ W₂`, `W₁:[a,b] W₂:[c,d]`, each whole or a product of two. With
//! `W₁ = U₁ V₁` and `W₂ = U₂ V₂` that is `(U₁ ⊗ U₂) (V₁ ⊗ V₂)`, of rank r₁ r₂: exact, at the cost of that
//! rank. A whole factor has the rank of its shorter side.

use super::tensors::{check_shape, incomplete};
use super::{LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, linear_site};
use crate::error::Refusal;
use crate::matrix::{computed, values};
use crate::modules::BaseModule;
use crate::peft_config::{Ranks, Selection};
use crate::read::LoadLimits;
use crate::targets::{Target, targets};
use crate::tensor_names::{Factor, Part};

pub(super) struct LoKr<'a> {
    targets: Vec<Option<Target>>,
    limits: &'a LoadLimits,
}

/// `left:[rows, rank] right:[rank, cols]`
struct Product {
    rows: usize,
    cols: usize,
    rank: usize,
    left: Vec<f32>,
    right: Vec<f32>,
}

impl<'a> LoKr<'a> {
    pub(super) fn new(
        ranks: &Ranks,
        selection: &Selection,
        modules: &[BaseModule],
        limits: &'a LoadLimits,
    ) -> Result<Self, Refusal> {
        Ok(Self { targets: targets(selection, ranks, modules)?, limits })
    }
}

impl Lowering for LoKr<'_> {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        let Some(target) = &self.targets[index] else { return Ok(ModuleUpdate::default()) };
        linear_site(module, "LoKr")?;
        let first = take_factor(tensors, module, Part::First, target.rank)?;
        let second = take_factor(tensors, module, Part::Second, target.rank)?;
        let (num_inputs, num_outputs) = (module.shape.num_inputs, module.shape.num_outputs);
        let fits = |one: usize, other: usize, whole| one.checked_mul(other) == Some(whole);
        if !fits(first.rows, second.rows, num_outputs) || !fits(first.cols, second.cols, num_inputs)
        {
            return Err(Refusal::new(format!(
                "holds factors [{}, {}] and [{}, {}] for {}, whose product is not of shape \
                 [{num_outputs}, {num_inputs}]",
                first.rows, first.cols, second.rows, second.cols, module.key
            )));
        }
        let what = format!(
            ", the product of the ranks {} and {} of LoKr's factors for {},",
            first.rank, second.rank, module.key
        );
        check_rank(first.rank.saturating_mul(second.rank), self.limits, &what)?;
        let rank = first.rank * second.rank;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for i in 0..first.rank {
            for j in 0..second.rank {
                for value in &first.right[i * first.cols..][..first.cols] {
                    let row = &second.right[j * second.cols..][..second.cols];
                    a.extend(row.iter().map(|other| value * other));
                }
                for value in first.left.iter().skip(i).step_by(first.rank) {
                    let column = second.left.iter().skip(j).step_by(second.rank);
                    b.extend(column.map(|other| value * other));
                }
            }
        }
        let (a, b) = (computed(rank, num_inputs, &a), computed(rank, num_outputs, &b));
        let low_rank = Some(LowRank { scale: target.scale, a, b });
        Ok(ModuleUpdate { is_targeted: true, low_rank, ..ModuleUpdate::default() })
    }
}

/// A factor, from its whole or from its two parts.
fn take_factor(
    tensors: &mut ModuleTensors<'_>,
    module: &BaseModule,
    part: fn(Factor) -> Part,
    rank: usize,
) -> Result<Product, Refusal> {
    let key = &module.key;
    if let Some((name, whole)) = tensors.take_any(key, part(Factor::Whole))? {
        let [rows, cols] = whole.shape[..] else {
            check_shape(&name, &whole, &[0, 0], "a linear's has two dimensions, as in")?;
            return Err(incomplete(key, part(Factor::Whole)));
        };
        let whole = values(&whole);
        return Ok(match rows < cols {
            true => Product { rows, cols, rank: rows, left: identity(rows), right: whole },
            false => Product { rows, cols, rank: cols, left: whole, right: identity(cols) },
        });
    }
    let left = tensors.take_any(key, part(Factor::Left))?;
    let Some((left_name, left)) = left else { return Err(incomplete(key, part(Factor::Whole))) };
    let right = tensors.take_any(key, part(Factor::Right))?;
    let Some((right_name, right)) = right else { return Err(incomplete(key, part(Factor::Right))) };
    let rows = left.shape.first().copied().unwrap_or(0);
    let cols = right.shape.last().copied().unwrap_or(0);
    let why = format!("rank {rank} (r, rank_pattern) demands");
    check_shape(&left_name, &left, &[rows, rank], &why)?;
    check_shape(&right_name, &right, &[rank, cols], &why)?;
    Ok(Product { rows, cols, rank, left: values(&left), right: values(&right) })
}

fn identity(size: usize) -> Vec<f32> {
    let mut values = vec![0.0; size * size];
    values.iter_mut().step_by(size + 1).for_each(|one| *one = 1.0);
    values
}
