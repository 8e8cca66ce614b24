//! `adapter_config.json` → the facts that decide what an adapter computes. Every key of PEFT's past
//! and present releases is either read, known to leave inference as it is, or must be off. A key that
//! nobody here has heard of is refused: it may change the arithmetic. Knows no tensors.

use crate::error::Refusal;
use crate::json::{parse, shown};
use crate::quoted::Quoted;
use serde_json::{Map, Value};
use weft_types::TokenId;

/// What is left of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeftConfig {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    /// Scale by alpha / sqrt(rank) and not alpha / rank.
    pub(crate) use_rslora: bool,
    /// In the order of the file: the first that matches counts.
    pub(crate) rank_pattern: Vec<(String, usize)>,
    pub(crate) alpha_pattern: Vec<(String, f64)>,
    pub(crate) target_modules: ModuleNames,
    pub(crate) exclude_modules: Option<ModuleNames>,
    pub(crate) layers_to_transform: Option<Vec<u64>>,
    pub(crate) layers_pattern: Vec<String>,
    /// The adapter is active from the last occurrence of these tokens on. Not empty.
    pub(crate) invocation_tokens: Option<Box<[TokenId]>>,
}

/// How PEFT names a set of modules.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModuleNames {
    /// Full names or whole trailing parts of them.
    List(Vec<String>),
    /// A regular expression for the full name.
    Pattern(String),
}

/// The JSON types that a key may have; `null` is always allowed and means the default.
type Allowed = &'static [Kind];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Text,
    List,
    Object,
}
use Kind::{Bool, List, Number, Object, Text};

impl Kind {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::Bool(_) => Some(Bool),
            Value::Number(_) => Some(Number),
            Value::String(_) => Some(Text),
            Value::Array(_) => Some(List),
            Value::Object(_) => Some(Object),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Bool => "true or false",
            Number => "a number",
            Text => "a string",
            List => "a list",
            Object => "an object",
        }
    }
}

/// Keys that are read below.
const READ: &[(&str, Allowed)] = &[
    ("alora_invocation_tokens", &[List]),
    ("peft_type", &[Text]),
    ("r", &[Number]),
    ("lora_alpha", &[Number]),
    ("use_rslora", &[Bool]),
    ("rank_pattern", &[Object]),
    ("alpha_pattern", &[Object]),
    ("target_modules", &[List, Text]),
    ("exclude_modules", &[List, Text]),
    ("layers_to_transform", &[List, Number]),
    ("layers_pattern", &[List, Text]),
    ("bias", &[Text]),
    ("init_lora_weights", &[Bool, Text]),
];

/// Keys that do not change what a finished adapter computes. The configurations of initialisations
/// count only with `init_lora_weights`, which is read.
const HARMLESS: &[(&str, Allowed)] = &[
    ("auto_mapping", &[Object]),
    ("base_model_name_or_path", &[Text]),
    ("corda_config", &[Object]),
    ("eva_config", &[Object]),
    ("inference_mode", &[Bool]),
    ("loftq_config", &[Object]),
    ("lora_dropout", &[Number]),
    ("lora_ga_config", &[Object]),
    ("megatron_core", &[Text]),
    ("merge_weights", &[Bool]),
    ("peft_version", &[Text]),
    ("qalora_group_size", &[Number]),
    ("revision", &[Text]),
    ("runtime_config", &[Object]),
    ("task_type", &[Text]),
    ("unsloth_fixed", &[Bool]),
];

/// Keys that must be off, and why.
const OFF: &[(&str, Allowed, &str)] = &[
    ("arrow_config", &[Object], "routing between adapters is not supported"),
    ("enable_lora", &[List], "merged linears are not supported"),
    ("ensure_weight_tying", &[Bool], "one update shared by embedding and head is not supported"),
    ("fan_in_fan_out", &[Bool], "the linears of this model are stored as [out, in]"),
    ("kasa_config", &[Object], "KaSA is not supported"),
    ("layer_replication", &[List], "the base is served with its own layers only"),
    ("lora_bias", &[Bool], "biases are not supported"),
    ("megatron_config", &[Object], "Megatron layers are not supported"),
    ("modules_to_save", &[List], "fully trained modules are not supported; train them with LoRA"),
    ("monteclora_config", &[Object], "MonteCLoRA is not supported"),
    ("target_parameters", &[List], "updates of bare parameters are not supported"),
    ("trainable_token_indices", &[List, Object], "trained token embeddings are not supported"),
    ("use_bdlora", &[Bool, Object], "block-diagonal LoRA is not supported"),
    ("use_dora", &[Bool], "DoRA is not supported; train with use_dora=False"),
    ("use_qalora", &[Bool], "QA-LoRA pools its inputs, which is not supported"),
    ("velora_config", &[Object], "VeLoRA is not supported"),
];

impl PeftConfig {
    /// Reads the bytes of `adapter_config.json`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let value = parse(bytes).map_err(|cause| {
            Refusal::new(format!("has an adapter_config.json that is not valid JSON: {cause}"))
        })?;
        let Value::Object(object) = value else {
            return refuse("has an adapter_config.json that is not a JSON object".to_owned());
        };
        check_peft_type(&object)?;
        for (key, value) in &object {
            check_key(key, value)?;
        }
        check_bias(&object)?;
        check_init(&object)?;
        let config = Self {
            rank: rank_of("r", object.get("r").unwrap_or(&Value::from(8)))?,
            alpha: alpha_of("lora_alpha", object.get("lora_alpha").unwrap_or(&Value::from(8)))?,
            use_rslora: matches!(object.get("use_rslora"), Some(Value::Bool(true))),
            rank_pattern: pattern(&object, "rank_pattern", rank_of)?,
            alpha_pattern: pattern(&object, "alpha_pattern", alpha_of)?,
            target_modules: match names(&object, "target_modules")? {
                Some(names) => names,
                None => {
                    return refuse(
                        "names no target_modules in adapter_config.json; they must be a list of \
                         modules, a pattern or \"all-linear\""
                            .to_owned(),
                    );
                }
            },
            exclude_modules: names(&object, "exclude_modules")?,
            layers_to_transform: layers(&object)?,
            layers_pattern: match names(&object, "layers_pattern")? {
                Some(ModuleNames::List(patterns)) => patterns,
                Some(ModuleNames::Pattern(pattern)) => vec![pattern],
                None => Vec::new(),
            },
            invocation_tokens: invocation_tokens(&object)?,
        };
        config.check_layers()?;
        Ok(config)
    }

    /// PEFT takes `layers_to_transform` with a list of targets only.
    fn check_layers(&self) -> Result<(), Refusal> {
        let is_pattern = matches!(self.target_modules, ModuleNames::Pattern(_));
        match &self.layers_to_transform {
            Some(_) if is_pattern => refuse(
                "sets layers_to_transform, but target_modules is a string: name the layers in its \
                 pattern, or make it a list"
                    .to_owned(),
            ),
            None if !self.layers_pattern.is_empty() => {
                refuse("sets layers_pattern without layers_to_transform".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn refuse<T>(reason: String) -> Result<T, Refusal> {
    Err(Refusal::new(reason))
}

fn check_peft_type(object: &Map<String, Value>) -> Result<(), Refusal> {
    match object.get("peft_type") {
        Some(Value::String(method)) if method == "LORA" => Ok(()),
        None | Some(Value::Null) => {
            refuse("has no peft_type in adapter_config.json; it must be \"LORA\"".to_owned())
        }
        Some(other) => {
            let found = shown(other);
            refuse(format!("has peft_type {found}, but only \"LORA\" is supported"))
        }
    }
}

fn check_key(key: &str, value: &Value) -> Result<(), Refusal> {
    let off = OFF.iter().find(|(name, ..)| *name == key);
    let (allowed, reason) = match off {
        Some((_, allowed, reason)) => (*allowed, Some(reason)),
        None => match READ.iter().chain(HARMLESS).find(|(name, _)| *name == key) {
            Some((_, allowed)) => (*allowed, None),
            None => {
                return refuse(format!(
                    "sets {} in adapter_config.json, a key that this server does not know and that \
                     may change what the adapter computes; remove it if it does not",
                    Quoted(key)
                ));
            }
        },
    };
    let Some(kind) = Kind::of(value) else { return Ok(()) };
    if !allowed.contains(&kind) {
        let allowed: Vec<_> = allowed.iter().map(|kind| kind.words()).collect();
        let (found, allowed) = (shown(value), allowed.join(" or "));
        return refuse(format!(
            "sets {key} to {found} in adapter_config.json; it must be {allowed}"
        ));
    }
    match reason {
        Some(reason) if !is_off(value) => {
            refuse(format!("sets {key} to {} in adapter_config.json, but {reason}", shown(value)))
        }
        _ => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        other => other.is_null(),
    }
}

fn check_bias(object: &Map<String, Value>) -> Result<(), Refusal> {
    match object.get("bias").and_then(Value::as_str) {
        None | Some("none") => Ok(()),
        Some(bias) => refuse(format!(
            "sets bias to {} in adapter_config.json, but trained biases are not supported; train \
             with bias=\"none\"",
            Quoted(bias)
        )),
    }
}

/// Some initialisations also change the base, and the saved matrices are relative to that. The others
/// only choose where training begins.
fn check_init(object: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(init) = object.get("init_lora_weights").and_then(Value::as_str) else { return Ok(()) };
    let lower = init.to_ascii_lowercase();
    let changes_base = ["pissa", "corda", "olora", "loftq", "lora_ga"];
    if changes_base.iter().any(|prefix| lower.starts_with(prefix)) {
        return refuse(format!(
            "sets init_lora_weights to {} in adapter_config.json: its matrices are relative to a \
             changed base; convert it with peft's save_pretrained(path, \
             path_initial_model_for_weight_conversion=...)",
            Quoted(init)
        ));
    }
    if ["gaussian", "orthogonal", "eva", "mica"].contains(&lower.as_str()) {
        return Ok(());
    }
    refuse(format!(
        "sets init_lora_weights to {} in adapter_config.json, which this server does not know",
        Quoted(init)
    ))
}

fn rank_of(key: &str, value: &Value) -> Result<usize, Refusal> {
    match value.as_u64().and_then(|rank| usize::try_from(rank).ok()) {
        Some(rank) if rank > 0 => Ok(rank),
        _ => refuse(format!(
            "has rank {} ({key} in adapter_config.json); a rank is a whole number from 1",
            shown(value)
        )),
    }
}

fn alpha_of(key: &str, value: &Value) -> Result<f64, Refusal> {
    match value.as_f64() {
        // Finite as f32 too: that is what it is computed with.
        Some(alpha) if (alpha as f32).is_finite() => Ok(alpha),
        _ => refuse(format!(
            "has alpha {} ({key} in adapter_config.json); it must be a finite number",
            shown(value)
        )),
    }
}

fn pattern<T>(
    object: &Map<String, Value>,
    key: &str,
    read: fn(&str, &Value) -> Result<T, Refusal>,
) -> Result<Vec<(String, T)>, Refusal> {
    let entries = object.get(key).and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(name, value)| {
            let value = read(&format!("{key} of {}", Quoted(name)), value)?;
            Ok((name.clone(), value))
        })
        .collect()
}

/// A list of names or one pattern; `None` if nothing is given, or an empty list or string.
fn names(object: &Map<String, Value>, key: &str) -> Result<Option<ModuleNames>, Refusal> {
    match object.get(key) {
        Some(Value::String(pattern)) if !pattern.is_empty() => {
            Ok(Some(ModuleNames::Pattern(pattern.clone())))
        }
        Some(Value::Array(items)) if !items.is_empty() => {
            let name = |item: &Value| match item.as_str() {
                Some(name) if !name.is_empty() => Ok(name.to_owned()),
                _ => refuse(format!(
                    "lists {} in {key} of adapter_config.json; it must be a name",
                    shown(item)
                )),
            };
            Ok(Some(ModuleNames::List(items.iter().map(name).collect::<Result<_, _>>()?)))
        }
        _ => Ok(None),
    }
}

/// PEFT never activates an adapter with an empty list.
fn invocation_tokens(object: &Map<String, Value>) -> Result<Option<Box<[TokenId]>>, Refusal> {
    let key = "alora_invocation_tokens";
    let Some(Value::Array(items)) = object.get(key) else { return Ok(None) };
    if items.is_empty() {
        return refuse(format!(
            "has an empty {key} in adapter_config.json, which would never activate it; list the \
             tokens, or make it null for an adapter that is always active"
        ));
    }
    let token = |item: &Value| {
        item.as_u64().and_then(|token| TokenId::try_from(token).ok()).ok_or_else(|| {
            let found = shown(item);
            Refusal::new(format!(
                "lists {found} in {key} of adapter_config.json; it must be the id of a token"
            ))
        })
    };
    items.iter().map(token).collect::<Result<_, _>>().map(Some)
}

/// An empty list means all layers.
fn layers(object: &Map<String, Value>) -> Result<Option<Vec<u64>>, Refusal> {
    let key = "layers_to_transform";
    let items = match object.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) if items.is_empty() => return Ok(None),
        Some(Value::Array(items)) => items.as_slice(),
        Some(single) => std::slice::from_ref(single),
    };
    let layer = |item: &Value| {
        item.as_u64().ok_or_else(|| {
            let found = shown(item);
            Refusal::new(format!(
                "lists {found} in {key} of adapter_config.json; it must be the number of a layer"
            ))
        })
    };
    items.iter().map(layer).collect::<Result<_, _>>().map(Some)
}
