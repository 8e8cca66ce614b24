//! The weights of several adapters as those of one. In: packed adapters and their scales. Out: one packed
//! adapter, or a sentence about what does not add up.
//!
//! ```text
//! y = W x + Σ_i scale_i · s_i B_i^T A_i x   A = [A_1; A_2; …] : [Σ r_i, K]   B = [B_1; B_2; …] : [Σ r_i, N]
//! ```
//!
//! Low-rank updates and shifts add up exactly: no weight is rounded, scales go where the scales of ranks
//! are. What is not a sum (gains, bottlenecks, tokens with embeddings of their own) may come from one
//! part at a place, unscaled. Knows no names but to show them, and no files.

use crate::dtype::decode;
use crate::error::Refusal;
use crate::polite::pause;
use half::{bf16, f16};
use std::collections::BTreeSet;
use weft_types::{
    AdapterTensor, Bottleneck, ContentHash, Dtype, EmbeddingUpdate, KvPrefix, LowRankUpdate,
    Module, PackedAdapter, PackedMatrix, Packer, RowTooLarge, Site, SiteVectors, TokenRows,
};

/// One adapter of a composition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    pub(crate) scale: f32,
    pub(crate) weights: &'a PackedAdapter,
}

/// Concatenates `parts` for chunks of `chunk_bytes`. Sums of ranks may not exceed `max_rank`.
pub(crate) fn compose(
    parts: &[Part<'_>],
    content_hash: ContentHash,
    chunk_bytes: usize,
    max_rank: usize,
) -> Result<PackedAdapter, Refusal> {
    check(parts)?;
    let too_large = |error: RowTooLarge| Refusal::new(error.to_string());
    let mut packer = Packer::new(chunk_bytes);
    for site in sites(parts, |weights| weights.low_rank.iter().map(|update| update.site).collect())
    {
        pause();
        packer.push(&low_rank(parts, site, max_rank)?).map_err(too_large)?;
    }
    if let Some(update) = embedding(parts, max_rank)? {
        packer.push_embedding(&update).map_err(too_large)?;
    }
    for site in sites(parts, |weights| weights.vectors.iter().map(|one| one.site).collect()) {
        packer.push_vectors(&vectors(parts, site)?).map_err(too_large)?;
    }
    for Part { weights, .. } in parts {
        for bottleneck in &weights.bottlenecks {
            pause();
            let tensor = |matrix, scales: &[f32]| AdapterTensor {
                row_scales: Some(scales.into()),
                ..tensor(weights, matrix)
            };
            let bottleneck = Bottleneck {
                site: bottleneck.site,
                reads: bottleneck.reads,
                a: tensor(&bottleneck.a, &bottleneck.a_scales),
                a_bias: vector(weights, &bottleneck.a_bias),
                activation: bottleneck.activation,
                b: tensor(&bottleneck.b, &bottleneck.b_scales),
                b_bias: vector(weights, &bottleneck.b_bias),
            };
            packer.push_bottleneck(&bottleneck).map_err(too_large)?;
        }
        if let Some(rows) = &weights.token_rows {
            let (tokens, rows) = (rows.tokens.clone(), tensor(weights, &rows.rows));
            packer.push_token_rows(&TokenRows { tokens, rows }).map_err(too_large)?;
        }
        if let Some(prefix) = &weights.kv_prefix {
            let (num_tokens, rows) = (prefix.num_tokens, tensor(weights, &prefix.rows));
            packer.push_kv_prefix(&KvPrefix { num_tokens, rows }).map_err(too_large)?;
        }
        if weights.num_virtual_tokens > 0 {
            packer.set_num_virtual_tokens(weights.num_virtual_tokens);
        }
        // Those of all are equal.
        packer.set_invocation_tokens(weights.invocation_tokens.clone());
    }
    Ok(packer.finish(content_hash))
}

/// Whether an adapter has parts of a kind.
type Has = fn(&PackedAdapter) -> bool;

/// What can be said without looking at single places.
fn check(parts: &[Part<'_>]) -> Result<(), Refusal> {
    let kinds: [(&str, Has); 3] = [
        ("trained gains (IA3, DoRA)", |one| {
            one.vectors.iter().any(|vectors| vectors.input.is_some() || vectors.output.is_some())
        }),
        ("bottlenecks", |one| !one.bottlenecks.is_empty()),
        ("tokens or a prefix of its own", |one| {
            one.token_rows.is_some() || one.kv_prefix.is_some() || one.num_virtual_tokens > 0
        }),
    ];
    for (index, (what, has)) in kinds.into_iter().enumerate() {
        let mut having = parts.iter().filter(|part| has(part.weights));
        let Some(first) = having.next() else { continue };
        if let Some(scaled) = parts.iter().find(|part| has(part.weights) && part.scale != 1.0) {
            return Err(Refusal::new(format!(
                "scales {:?} by {}, but that has {what}, which are not a sum and have no scale; give it \
                 the scale 1",
                scaled.name, scaled.scale
            )));
        }
        // Gains may meet if they do so nowhere.
        if let Some(second) = having.next()
            && index > 0
        {
            return Err(Refusal::new(format!(
                "cannot be composed: both {:?} and {:?} have {what}, and only one may",
                first.name, second.name
            )));
        }
    }
    let has_embedding = parts.iter().find(|part| part.weights.embedding.is_some());
    let has_virtual = parts.iter().find(|part| part.weights.num_virtual_tokens > 0);
    if let (Some(a), Some(b)) = (has_embedding, has_virtual) {
        return Err(Refusal::new(format!(
            "cannot be composed: {:?} updates the embedding, in which the virtual tokens of {:?} have no \
             row",
            a.name, b.name
        )));
    }
    let differs =
        |pair: &&[Part<'_>]| pair[0].weights.invocation_tokens != pair[1].weights.invocation_tokens;
    match parts.windows(2).find(differs) {
        Some(pair) => Err(Refusal::new(format!(
            "cannot be composed: {:?} and {:?} become active at different tokens \
             (alora_invocation_tokens)",
            pair[0].name, pair[1].name
        ))),
        None => Ok(()),
    }
}

/// Where any of the parts has something.
fn sites(parts: &[Part<'_>], of: impl Fn(&PackedAdapter) -> Vec<Site>) -> BTreeSet<Site> {
    parts.iter().flat_map(|part| of(part.weights)).collect()
}

fn low_rank(parts: &[Part<'_>], site: Site, max_rank: usize) -> Result<LowRankUpdate, Refusal> {
    let updates = parts.iter().filter_map(|part| Some((part, part.weights.at(site)?)));
    let updates: Vec<_> = updates.collect();
    check_rank(updates.iter().map(|(_, update)| update.rank()).sum(), max_rank, &place(site))?;
    let (mut a, mut b, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for (part, update) in updates {
        scales.extend(update.scales.iter().map(|scale| scale * part.scale));
        a.push(tensor(part.weights, &update.a));
        b.push(tensor(part.weights, &update.b));
    }
    // The scale of a rank is one number wherever it comes from.
    let a = AdapterTensor { row_scales: Some(scales.into()), ..stacked(a) };
    Ok(LowRankUpdate { site, scale: 1.0, a, b: stacked(b) })
}

/// `A` has a column a rank, and one scale is for all ranks: where scales differ they go into `B`.
fn embedding(parts: &[Part<'_>], max_rank: usize) -> Result<Option<EmbeddingUpdate>, Refusal> {
    let updates = parts.iter().filter_map(|part| Some((part, part.weights.embedding.as_ref()?)));
    let updates: Vec<_> = updates.map(|(part, e)| (part, e, e.scale * part.scale)).collect();
    let Some(&(.., scale)) = updates.first() else { return Ok(None) };
    check_rank(
        updates.iter().map(|(_, update, _)| update.b.rows).sum(),
        max_rank,
        "the embedding",
    )?;
    let is_one_scale = updates.iter().all(|(.., other)| *other == scale);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (part, update, scale) in updates {
        a.push(tensor(part.weights, &update.a));
        let mut rows = tensor(part.weights, &update.b);
        if !is_one_scale {
            widen(&mut rows, Dtype::F32);
            let (values, _) = rows.data.as_chunks_mut::<4>();
            values.iter_mut().for_each(|v| *v = (f32::from_le_bytes(*v) * scale).to_le_bytes());
        }
        b.push(rows);
    }
    let scale = if is_one_scale { scale } else { 1.0 };
    Ok(Some(EmbeddingUpdate { scale, a: beside(a), b: stacked(b) }))
}

fn vectors(parts: &[Part<'_>], site: Site) -> Result<SiteVectors, Refusal> {
    let mut sum = SiteVectors { site, input: None, output: None, shift: None };
    let mut gained: Option<&Part<'_>> = None;
    let has_gain = |part: &&Part<'_>| {
        let vectors = part.weights.vectors_at(site);
        vectors.is_some_and(|vectors| vectors.input.is_some() || vectors.output.is_some())
    };
    for part in parts.iter().filter(has_gain) {
        if let Some(other) = gained.replace(part) {
            return Err(clash(other, part, site));
        }
        let Some(vectors) = part.weights.vectors_at(site) else { continue };
        let get = |matrix: &Option<_>| matrix.as_ref().map(|one| vector(part.weights, one));
        (sum.input, sum.output) = (get(&vectors.input), get(&vectors.output));
    }
    for part in parts {
        let shift = part.weights.vectors_at(site).and_then(|vectors| vectors.shift.as_ref());
        if let Some(gained) = gained
            && gained.name != part.name
            && sum.output.is_some()
            && (shift.is_some() || part.weights.at(site).is_some())
        {
            // It would be multiplied with the gain.
            return Err(clash(gained, part, site));
        }
        let Some(shift) = shift else { continue };
        let shift = vector(part.weights, shift);
        let total = sum.shift.get_or_insert_with(|| vec![0.0; shift.len()].into());
        total.iter_mut().zip(shift).for_each(|(total, value)| *total += part.scale * value);
    }
    Ok(sum)
}

fn clash(gained: &Part<'_>, other: &Part<'_>, site: Site) -> Refusal {
    Refusal::new(format!(
        "cannot be composed: {:?} multiplies {} with trained gains (IA3, DoRA), and {:?} changes it \
         too",
        gained.name,
        place(site),
        other.name
    ))
}

fn check_rank(rank: usize, max_rank: usize, place: &str) -> Result<(), Refusal> {
    if rank <= max_rank {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "has rank {rank} at {place}, the sum of its parts, but this server was started with \
         --max-lora-rank {max_rank}"
    )))
}

fn place(site: Site) -> String {
    match site {
        Site::Layer { layer, module } => format!("{} of layer {layer}", Module::hf_name(module)),
        Site::LmHead => "lm_head".to_owned(),
    }
}

/// As it was before it was packed, but for the scales of rows.
fn tensor(weights: &PackedAdapter, matrix: &PackedMatrix) -> AdapterTensor {
    let (dtype, rows, cols) = (matrix.dtype, matrix.rows, matrix.cols);
    let data = weights.runs(matrix).collect::<Vec<_>>().concat().into();
    AdapterTensor { dtype, rows, cols, data, row_scales: None }
}

fn vector(weights: &PackedAdapter, matrix: &PackedMatrix) -> Box<[f32]> {
    let mut values = Vec::new();
    decode(&tensor(weights, matrix).data, matrix.dtype, &mut values);
    values.into()
}

/// One below the other.
fn stacked(mut tensors: Vec<AdapterTensor>) -> AdapterTensor {
    let dtype = unify(&mut tensors);
    let cols = tensors.first().map_or(0, |tensor| tensor.cols);
    let rows = tensors.iter().map(|tensor| tensor.rows).sum();
    let data = tensors.iter().map(|tensor| &*tensor.data).collect::<Vec<_>>().concat().into();
    AdapterTensor { dtype, rows, cols, data, row_scales: None }
}

/// One beside the other.
fn beside(mut tensors: Vec<AdapterTensor>) -> AdapterTensor {
    let dtype = unify(&mut tensors);
    let rows = tensors.first().map_or(0, |tensor| tensor.rows);
    let cols = tensors.iter().map(|tensor| tensor.cols).sum();
    let mut data = Vec::with_capacity(rows * cols * dtype.size());
    for row in 0..rows {
        for tensor in &tensors {
            let row_bytes = tensor.cols * dtype.size();
            data.extend_from_slice(&tensor.data[row * row_bytes..][..row_bytes]);
        }
    }
    AdapterTensor { dtype, rows, cols, data: data.into(), row_scales: None }
}

/// Gives all the smallest type that holds every value of each.
fn unify(tensors: &mut [AdapterTensor]) -> Dtype {
    // Every eight-bit integer is a value of all float types.
    let mut floats = tensors.iter().map(|tensor| tensor.dtype).filter(|dtype| *dtype != Dtype::I8);
    let dtype = match floats.next() {
        None => Dtype::I8,
        Some(first) if floats.all(|dtype| dtype == first) => first,
        Some(_) => Dtype::F32,
    };
    tensors.iter_mut().for_each(|tensor| widen(tensor, dtype));
    dtype
}

/// The same values in a type that holds them.
fn widen(tensor: &mut AdapterTensor, dtype: Dtype) {
    if tensor.dtype == dtype {
        return;
    }
    pause();
    let mut values = Vec::new();
    decode(&tensor.data, tensor.dtype, &mut values);
    tensor.data = match dtype {
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    tensor.dtype = dtype;
}

#[cfg(test)]
mod tests;
