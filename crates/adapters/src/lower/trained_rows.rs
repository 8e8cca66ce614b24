//! Rows of the embedding and of the head that were trained as they are: trained tokens, and both as a
//! whole (`modules_to_save`).
//!
//! Rows of the embedding replace the base's. Rows of the head become a low-rank update of what they
//! differ in: `logits[v] += (h[v] - W[v]) · x` has the rank of as many rows as changed, or of the hidden
//! width, whichever is less. So a few trained tokens cost what a small LoRA of the head costs; a whole
//! trained head is served where `--max-lora-rank` is at least the hidden width.

use super::{LowRank, ModuleTensors, ModuleUpdate, base_weights, check_rank, unreadable};
use crate::base_weights::ForBase;
use crate::error::Refusal;
use crate::matrix::{computed, copied, tensor_values};
use crate::modules::{BaseModule, Place};
use crate::peft_config::{Method, PeftConfig};
use crate::polite::pause;
use crate::quoted::Quoted;
use crate::read::LoadLimits;
use crate::targets::is_tail;
use crate::tensor_names::Part;
use weft_types::{AdapterTensor, Site, TokenRows};

/// What is left to add to the modules.
#[derive(Debug, Default)]
pub(super) struct TrainedRows {
    /// Of the embedding.
    pub(super) token_rows: Option<TokenRows>,
    head: Option<LowRank>,
    /// Modules whose tensors are taken here.
    modules: Vec<String>,
}

/// Rows of one module: the tokens, ascending, and as many rows.
#[derive(Clone, Debug)]
struct Rows {
    tokens: Vec<u32>,
    rows: AdapterTensor,
    /// In the order of the file.
    given: Vec<u64>,
    is_whole: bool,
}

impl TrainedRows {
    /// Takes the tensors that the configuration promises.
    pub(super) fn take(
        config: &PeftConfig,
        tensors: &mut ModuleTensors<'_>,
        modules: &[BaseModule],
        base: ForBase<'_>,
        limits: &LoadLimits,
    ) -> Result<Self, Refusal> {
        let (mut embedding, mut head) = (None, None);
        let mut taken = Vec::new();
        for name in &config.modules_to_save {
            let module = end(name, "modules_to_save", modules)?;
            // Peft adds the full name of what it ties.
            if !taken.contains(&module.key) {
                let rows = take_whole(module, tensors)?;
                taken.push(module.key.clone());
                put(rows, module, &mut embedding, &mut head)?;
            }
        }
        for (name, tokens) in &config.trained_tokens {
            let module = end(name, "trainable_token_indices", modules)?;
            let rows = take_tokens(module, tokens, tensors)?;
            taken.push(module.key.clone());
            put(rows, module, &mut embedding, &mut head)?;
        }
        if config.ensure_weight_tying && base.spec.tied_embeddings {
            check_tying(config)?;
        }
        // Trained tokens of a tied embedding are the head's, too; a whole embedding is if that is asked for.
        if let Some(rows) = &embedding
            && base.spec.tied_embeddings
            && (!rows.is_whole || config.ensure_weight_tying)
        {
            check_tied_copy(rows, tensors, modules)?;
            put_once(rows.clone(), "lm_head, which is tied to embed_tokens,", &mut head)?;
        }
        let head = head.map(|rows| head_update(&rows, base, limits)).transpose()?.flatten();
        let token_rows = embedding
            .map(|rows| TokenRows { tokens: rows.tokens.into_boxed_slice(), rows: rows.rows });
        if matches!(config.method, Method::TrainableTokens) && taken.is_empty() {
            return Err(Refusal::new("touches no module of this base"));
        }
        Ok(Self { token_rows, head, modules: taken })
    }

    /// Adds what belongs to `module`.
    pub(super) fn add(
        &mut self,
        update: &mut ModuleUpdate,
        module: &BaseModule,
    ) -> Result<(), Refusal> {
        let is_trained = self.modules.contains(&module.key);
        let is_head = module.place == Place::Linear(Site::LmHead);
        if update.is_targeted && (is_trained || is_head && self.head.is_some()) {
            return Err(Refusal::new(format!(
                "trains {} in two ways at once (target_modules, modules_to_save, \
                 trainable_token_indices), which is not supported; merge the adapter into the base",
                module.key
            )));
        }
        if is_head {
            update.low_rank = update.low_rank.take().or_else(|| self.head.take());
        }
        update.is_targeted |= is_trained;
        Ok(())
    }
}

/// The embedding or the head, by a name that the configuration gives it.
fn end<'m>(name: &str, key: &str, modules: &'m [BaseModule]) -> Result<&'m BaseModule, Refusal> {
    let mut ends = modules.iter().filter(|module| !module.is_layer_linear());
    ends.find(|module| is_tail(&module.key, name)).ok_or_else(|| {
        Refusal::new(format!(
            "names {} in {key} of adapter_config.json, but trained rows and whole modules are served \
             for embed_tokens and lm_head only: the rest of the base, such as its norms, is shared by \
             all requests",
            Quoted(name)
        ))
    })
}

/// What is tied is saved twice by some releases: it must be the same.
fn check_tied_copy(
    rows: &Rows,
    tensors: &mut ModuleTensors<'_>,
    modules: &[BaseModule],
) -> Result<(), Refusal> {
    let head = modules.iter().find(|module| module.place == Place::Linear(Site::LmHead));
    let Some(head) = head else { return Ok(()) };
    let copy = match rows.is_whole {
        true if tensors.has(&head.key, Part::Weight) => Some(take_whole(head, tensors)?),
        false if tensors.has(&head.key, Part::TokenRows) => {
            Some(take_tokens(head, &rows.given, tensors)?)
        }
        _ => None,
    };
    match copy {
        Some(copy) if copy.rows != rows.rows => Err(Refusal::new(
            "holds other rows for lm_head than for embed_tokens, but they are tied",
        )),
        _ => Ok(()),
    }
}

fn put(
    rows: Rows,
    module: &BaseModule,
    embedding: &mut Option<Rows>,
    head: &mut Option<Rows>,
) -> Result<(), Refusal> {
    let place = if module.place == Place::Embedding { embedding } else { head };
    put_once(rows, &module.key, place)
}

fn put_once(rows: Rows, name: &str, place: &mut Option<Rows>) -> Result<(), Refusal> {
    match place.replace(rows) {
        None => Ok(()),
        Some(_) => Err(Refusal::new(format!(
            "trains {name} twice (modules_to_save, trainable_token_indices, ensure_weight_tying of \
             adapter_config.json)"
        ))),
    }
}

/// Two LoRA of which one is the other's transpose are not put together here.
fn check_tying(config: &PeftConfig) -> Result<(), Refusal> {
    let is_end = |name: &String| is_tail("model.embed_tokens", name) || name == "lm_head";
    match &config.selection.target_modules {
        crate::peft_config::ModuleNames::List(names) if names.iter().any(is_end) => {
            Err(Refusal::new(
                "sets ensure_weight_tying in adapter_config.json with embed_tokens or lm_head in \
                 target_modules: one update shared by embedding and head is not supported",
            ))
        }
        _ => Ok(()),
    }
}

fn take_whole(module: &BaseModule, tensors: &mut ModuleTensors<'_>) -> Result<Rows, Refusal> {
    let (vocab, hidden) = vocab_and_hidden(module);
    let why = "a module is served in the size of this base only (resized embeddings are not): ";
    let tensor = tensors.require(&module.key, Part::Weight, &[vocab, hidden], why.trim_end())?;
    let tokens = (0..vocab as u32).collect();
    Ok(Rows { tokens, rows: copied(&tensor), given: Vec::new(), is_whole: true })
}

fn take_tokens(
    module: &BaseModule,
    tokens: &[u64],
    tensors: &mut ModuleTensors<'_>,
) -> Result<Rows, Refusal> {
    let (vocab, hidden) = vocab_and_hidden(module);
    let mut order = Vec::with_capacity(tokens.len());
    for (row, &token) in tokens.iter().enumerate() {
        match u32::try_from(token) {
            Ok(id) if (id as usize) < vocab => order.push((id, row)),
            _ => {
                return Err(Refusal::new(format!(
                    "trains token {token} (trainable_token_indices of adapter_config.json), but the \
                     vocabulary of this base has {vocab} tokens: resized embeddings are not supported"
                )));
            }
        }
    }
    order.sort_unstable();
    if let Some(pair) = order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Refusal::new(format!(
            "trains token {} twice (trainable_token_indices of adapter_config.json)",
            pair[0].0
        )));
    }
    let why = "the number of trained tokens and this base demand";
    let tensor = tensors.require(&module.key, Part::TokenRows, &[tokens.len(), hidden], why)?;
    let row_bytes = hidden * tensor.dtype.size();
    let rows = order.iter().map(|(_, row)| &tensor.data[row * row_bytes..][..row_bytes]);
    let data: Vec<u8> = rows.flatten().copied().collect();
    let (dtype, rows, cols) = (tensor.dtype, tokens.len(), hidden);
    let rows = AdapterTensor { dtype, rows, cols, data: data.into(), row_scales: None };
    let ids = order.into_iter().map(|(id, _)| id).collect();
    Ok(Rows { tokens: ids, rows, given: tokens.to_vec(), is_whole: false })
}

fn vocab_and_hidden(module: &BaseModule) -> (usize, usize) {
    match module.place {
        Place::Embedding => (module.shape.num_inputs, module.shape.num_outputs),
        Place::Linear(_) => (module.shape.num_outputs, module.shape.num_inputs),
    }
}

/// `A:[rank, hidden] B:[rank, vocab]`; `None` if no row differs.
fn head_update(
    rows: &Rows,
    base: ForBase<'_>,
    limits: &LoadLimits,
) -> Result<Option<LowRank>, Refusal> {
    let (vocab, hidden) = (base.spec.vocab_size, base.spec.hidden_size);
    let weights = base_weights(base, "trains rows of lm_head")?;
    let linear = weights.linear(Site::LmHead).map_err(|cause| unreadable(&cause))?;
    // Rows and their tokens as long as they are few, then the transpose of all.
    let (mut tokens, mut differences) = (Vec::new(), Vec::new());
    let mut own = vec![0.0; hidden];
    let trained = tensor_values(&rows.rows);
    for (&token, row) in rows.tokens.iter().zip(trained.chunks_exact(hidden)) {
        pause();
        linear.row_into(token as usize, &mut own);
        if row == own {
            continue;
        }
        tokens.push(token as usize);
        let rank = tokens.len().min(hidden);
        let what = format!(
            " where lm_head was trained (its difference to the base's has that rank at least, and at \
             most the hidden width {hidden})"
        );
        check_rank(rank, limits, &what)?;
        differences.extend(row.iter().zip(&own).map(|(trained, own)| trained - own));
    }
    let num_tokens = tokens.len();
    if num_tokens == 0 {
        return Ok(None);
    }
    let (a, b) = if num_tokens <= hidden {
        let mut b = vec![0.0; num_tokens * vocab];
        tokens.iter().enumerate().for_each(|(j, token)| b[j * vocab + token] = 1.0);
        (computed(num_tokens, hidden, &differences), computed(num_tokens, vocab, &b))
    } else {
        let mut a = vec![0.0; hidden * hidden];
        a.iter_mut().step_by(hidden + 1).for_each(|one| *one = 1.0);
        let mut b = vec![0.0; hidden * vocab];
        for (difference, token) in differences.chunks_exact(hidden).zip(tokens) {
            for (j, value) in difference.iter().enumerate() {
                b[j * vocab + token] = *value;
            }
        }
        (computed(hidden, hidden, &a), computed(hidden, vocab, &b))
    };
    Ok(Some(LowRank { scale: 1.0, a, b }))
}
