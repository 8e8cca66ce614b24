//! LoHa (Hyeon-Woo 2022): `ΔW = s (A₁ B₁) ⊙ (A₂ B₂)`, `A:[N,r] B:[r,K]`. The elementwise product of
//! matrices of rank r is one of rank r², whose halves are all products of columns and
//! of rows (Khatri-Rao): exact, at the cost of that rank.

use super::{LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, linear_site};
use crate::error::Refusal;
use crate::matrix::{computed, values};
use crate::modules::BaseModule;
use crate::peft_config::{Ranks, Selection};
use crate::read::LoadLimits;
use crate::targets::{Target, targets};
use crate::tensor_names::{Factor, Part};

pub(super) struct LoHa {
    targets: Vec<Option<Target>>,
}

impl LoHa {
    pub(super) fn new(
        ranks: &Ranks,
        selection: &Selection,
        modules: &[BaseModule],
        limits: &LoadLimits,
    ) -> Result<Self, Refusal> {
        let targets = targets(selection, ranks, modules)?;
        for Target { rank, .. } in targets.iter().flatten() {
            let what = format!(", the square of LoHa's rank {rank}");
            check_rank(rank.saturating_mul(*rank), limits, &what)?;
        }
        Ok(Self { targets })
    }
}

impl Lowering for LoHa {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        let Some(Target { rank, scale }) = self.targets[index] else {
            return Ok(ModuleUpdate::default());
        };
        linear_site(module, "LoHa")?;
        let (num_inputs, num_outputs) = (module.shape.num_inputs, module.shape.num_outputs);
        let why = format!("rank {rank} (r, rank_pattern) and the shape of this base demand");
        let mut require = |part, shape: [usize; 2]| {
            tensors.require(&module.key, part, &shape, &why).map(|tensor| values(&tensor))
        };
        let left = require(Part::First(Factor::Left), [num_outputs, rank])?;
        let right = require(Part::First(Factor::Right), [rank, num_inputs])?;
        let other_left = require(Part::Second(Factor::Left), [num_outputs, rank])?;
        let other_right = require(Part::Second(Factor::Right), [rank, num_inputs])?;
        let num_rows = rank * rank;
        let (mut a, mut b) = (Vec::with_capacity(num_rows * num_inputs), Vec::new());
        b.reserve(num_rows * num_outputs);
        for i in 0..rank {
            for j in 0..rank {
                let row = &right[i * num_inputs..][..num_inputs];
                let other = &other_right[j * num_inputs..][..num_inputs];
                a.extend(row.iter().zip(other).map(|(one, other)| one * other));
                let column = left.iter().skip(i).step_by(rank);
                let other = other_left.iter().skip(j).step_by(rank);
                b.extend(column.zip(other).map(|(one, other)| one * other));
            }
        }
        let (a, b) = (computed(num_rows, num_inputs, &a), computed(num_rows, num_outputs, &b));
        let low_rank = Some(LowRank { scale, a, b });
        Ok(ModuleUpdate { is_targeted: true, low_rank, ..ModuleUpdate::default() })
    }
}
