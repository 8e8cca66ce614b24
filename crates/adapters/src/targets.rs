//! Which modules a configuration means, by PEFT's rules, and which rank and alpha each has. A name or
//! pattern that means no module of the base is refused: the adapter was made for another model, or
//! says something that nobody would notice is not done. Knows no tensors.

use crate::error::Refusal;
use crate::modules::{BaseModule, Place};
use crate::peft_config::{ModuleNames, Ranks, Selection};
use crate::quoted::Quoted;
use fancy_regex::{Regex, RegexBuilder};
use weft_types::Site;

/// Bounds on untrusted patterns: real ones are far below.
const MAX_PATTERN_BYTES: usize = 8192;
const MAX_PATTERNS: usize = 8192;
const MAX_REGEXES: usize = 128;
const MAX_REGEX_BYTES: usize = 1 << 20;
const MAX_BACKTRACKS: usize = 20_000;

/// What the configuration says of one targeted module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// One entry per module: whether it is targeted.
pub(crate) fn selected(
    selection: &Selection,
    modules: &[BaseModule],
) -> Result<Vec<bool>, Refusal> {
    let mut targeted = select("target_modules", &selection.target_modules, modules)?;
    keep_layers(selection, modules, &mut targeted)?;
    if let Some(excluded) = &selection.exclude_modules {
        let excluded = membership("exclude_modules", excluded, modules)?;
        targeted.iter_mut().zip(excluded).for_each(|(kept, excluded)| *kept &= !excluded);
    }
    if !targeted.contains(&true) {
        return Err(Refusal::new(
            "touches no module of this base: target_modules, layers_to_transform and \
             exclude_modules in adapter_config.json leave none",
        ));
    }
    Ok(targeted)
}

/// One entry per module: what the configuration says of it, `None` if it is not targeted.
pub(crate) fn targets(
    selection: &Selection,
    ranks_of: &Ranks,
    modules: &[BaseModule],
) -> Result<Vec<Option<Target>>, Refusal> {
    let targeted = selected(selection, modules)?;
    let ranks = by_pattern("rank_pattern", &ranks_of.rank_pattern, modules)?;
    let alphas = by_pattern("alpha_pattern", &ranks_of.alpha_pattern, modules)?;
    let target = |((targeted, rank), alpha): ((bool, Option<usize>), Option<f64>)| {
        targeted.then(|| {
            let (rank, alpha) = (rank.unwrap_or(ranks_of.rank), alpha.unwrap_or(ranks_of.alpha));
            Target { rank, scale: scale(rank, alpha, ranks_of.use_rslora) }
        })
    };
    Ok(targeted.into_iter().zip(ranks).zip(alphas).map(target).collect())
}

/// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
fn scale(rank: usize, alpha: f64, use_rslora: bool) -> f32 {
    let rank = rank as f64;
    (alpha / if use_rslora { rank.sqrt() } else { rank }) as f32
}

/// The modules that `target_modules` means; every name must mean one.
fn select(key: &str, names: &ModuleNames, modules: &[BaseModule]) -> Result<Vec<bool>, Refusal> {
    if let ModuleNames::Pattern(pattern) = names
        && pattern.eq_ignore_ascii_case("all-linear")
    {
        return Ok(modules.iter().map(BaseModule::is_layer_linear).collect());
    }
    let selected = membership(key, names, modules)?;
    if let ModuleNames::List(names) = names {
        check_matches(key, names, modules, is_tail)?;
    }
    Ok(selected)
}

/// Refuses a name that means no module.
pub(crate) fn check_matches(
    key: &str,
    names: &[String],
    modules: &[BaseModule],
    is_meant: fn(&str, &str) -> bool,
) -> Result<(), Refusal> {
    let is_unknown = |name: &&String| !modules.iter().any(|module| is_meant(&module.key, name));
    match names.iter().find(is_unknown) {
        Some(name) => Err(Refusal::new(format!(
            "names {} in {key} of adapter_config.json, which is no linear or embedding of this base",
            Quoted(name)
        ))),
        None => Ok(()),
    }
}

fn membership(
    key: &str,
    names: &ModuleNames,
    modules: &[BaseModule],
) -> Result<Vec<bool>, Refusal> {
    match names {
        ModuleNames::List(names) => {
            check_count(key, names.len(), MAX_PATTERNS)?;
            let listed = |module: &BaseModule| names.iter().any(|name| is_tail(&module.key, name));
            Ok(modules.iter().map(listed).collect())
        }
        ModuleNames::Pattern(pattern) => {
            let regex = compile(key, pattern, &format!("^(?:{pattern})$"))?;
            modules.iter().map(|module| is_match(key, &regex, &module.key)).collect()
        }
    }
}

/// Whether `name` is `key`, or a whole trailing part of it.
pub(crate) fn is_tail(key: &str, name: &str) -> bool {
    key.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Drops what lies outside `layers_to_transform`: other layers, and modules that are in no layer. As in
/// PEFT, a module that is listed under its full name stays: `lm_head` is such a name.
fn keep_layers(
    selection: &Selection,
    modules: &[BaseModule],
    targeted: &mut [bool],
) -> Result<(), Refusal> {
    let Some(layers) = &selection.layers_to_transform else { return Ok(()) };
    let layer_of = |module: &BaseModule| match module.place {
        Place::Linear(Site::Layer { layer, .. }) => Some(u64::from(layer)),
        Place::Linear(Site::LmHead) | Place::Embedding => None,
    };
    let num_layers = modules.iter().filter_map(layer_of).max().map_or(0, |last| last + 1);
    if let Some(layer) = layers.iter().find(|&&layer| layer >= num_layers) {
        return Err(Refusal::new(format!(
            "names layer {layer} in layers_to_transform of adapter_config.json, but this base has \
             {num_layers} layers"
        )));
    }
    check_layers_pattern(selection, modules)?;
    let named: &[String] = match &selection.target_modules {
        ModuleNames::List(names) => names,
        ModuleNames::Pattern(_) => &[],
    };
    for (module, targeted) in modules.iter().zip(targeted) {
        let in_layers = layer_of(module).is_some_and(|layer| layers.contains(&layer));
        *targeted &= in_layers || named.contains(&module.key);
    }
    Ok(())
}

/// The list of layers is called `layers` in every model served here, so a pattern must match that.
fn check_layers_pattern(selection: &Selection, modules: &[BaseModule]) -> Result<(), Refusal> {
    let key = "layers_pattern";
    check_count(key, selection.layers_pattern.len(), MAX_REGEXES)?;
    let first = modules.iter().find(|module| module.is_layer_linear());
    for pattern in &selection.layers_pattern {
        let regex = compile(key, pattern, &format!(r"^(?:.*?\.)?(?:{pattern})\.[0-9]+\."))?;
        if let Some(module) = first
            && is_match(key, &regex, &module.key)?
        {
            return Ok(());
        }
    }
    match selection.layers_pattern.first() {
        Some(pattern) => Err(Refusal::new(format!(
            "sets {key} to {} in adapter_config.json, but the layers of this base are called \
             \"layers\"",
            Quoted(pattern)
        ))),
        None => Ok(()),
    }
}

/// The value of the first pattern that matches each module: `(.*\.)?(KEY)$` at the name's start.
fn by_pattern<T: Copy>(
    key: &str,
    patterns: &[(String, T)],
    modules: &[BaseModule],
) -> Result<Vec<Option<T>>, Refusal> {
    check_count(key, patterns.len(), MAX_PATTERNS)?;
    let num_regexes = patterns.iter().filter(|(pattern, _)| !is_plain(pattern)).count();
    check_count(key, num_regexes, MAX_REGEXES)?;
    let mut values = vec![None; modules.len()];
    for (pattern, value) in patterns {
        let regex = match is_plain(pattern) {
            true => None,
            false => Some(compile(key, pattern, &format!(r"^(.*\.)?({pattern})$"))?),
        };
        let mut is_used = false;
        for (module, found) in modules.iter().zip(&mut values) {
            let matches = match &regex {
                Some(regex) => is_match(key, regex, &module.key)?,
                None => is_plain_match(pattern, &module.key),
            };
            is_used |= matches;
            if matches && found.is_none() {
                *found = Some(*value);
            }
        }
        if !is_used {
            return Err(Refusal::new(format!(
                "has the key {} in {key} of adapter_config.json, which matches no module of this \
                 base",
                Quoted(pattern)
            )));
        }
    }
    Ok(values)
}

/// Whether a pattern is a name, in which the dot is the only operator. Nearly all are, and some files
/// have one per module.
fn is_plain(pattern: &str) -> bool {
    pattern.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
}

/// What the regular expression `(.*\.)?(KEY)$` does for a plain pattern and an ASCII name.
fn is_plain_match(pattern: &str, name: &str) -> bool {
    let Some(start) = name.len().checked_sub(pattern.len()) else { return false };
    let (head, tail) = name.as_bytes().split_at(start);
    let same = |(p, n): (u8, &u8)| p == b'.' || p == *n;
    (head.is_empty() || head.ends_with(b".")) && pattern.bytes().zip(tail).all(same)
}

pub(crate) fn compile(key: &str, pattern: &str, anchored: &str) -> Result<Regex, Refusal> {
    let refusal = |why: String| {
        let pattern = Quoted(pattern);
        Refusal::new(format!("has the pattern {pattern} in {key} of adapter_config.json, {why}"))
    };
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(refusal(format!("which is longer than {MAX_PATTERN_BYTES} bytes")));
    }
    RegexBuilder::new(anchored)
        .backtrack_limit(MAX_BACKTRACKS)
        .delegate_size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|cause| refusal(format!("which is no regular expression: {cause}")))
}

pub(crate) fn is_match(key: &str, regex: &Regex, name: &str) -> Result<bool, Refusal> {
    regex.is_match(name).map_err(|cause| {
        Refusal::new(format!(
            "has a pattern in {key} of adapter_config.json that cannot be matched: {cause}"
        ))
    })
}

fn check_count(key: &str, count: usize, max: usize) -> Result<(), Refusal> {
    if count <= max {
        return Ok(());
    }
    Err(Refusal::new(format!("has {count} patterns in {key}; at most {max} are read")))
}
