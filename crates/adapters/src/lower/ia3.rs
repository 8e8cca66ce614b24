//! IA3 (Liu 2022): a trained vector scales the outputs of a linear, or in feed-forward modules its inputs.

use super::{Lowering, ModuleTensors, ModuleUpdate, linear_site};
use crate::error::Refusal;
use crate::matrix::values;
use crate::modules::BaseModule;
use crate::peft_config::{ModuleNames, Selection};
use crate::targets::{check_matches, compile, is_match, selected};
use crate::tensor_names::Part;

pub(super) struct Ia3 {
    targeted: Vec<bool>,
    is_feedforward: Vec<bool>,
}

impl Ia3 {
    pub(super) fn new(
        feedforward: Option<&ModuleNames>,
        selection: &Selection,
        modules: &[BaseModule],
    ) -> Result<Self, Refusal> {
        let targeted = selected(selection, modules)?;
        let is_feedforward = match feedforward {
            None => vec![false; modules.len()],
            Some(names) => feedforward_modules(names, modules)?,
        };
        Ok(Self { targeted, is_feedforward })
    }
}

/// As PEFT has it: a name is any ending of a module's name, a pattern its whole.
fn feedforward_modules(names: &ModuleNames, modules: &[BaseModule]) -> Result<Vec<bool>, Refusal> {
    let key = "feedforward_modules";
    match names {
        ModuleNames::List(names) => {
            check_matches(key, names, modules, |module, name| module.ends_with(name))?;
            let is_listed = |key: &str| names.iter().any(|name| key.ends_with(name.as_str()));
            Ok(modules.iter().map(|module| is_listed(&module.key)).collect())
        }
        ModuleNames::Pattern(pattern) => {
            let regex = compile(key, pattern, &format!("^(?:{pattern})$"))?;
            modules.iter().map(|module| is_match(key, &regex, &module.key)).collect()
        }
    }
}

impl Lowering for Ia3 {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        if !self.targeted[index] {
            return Ok(ModuleUpdate::default());
        }
        linear_site(module, "IA3")?;
        let is_feedforward = self.is_feedforward[index];
        let shape = match is_feedforward {
            true => [1, module.shape.num_inputs],
            false => [module.shape.num_outputs, 1],
        };
        let why = "feedforward_modules and the shape of this base demand";
        let scale = Some(values(&tensors.require(&module.key, Part::Scale, &shape, why)?));
        let (input, output) = if is_feedforward { (scale, None) } else { (None, scale) };
        Ok(ModuleUpdate { is_targeted: true, input, output, ..ModuleUpdate::default() })
    }
}
