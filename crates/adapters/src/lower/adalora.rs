//! AdaLoRA (Zhang 2023): `y = W x + b + alpha / (init_r + 1e-5) B (E ⊙ (A x))`, with ranks pruned by
//! module. E is folded into A, and ranks whose singular value is 0 are dropped.

use super::{LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, linear_site};
use crate::error::Refusal;
use crate::matrix::{computed, values};
use crate::modules::BaseModule;
use crate::peft_config::{AdaLoraConfig, Selection};
use crate::quoted::Quoted;
use crate::read::LoadLimits;
use crate::targets::selected;
use crate::tensor_names::Part;

/// What PEFT adds to the rank that it divides by.
const EPSILON: f32 = 1e-5;

pub(super) struct AdaLora<'a> {
    config: &'a AdaLoraConfig,
    /// The rank in the file of each targeted module.
    ranks: Vec<Option<usize>>,
}

impl<'a> AdaLora<'a> {
    pub(super) fn new(
        config: &'a AdaLoraConfig,
        selection: &Selection,
        modules: &[BaseModule],
        limits: &LoadLimits,
    ) -> Result<Self, Refusal> {
        let targeted = selected(selection, modules)?;
        let mut ranks: Vec<_> =
            targeted.into_iter().map(|targeted| targeted.then_some(config.init_rank)).collect();
        for (name, rank) in &config.ranks {
            // Saved as the name of the module's lora_E.
            let key = name.strip_prefix("base_model.model.").unwrap_or(name);
            let key = key.split_once(".lora_E").map_or(key, |(key, _)| key);
            let index = modules.iter().position(|module| module.key == key);
            match index.and_then(|index| ranks.get_mut(index)) {
                Some(Some(kept)) => *kept = *rank,
                _ => {
                    return Err(Refusal::new(format!(
                        "has the key {} in rank_pattern of adapter_config.json, which is no \
                         targeted module of this base",
                        Quoted(name)
                    )));
                }
            }
        }
        check_rank(ranks.iter().flatten().copied().max().unwrap_or(0), limits, "")?;
        Ok(Self { config, ranks })
    }

    fn scale(&self, rank: usize) -> f32 {
        let alpha = self.config.alpha as f32;
        let alpha = if alpha > 0.0 { alpha } else { rank as f32 };
        alpha / (self.config.init_rank as f32 + EPSILON)
    }
}

impl Lowering for AdaLora<'_> {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        let Some(rank) = self.ranks[index] else { return Ok(ModuleUpdate::default()) };
        linear_site(module, "AdaLoRA")?;
        let (key, shape) = (&module.key, module.shape);
        let why = format!("rank {rank} (init_r, rank_pattern) and the shape of this base demand");
        let a = values(&tensors.require(key, Part::A, &[rank, shape.num_inputs], &why)?);
        let b = values(&tensors.require(key, Part::B, &[shape.num_outputs, rank], &why)?);
        let e = values(&tensors.require(key, Part::E, &[rank, 1], &why)?);
        if let Some(num) = tensors.take(key, Part::RankNum, &[1], "it is one number:")?
            && values(&num) != [self.config.init_rank as f32]
        {
            return Err(Refusal::new(format!(
                "holds another ranknum for {key} than init_r in adapter_config.json"
            )));
        }
        let kept: Vec<_> = (0..rank).filter(|&j| e[j] != 0.0).collect();
        let mut update = ModuleUpdate { is_targeted: true, ..ModuleUpdate::default() };
        if kept.is_empty() {
            return Ok(update);
        }
        let row =
            |&j: &usize| a[j * shape.num_inputs..][..shape.num_inputs].iter().map(move |a| (j, a));
        let scaled: Vec<f32> = kept.iter().flat_map(row).map(|(j, a)| a * e[j]).collect();
        let column = |&j: &usize| b.iter().skip(j).step_by(rank).copied();
        let turned: Vec<f32> = kept.iter().flat_map(column).collect();
        update.low_rank = Some(LowRank {
            scale: self.scale(rank),
            a: computed(kept.len(), shape.num_inputs, &scaled),
            b: computed(kept.len(), shape.num_outputs, &turned),
        });
        Ok(update)
    }
}
