//! LoHa (Hyeon-Woo 2022): `ΔW = s (A₁ B₁) ⊙ (A₂ B₂)`, `A:[N,r] B:[r,K]`. The elementwise product of
//! matrices of ranks r₁ and r₂ is a matrix of rank r₁ r₂, whose halves are all products of columns and
//! of rows (Khatri-Rao): exact, at the cost of that rank.

use super::{LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, linear_site};
use crate::error::Refusal;
use crate::matrix::{computed, values};
use crate::modules::BaseModule;
use crate::peft_config::{LoHaConfig, Selection};
use crate::read::LoadLimits;
use crate::targets::{Target, targets};
use crate::tensor_names::{Factor, Part};

pub(super) struct LoHa<'a> {
    config: &'a LoHaConfig,
    targets: Vec<Option<Target>>,
}

impl<'a> LoHa<'a> {
    pub(super) fn new(
        config: &'a LoHaConfig,
        selection: &Selection,
        modules: &[BaseModule],
        limits: &LoadLimits,
    ) -> Result<Self, Refusal> {
        let this = Self { config, targets: targets(selection, &config.ranks, modules)? };
        for target in this.targets.iter().flatten() {
            let (first, second) = this.ranks(target);
            let what = format!(", the product of LoHa's ranks {first} and {second}");
            check_rank(first.saturating_mul(second), limits, &what)?;
        }
        Ok(this)
    }

    fn ranks(&self, target: &Target) -> (usize, usize) {
        (target.rank, self.config.second_rank.unwrap_or(target.rank))
    }

    fn scale(&self, target: &Target) -> f32 {
        let (first, second) = self.ranks(target);
        match self.config.is_scaled_twice {
            true => (target.alpha * target.alpha / (first as f64 * second as f64).sqrt()) as f32,
            false => target.scale,
        }
    }
}

impl Lowering for LoHa<'_> {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        let Some(target) = &self.targets[index] else { return Ok(ModuleUpdate::default()) };
        linear_site(module, "LoHa")?;
        let (first, second) = self.ranks(target);
        let (num_inputs, num_outputs) = (module.shape.num_inputs, module.shape.num_outputs);
        let why = format!("ranks {first} and {second} and the shape of this base demand");
        let mut require = |part, shape: [usize; 2]| {
            tensors.require(&module.key, part, &shape, &why).map(|tensor| values(&tensor))
        };
        let left = require(Part::First(Factor::Left), [num_outputs, first])?;
        let right = require(Part::First(Factor::Right), [first, num_inputs])?;
        let other_left = require(Part::Second(Factor::Left), [num_outputs, second])?;
        let other_right = require(Part::Second(Factor::Right), [second, num_inputs])?;
        let rank = first * second;
        let (mut a, mut b) = (Vec::with_capacity(rank * num_inputs), Vec::new());
        b.reserve(rank * num_outputs);
        for i in 0..first {
            for j in 0..second {
                let row = &right[i * num_inputs..][..num_inputs];
                let other = &other_right[j * num_inputs..][..num_inputs];
                a.extend(row.iter().zip(other).map(|(one, other)| one * other));
                let column = left.iter().skip(i).step_by(first);
                let other = other_left.iter().skip(j).step_by(second);
                b.extend(column.zip(other).map(|(one, other)| one * other));
            }
        }
        let (a, b) = (computed(rank, num_inputs, &a), computed(rank, num_outputs, &b));
        let low_rank = Some(LowRank { scale: self.scale(target), a, b });
        Ok(ModuleUpdate { is_targeted: true, low_rank, ..ModuleUpdate::default() })
    }
}
