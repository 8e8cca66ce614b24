//! The tensors of a file by module and part, taken out one by one and checked. What nobody takes is
//! left over, and refused.

use crate::error::Refusal;
use crate::matrix::{check_finite, values};
use crate::modules::{BaseModule, Place};
use crate::quoted::Quoted;
use crate::tensor_names::{Factor, Part, SHARED, Word, stranger, tensor_name};
use crate::tensors::{FileTensor, read_tensors};
use std::collections::{BTreeMap, HashSet};
use weft_types::BaseModelSpec;

/// The tensors that are left, each with its name in the file.
pub(crate) struct ModuleTensors<'a> {
    by_module: BTreeMap<(String, Part), (String, FileTensor<'a>)>,
}

impl<'a> ModuleTensors<'a> {
    /// Reads a file of the method that calls its parts by `words`.
    pub(crate) fn read(
        bytes: &'a [u8],
        words: &[Word],
        modules: &[BaseModule],
        base: &BaseModelSpec,
    ) -> Result<Self, Refusal> {
        let keys: HashSet<_> = modules.iter().map(|module| module.key.as_str()).collect();
        let mut by_module = BTreeMap::new();
        let mut adapters = HashSet::new();
        for (name, tensor) in read_tensors(bytes)? {
            let parsed = tensor_name(&name, words)?;
            let is_shared = matches!(parsed.part, Part::SharedA | Part::SharedB);
            if is_shared != (parsed.module == SHARED) {
                return Err(stranger(&name));
            }
            if !is_shared && !keys.contains(parsed.module) {
                return Err(unknown_module(&name, parsed.module, parsed.part, base));
            }
            if !matches!(parsed.part, Part::BaseCopy | Part::Weight | Part::Bias) {
                adapters.insert(parsed.adapter.map(str::to_owned));
            }
            let key = (parsed.module.to_owned(), parsed.part);
            if by_module.contains_key(&key) {
                return Err(Refusal::new(format!(
                    "holds two tensors for the same matrix; one is {}",
                    Quoted(&name)
                )));
            }
            by_module.insert(key, (name, tensor));
        }
        if adapters.len() > 1 {
            return Err(Refusal::new(
                "holds the tensors of more than one adapter; save each on its own",
            ));
        }
        Ok(Self { by_module })
    }

    /// Whether a part is left.
    pub(crate) fn has(&self, module: &str, part: Part) -> bool {
        self.by_module.contains_key(&(module.to_owned(), part))
    }

    /// Takes a part that may be missing: of this shape, and finite.
    pub(crate) fn take(
        &mut self,
        module: &str,
        part: Part,
        shape: &[usize],
        why: &str,
    ) -> Result<Option<FileTensor<'a>>, Refusal> {
        match self.take_any(module, part)? {
            Some((name, tensor)) => {
                check_shape(&name, &tensor, shape, why)?;
                Ok(Some(tensor))
            }
            None => Ok(None),
        }
    }

    /// Takes a part that may be missing, of any shape.
    pub(crate) fn take_any(
        &mut self,
        module: &str,
        part: Part,
    ) -> Result<Option<(String, FileTensor<'a>)>, Refusal> {
        let Some((name, tensor)) = self.by_module.remove(&(module.to_owned(), part)) else {
            return Ok(None);
        };
        check_finite(&name, &tensor)?;
        Ok(Some((name, tensor)))
    }

    /// Takes a part that the configuration promises.
    pub(crate) fn require(
        &mut self,
        module: &str,
        part: Part,
        shape: &[usize],
        why: &str,
    ) -> Result<FileTensor<'a>, Refusal> {
        let tensor = self.take(module, part, shape, why)?;
        tensor.ok_or_else(|| incomplete(module, part))
    }

    /// Takes a vector that the configuration promises.
    pub(crate) fn require_vector(
        &mut self,
        module: &str,
        part: Part,
        len: usize,
    ) -> Result<Vec<f32>, Refusal> {
        let why = "the shape of this base demands";
        Ok(values(&self.require(module, part, &[len], why)?))
    }

    /// Takes the copy of the base's weight that PEFT saves beside an adapter of the embedding or the
    /// head, if it is there.
    pub(crate) fn take_base_copy(&mut self, module: &BaseModule) -> Result<(), Refusal> {
        let Some((name, copy)) = self.take_any(&module.key, Part::BaseCopy)? else {
            return Ok(());
        };
        // Both are stored as [vocab, hidden].
        let vocab_first = match module.place {
            Place::Embedding => [module.shape.num_inputs, module.shape.num_outputs],
            Place::Linear(_) => [module.shape.num_outputs, module.shape.num_inputs],
        };
        if module.is_layer_linear() {
            return Err(Refusal::new(format!(
                "holds tensor {}, a weight of the base, which this server does not replace",
                Quoted(&name)
            )));
        }
        check_shape(&name, &copy, &vocab_first, "this base has")
    }

    /// Refuses what is left of a module that its method has, or has not, looked at.
    pub(crate) fn check_none_left(
        &self,
        module: &BaseModule,
        is_targeted: bool,
    ) -> Result<(), Refusal> {
        let first = (module.key.clone(), Part::A);
        let (part, name) = match self.by_module.range(first..).next() {
            Some(((key, part), (name, _))) if *key == module.key => (*part, name),
            _ => return Ok(()),
        };
        let (name, key) = (Quoted(name), &module.key);
        Err(Refusal::new(match part {
            Part::Weight => format!(
                "holds tensor {name}, but full weights are read of embed_tokens and lm_head only, \
                 where modules_to_save of adapter_config.json names them"
            ),
            Part::Bias => format!(
                "holds tensor {name}, but adapter_config.json trains no biases (bias is \"none\")"
            ),
            Part::Magnitude => {
                format!(
                    "holds tensor {name} of DoRA, but adapter_config.json does not set use_dora"
                )
            }
            Part::BBias => {
                format!("holds tensor {name}, but biases are read where lora_bias is set only")
            }
            Part::TokenRows => format!(
                "holds tensor {name}, but trainable_token_indices of adapter_config.json do not \
                 name {key}"
            ),
            _ if is_targeted => format!(
                "holds matrices for {key} that do not fit its kind, such as {name}: a linear has \
                 lora_A and lora_B, an embedding has lora_embedding_A and lora_embedding_B"
            ),
            _ => format!(
                "holds tensor {name}, but adapter_config.json does not target {key} \
                 (target_modules, layers_to_transform, exclude_modules)"
            ),
        }))
    }
}

/// The sentence about a part that the configuration promises and the file lacks.
pub(crate) fn incomplete(module: &str, part: Part) -> Refusal {
    Refusal::new(format!(
        "is incomplete: adapter_config.json targets {module}, but adapter_model.safetensors has no \
         {} for it",
        word(part)
    ))
}

fn word(part: Part) -> &'static str {
    match part {
        Part::A => "lora_A.weight",
        Part::B => "lora_B.weight",
        Part::BBias => "lora_B.bias",
        Part::EmbeddingA => "lora_embedding_A",
        Part::EmbeddingB => "lora_embedding_B",
        Part::Magnitude => "lora_magnitude_vector",
        Part::E => "lora_E",
        Part::RankNum => "ranknum",
        Part::SharedA => "vera_A",
        Part::SharedB => "vera_B",
        Part::LambdaD => "vera_lambda_d",
        Part::LambdaB => "vera_lambda_b",
        Part::Scale => "ia3_l",
        Part::First(Factor::Whole) => "whole first factor (lokr_w1, or both of its parts)",
        Part::First(Factor::Left) => "first matrix of its first factor (…_w1_a)",
        Part::First(Factor::Right) => "second matrix of its first factor (…_w1_b)",
        Part::Second(Factor::Whole) => "whole second factor (lokr_w2, or both of its parts)",
        Part::Second(Factor::Left) => "first matrix of its second factor (…_w2_a)",
        Part::Second(Factor::Right) => "second matrix of its second factor (…_w2_b)",
        Part::TokenRows => "trainable_tokens_delta",
        Part::Bias => "bias",
        Part::Weight => "weight",
        Part::BaseCopy => "base_layer.weight",
    }
}

pub(crate) fn check_shape(
    name: &str,
    tensor: &FileTensor<'_>,
    expected: &[usize],
    why: &str,
) -> Result<(), Refusal> {
    if tensor.shape == expected {
        return Ok(());
    }
    let found = match tensor.shape.get(..5) {
        Some(first) => format!("{first:?} and more"),
        None => format!("{:?}", tensor.shape),
    };
    Err(Refusal::new(format!(
        "holds tensor {} of shape {found}, but {why} {expected:?}",
        Quoted(name)
    )))
}

fn unknown_module(name: &str, module: &str, part: Part, base: &BaseModelSpec) -> Refusal {
    let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let beyond = layer.and_then(|layer| layer.parse::<usize>().ok());
    let why = match (beyond, part) {
        (Some(layer), _) if layer >= base.num_layers => {
            format!("but this base has {} layers", base.num_layers)
        }
        (_, Part::Weight) => {
            "but full weights are read of embed_tokens and lm_head only: the rest of the base, such \
             as its norms, is shared by all requests"
                .to_owned()
        }
        _ => "whose module is no linear or embedding of this base".to_owned(),
    };
    Refusal::new(format!("holds tensor {}, {why}", Quoted(name)))
}
