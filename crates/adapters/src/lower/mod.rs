//! Joins what the configuration says with what the tensors are, and lowers each method to the few
//! primitives of `weft_types`. Both must agree: a module that is targeted has all its tensors, in the
//! rank and shape that configuration and base demand, and no tensor is left over. Reads no files.
//!
//! A method makes a [`ModuleUpdate`] of each module ([`Lowering`]); what any method may have beside its
//! own (trained biases, trained rows of embedding and head) is added here. Methods that put tokens
//! before the prompt have no modules and files of their own shape: `prompt`. Bottleneck adapters come
//! from another library: `bottleneck`.

mod adalora;
mod biases;
mod bottleneck;
mod dora;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod prompt;
mod tensors;
mod torch_random;
mod trained_rows;
mod vera;

use crate::adapter_hub::AdapterHubConfig;
use crate::base_weights::ForBase;
use crate::error::Refusal;
use crate::modules::{BaseModule, Place, base_modules};
use crate::peft_config::{LoraConfig, Method, PeftConfig, parse_object};
use crate::polite::pause;
use crate::read::{LoadLimits, content_hash};
use crate::tensor_names::{ADALORA, IA3, LOHA, LOKR, LORA, VERA, Word};
use tensors::ModuleTensors;
use trained_rows::TrainedRows;
use weft_types::{
    AdapterTensor, Bottleneck, EmbeddingUpdate, KvPrefix, LowRankUpdate, LoweredAdapter, Site,
    SiteVectors, TokenId, TokenRows,
};

/// Lowers the bytes of `adapter_config.json` and of the tensors' file for `base`. Both are untrusted:
/// never panics, and allocates in proportion to their length and, within `limits`, to the base's.
///
/// # Errors
/// A [`Refusal`] that names the key or the tensor and the reason.
pub fn lower_peft_bytes<'a>(
    config: &[u8],
    tensors: &[u8],
    base: impl Into<ForBase<'a>>,
    limits: &LoadLimits,
) -> Result<LoweredAdapter, Refusal> {
    let content_hash = content_hash(config, tensors);
    let mut lowered = LoweredAdapter { content_hash, ..LoweredAdapter::default() };
    lower_each(config, tensors, base.into(), limits, |update| {
        update.put_into(&mut lowered);
        Ok(())
    })?;
    Ok(lowered)
}

/// A part of a lowered adapter.
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

impl Update {
    /// Behind those of its kind that came before.
    pub(crate) fn put_into(self, lowered: &mut LoweredAdapter) {
        match self {
            Self::LowRank(update) => lowered.low_rank.push(update),
            Self::Embedding(update) => lowered.embedding = Some(update),
            Self::Vectors(vectors) => lowered.vectors.push(vectors),
            Self::Bottleneck(bottleneck) => lowered.bottlenecks.push(bottleneck),
            Self::TokenRows(rows) => lowered.token_rows = Some(rows),
            Self::KvPrefix(prefix) => lowered.kv_prefix = Some(prefix),
            Self::VirtualTokens(num) => lowered.num_virtual_tokens = num,
            Self::InvocationTokens(tokens) => lowered.invocation_tokens = Some(tokens),
        }
    }
}

/// What receives the parts.
type Each<'e> = dyn FnMut(Update) -> Result<(), Refusal> + 'e;

/// The same, one part after the other, those of a kind sorted by site: what is done with one need not be
/// in memory together with the next.
pub(crate) fn lower_each(
    config: &[u8],
    tensors: &[u8],
    base: ForBase<'_>,
    limits: &LoadLimits,
    mut each: impl FnMut(Update) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let object = parse_object(config)?;
    if let Some(config) = AdapterHubConfig::read(&object)? {
        return bottleneck::lower(&config, tensors, base.spec, limits, &mut each);
    }
    let config = PeftConfig::read(&object)?;
    match config.method {
        Method::Prompt(tokens) => prompt::lower_prompt(tokens, tensors, base.spec, &mut each),
        Method::Prefix(tokens) => prompt::lower_prefix(tokens, tensors, base.spec, &mut each),
        _ => lower_modules(&config, tensors, base, limits, &mut each),
    }
}

/// What a method makes of one module.
#[derive(Debug, Default)]
pub(crate) struct ModuleUpdate {
    /// Whether the configuration names it.
    pub(crate) is_targeted: bool,
    pub(crate) low_rank: Option<LowRank>,
    /// `[K]`
    pub(crate) input: Option<Vec<f32>>,
    /// `[N]`
    pub(crate) output: Option<Vec<f32>>,
    /// `[N]`
    pub(crate) shift: Option<Vec<f32>>,
}

/// Of a linear `a:[rank, K] b:[rank, N]`, of the embedding `a:[vocab, rank] b:[rank, hidden]`.
#[derive(Debug)]
pub(crate) struct LowRank {
    pub(crate) scale: f32,
    pub(crate) a: AdapterTensor,
    pub(crate) b: AdapterTensor,
}

/// A method with its configuration.
trait Lowering {
    /// Takes the tensors of module number `index`, if it is targeted.
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal>;
}

/// Rows of the embedding and nothing else.
struct NoModules;

impl Lowering for NoModules {
    fn lower_module(
        &mut self,
        _: usize,
        _: &BaseModule,
        _: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        Ok(ModuleUpdate::default())
    }
}

fn lower_modules(
    config: &PeftConfig,
    tensors: &[u8],
    base: ForBase<'_>,
    limits: &LoadLimits,
    each: &mut Each<'_>,
) -> Result<(), Refusal> {
    let modules = base_modules(base.spec);
    let selection = &config.selection;
    // Configurations are looked at before tensors: their sentences are the clearer ones.
    let parse = |words: &[Word]| ModuleTensors::read(tensors, words, &modules, base.spec);
    let (mut lowering, mut tensors): (Box<dyn Lowering + '_>, _) = match &config.method {
        Method::Lora(lora) => {
            let lowering = lora::Lora::new(lora, selection, &modules, limits, base)?;
            (Box::new(lowering), parse(LORA)?)
        }
        Method::AdaLora(adalora) => {
            let lowering = adalora::AdaLora::new(adalora, selection, &modules, limits)?;
            (Box::new(lowering), parse(ADALORA)?)
        }
        Method::Vera(config) => {
            let targeted = vera::targeted(config, selection, &modules, limits)?;
            let mut tensors = parse(VERA)?;
            (Box::new(vera::Vera::new(config, targeted, &modules, &mut tensors)?), tensors)
        }
        Method::Ia3 { feedforward } => {
            let lowering = ia3::Ia3::new(feedforward.as_ref(), selection, &modules)?;
            (Box::new(lowering), parse(IA3)?)
        }
        Method::LoHa(ranks) => {
            let lowering = loha::LoHa::new(ranks, selection, &modules, limits)?;
            (Box::new(lowering), parse(LOHA)?)
        }
        Method::LoKr(ranks) => {
            let lowering = lokr::LoKr::new(ranks, selection, &modules, limits)?;
            (Box::new(lowering), parse(LOKR)?)
        }
        Method::TrainableTokens => (Box::new(NoModules), parse(&[])?),
        // Have no modules.
        Method::Prompt(_) | Method::Prefix(_) => return Ok(()),
    };
    let is_activated = emit_activation(config, base, each)?;
    let mut rows = TrainedRows::take(config, &mut tensors, &modules, base, limits)?;
    for (index, module) in modules.iter().enumerate() {
        pause();
        let mut update = lowering.lower_module(index, module, &mut tensors)?;
        if module.place == Place::Embedding && update.is_targeted && is_activated {
            return Err(Refusal::new(
                "targets embed_tokens and sets alora_invocation_tokens in adapter_config.json, but \
                 the embedding cannot become active in mid-prompt; train without it",
            ));
        }
        if config.has_biases {
            biases::add(&mut update, module, &mut tensors, base)?;
        }
        rows.add(&mut update, module)?;
        if update.is_targeted {
            tensors.take_base_copy(module)?;
        }
        tensors.check_none_left(module, update.is_targeted)?;
        emit(update, module, each)?;
    }
    if let Some(rows) = rows.token_rows {
        each(Update::TokenRows(rows))?;
    }
    Ok(())
}

/// Tells whether the adapter becomes active in mid-prompt.
fn emit_activation(
    config: &PeftConfig,
    base: ForBase<'_>,
    each: &mut Each<'_>,
) -> Result<bool, Refusal> {
    let Method::Lora(LoraConfig { invocation_tokens: Some(tokens), .. }) = &config.method else {
        return Ok(false);
    };
    let vocab_size = base.spec.vocab_size;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(Refusal::new(format!(
            "lists token {token} in alora_invocation_tokens of adapter_config.json, but this base \
             has {vocab_size} tokens"
        )));
    }
    each(Update::InvocationTokens(tokens.clone()))?;
    Ok(true)
}

/// Modules come in the order of [`Site`].
fn emit(update: ModuleUpdate, module: &BaseModule, each: &mut Each<'_>) -> Result<(), Refusal> {
    let ModuleUpdate { low_rank, input, output, shift, .. } = update;
    match (module.place, low_rank) {
        (Place::Linear(site), Some(LowRank { scale, a, b })) => {
            each(Update::LowRank(LowRankUpdate { site, scale, a, b }))?;
        }
        (Place::Embedding, Some(LowRank { scale, a, b })) => {
            each(Update::Embedding(EmbeddingUpdate { scale, a, b }))?;
        }
        (_, None) => {}
    }
    let Place::Linear(site) = module.place else { return Ok(()) };
    if input.is_none() && output.is_none() && shift.is_none() {
        return Ok(());
    }
    let boxed = |vector: Option<Vec<f32>>| vector.map(Vec::into_boxed_slice);
    let (input, output, shift) = (boxed(input), boxed(output), boxed(shift));
    each(Update::Vectors(SiteVectors { site, input, output, shift }))
}

/// Refuses a rank that this server does not take. `what` explains where it comes from.
fn check_rank(rank: usize, limits: &LoadLimits, what: &str) -> Result<(), Refusal> {
    let max = limits.max_lora_rank;
    if rank <= max {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "has rank {rank}{what}, but this server was started with --max-lora-rank {max}"
    )))
}

/// The site of a linear; methods that know no embeddings refuse it.
fn linear_site(module: &BaseModule, method: &str) -> Result<Site, Refusal> {
    match module.place {
        Place::Linear(site) => Ok(site),
        Place::Embedding => Err(Refusal::new(format!(
            "targets {} in adapter_config.json, but {method} is defined for linears only",
            module.key
        ))),
    }
}

/// The weights of the base, or the sentence about their absence.
fn base_weights<'a>(
    base: ForBase<'a>,
    why: &str,
) -> Result<&'a dyn crate::base_weights::BaseWeights, Refusal> {
    base.weights.ok_or_else(|| {
        Refusal::new(format!("{why}, which needs the base's weights: load it with its base"))
    })
}

/// The sentence about weights of the base that cannot be read.
fn unreadable(cause: &std::io::Error) -> Refusal {
    Refusal::new(format!("needs the base's weights, which cannot be read: {cause}"))
}
