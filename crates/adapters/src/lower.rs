//! Joins what the configuration says with what the tensors are, and lowers LoRA to low-rank updates.
//! Both must agree: a module that is targeted has both matrices, in the rank and shape that
//! configuration and base demand, and no tensor is left over. Reads no files.

use crate::error::Refusal;
use crate::matrix::{check_finite, copied, transposed};
use crate::modules::{BaseModule, Place, base_modules};
use crate::peft_config::PeftConfig;
use crate::polite::pause;
use crate::quoted::Quoted;
use crate::read::{LoadLimits, content_hash};
use crate::targets::{Target, targets};
use crate::tensor_names::{Part, tensor_name};
use crate::tensors::{FileTensor, read_tensors};
use std::collections::{BTreeMap, HashSet};
use weft_types::{
    BaseModelSpec, Bottleneck, EmbeddingUpdate, KvPrefix, LowRankUpdate, LoweredAdapter,
    SiteVectors, TokenId, TokenRows,
};

/// Lowers the bytes of `adapter_config.json` and `adapter_model.safetensors` for `base`. Both are
/// untrusted: never panics, and allocates in proportion to their length.
///
/// # Errors
/// A [`Refusal`] that names the key or the tensor and the reason.
pub fn lower_peft_bytes(
    config: &[u8],
    tensors: &[u8],
    base: &BaseModelSpec,
    limits: &LoadLimits,
) -> Result<LoweredAdapter, Refusal> {
    let content_hash = content_hash(config, tensors);
    let mut lowered = LoweredAdapter { content_hash, ..LoweredAdapter::default() };
    lower_each(config, tensors, base, limits, |update| {
        match update {
            Update::LowRank(update) => lowered.low_rank.push(update),
            Update::Embedding(update) => lowered.embedding = Some(update),
            Update::Vectors(vectors) => lowered.vectors.push(vectors),
            Update::Bottleneck(bottleneck) => lowered.bottlenecks.push(bottleneck),
            Update::TokenRows(rows) => lowered.token_rows = Some(rows),
            Update::KvPrefix(prefix) => lowered.kv_prefix = Some(prefix),
            Update::VirtualTokens(num) => lowered.num_virtual_tokens = num,
            Update::InvocationTokens(tokens) => lowered.invocation_tokens = Some(tokens),
        }
        Ok(())
    })?;
    Ok(lowered)
}

/// A part of a lowered adapter.
#[expect(dead_code, reason = "LoRA has two of them; the other methods come next")]
pub(crate) enum Update {
    LowRank(LowRankUpdate),
    Embedding(EmbeddingUpdate),
    Vectors(SiteVectors),
    Bottleneck(Bottleneck),
    TokenRows(TokenRows),
    KvPrefix(KvPrefix),
    VirtualTokens(usize),
    InvocationTokens(Box<[TokenId]>),
}

/// The same, one update after the other, sorted by site: what is done with one need not be in memory
/// together with the next.
pub(crate) fn lower_each(
    config: &[u8],
    tensors: &[u8],
    base: &BaseModelSpec,
    limits: &LoadLimits,
    mut each: impl FnMut(Update) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let modules = base_modules(base);
    let config = PeftConfig::parse(config)?;
    let targets = targets(&config, &modules)?;
    check_ranks(&targets, limits)?;
    if let Some(tokens) = config.invocation_tokens {
        check_activation(&tokens, &modules, &targets, base)?;
        each(Update::InvocationTokens(tokens))?;
    }
    let mut parts = Parts::read(tensors, &modules, base)?;

    for (module, target) in modules.iter().zip(targets) {
        pause();
        let Some(target) = target else {
            parts.check_untouched(module)?;
            continue;
        };
        match module.place {
            Place::Linear(site) => {
                let (a, b) = parts.pair(module, target, (Part::A, Part::B))?;
                let (a, b) = (copied(&a), transposed(&b));
                // Modules come in the order of `Site`.
                each(Update::LowRank(LowRankUpdate { site, scale: target.scale, a, b }))?;
            }
            Place::Embedding => {
                let (a, b) = parts.pair(module, target, (Part::EmbeddingA, Part::EmbeddingB))?;
                let (a, b) = (transposed(&a), transposed(&b));
                each(Update::Embedding(EmbeddingUpdate { scale: target.scale, a, b }))?;
            }
        }
    }
    Ok(())
}

fn check_ranks(targets: &[Option<Target>], limits: &LoadLimits) -> Result<(), Refusal> {
    let rank = targets.iter().flatten().map(|target| target.rank).max().unwrap_or(0);
    let max = limits.max_lora_rank;
    if rank <= max {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "has rank {rank}, but this server was started with --max-lora-rank {max}"
    )))
}

/// An adapter that becomes active in mid-prompt is one of linears: PEFT applies an update of the
/// embedding to all tokens.
fn check_activation(
    tokens: &[TokenId],
    modules: &[BaseModule],
    targets: &[Option<Target>],
    base: &BaseModelSpec,
) -> Result<(), Refusal> {
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= base.vocab_size) {
        return Err(Refusal::new(format!(
            "lists token {token} in alora_invocation_tokens of adapter_config.json, but this base has \
             {} tokens",
            base.vocab_size
        )));
    }
    let is_embedding = |(module, target): (&BaseModule, &Option<Target>)| {
        module.place == Place::Embedding && target.is_some()
    };
    if modules.iter().zip(targets).any(is_embedding) {
        return Err(Refusal::new(
            "targets embed_tokens and sets alora_invocation_tokens in adapter_config.json, but the \
             embedding cannot become active in mid-prompt; train without it",
        ));
    }
    Ok(())
}

/// The tensors of the file, by module and part, each with its name in the file.
struct Parts<'a> {
    by_module: BTreeMap<(String, Part), (String, FileTensor<'a>)>,
}

impl<'a> Parts<'a> {
    fn read(
        bytes: &'a [u8],
        modules: &[BaseModule],
        base: &BaseModelSpec,
    ) -> Result<Self, Refusal> {
        let keys: HashSet<_> = modules.iter().map(|module| module.key.as_str()).collect();
        let mut by_module = BTreeMap::new();
        let mut adapters = HashSet::new();
        for (name, tensor) in read_tensors(bytes)? {
            let parsed = tensor_name(&name)?;
            if !keys.contains(parsed.module) {
                return Err(unknown_module(&name, parsed.module, base));
            }
            if parsed.part != Part::BaseCopy {
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

    fn take(&mut self, module: &BaseModule, part: Part) -> Option<(String, FileTensor<'a>)> {
        self.by_module.remove(&(module.key.clone(), part))
    }

    /// Refuses tensors of a module that the configuration leaves out.
    fn check_untouched(&self, module: &BaseModule) -> Result<(), Refusal> {
        let first = (module.key.clone(), Part::A);
        match self.by_module.range(first..).next() {
            Some(((key, _), (name, _))) if *key == module.key => Err(Refusal::new(format!(
                "holds tensor {}, but adapter_config.json does not target {} (target_modules, \
                 layers_to_transform, exclude_modules)",
                Quoted(name),
                module.key
            ))),
            _ => Ok(()),
        }
    }

    /// Both matrices of a targeted module, checked. No tensor of that module is left over.
    fn pair(
        &mut self,
        module: &BaseModule,
        target: Target,
        (part_a, part_b): (Part, Part),
    ) -> Result<(FileTensor<'a>, FileTensor<'a>), Refusal> {
        let (rank, shape) = (target.rank, module.shape);
        let a = self.matrix(module, part_a, [rank, shape.num_inputs], rank)?;
        let b = self.matrix(module, part_b, [shape.num_outputs, rank], rank)?;
        if let Some((name, copy)) = self.take(module, Part::BaseCopy) {
            // Embedding and head are both stored as [vocab, hidden].
            let vocab_first = match module.place {
                Place::Embedding => [shape.num_inputs, shape.num_outputs],
                Place::Linear(_) => [shape.num_outputs, shape.num_inputs],
            };
            if module.is_layer_linear() {
                return Err(Refusal::new(format!(
                    "holds tensor {}, a weight of the base, which this server does not replace",
                    Quoted(&name)
                )));
            }
            check_shape(&name, &copy, vocab_first, "this base has")?;
        }
        self.check_no_rest(module)?;
        Ok((a, b))
    }

    fn matrix(
        &mut self,
        module: &BaseModule,
        part: Part,
        shape: [usize; 2],
        rank: usize,
    ) -> Result<FileTensor<'a>, Refusal> {
        let Some((name, tensor)) = self.take(module, part) else {
            return Err(Refusal::new(format!(
                "is incomplete: adapter_config.json targets {}, but adapter_model.safetensors has \
                 no {} for it",
                module.key,
                word(part)
            )));
        };
        let why = format!("rank {rank} (r, rank_pattern) and the shape of this base demand");
        check_shape(&name, &tensor, shape, &why)?;
        check_finite(&name, &tensor)?;
        Ok(tensor)
    }

    fn check_no_rest(&self, module: &BaseModule) -> Result<(), Refusal> {
        match self.check_untouched(module) {
            Ok(()) => Ok(()),
            Err(_) => Err(Refusal::new(format!(
                "holds matrices for {} that do not fit its kind: a linear has lora_A and lora_B, \
                 an embedding has lora_embedding_A and lora_embedding_B",
                module.key
            ))),
        }
    }
}

fn word(part: Part) -> &'static str {
    match part {
        Part::A => "lora_A.weight",
        Part::B => "lora_B.weight",
        Part::EmbeddingA => "lora_embedding_A",
        Part::EmbeddingB => "lora_embedding_B",
        Part::BaseCopy => "base_layer.weight",
    }
}

fn check_shape(
    name: &str,
    tensor: &FileTensor<'_>,
    expected: [usize; 2],
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

fn unknown_module(name: &str, module: &str, base: &BaseModelSpec) -> Refusal {
    let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let beyond = layer.and_then(|layer| layer.parse::<usize>().ok());
    let why = match beyond {
        Some(layer) if layer >= base.num_layers => {
            format!("but this base has {} layers", base.num_layers)
        }
        _ => "whose module is no linear or embedding of this base".to_owned(),
    };
    Refusal::new(format!("holds tensor {}, {why}", Quoted(name)))
}
