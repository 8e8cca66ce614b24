//! `adapter_config.json` → the facts that decide what an adapter computes. Every key of PEFT's past
//! and present releases is either read, known to leave inference as it is, or must be off. A key that
//! nobody here has heard of is refused: it may change the arithmetic. Knows no tensors.

mod keys;
mod methods;
mod values;

pub(crate) use methods::peft_type;

use crate::error::Refusal;
use crate::json::{parse, shown};
use crate::quoted::Quoted;
use keys::{check_keys, of_method};
use methods::Served;
use serde_json::{Map, Value};
use values::{
    alpha, alpha_of, count, flag, invocation_tokens, names, numbers, numbers_of, pattern, rank_of,
};
use weft_types::TokenId;

/// What is left of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeftConfig {
    pub(crate) method: Method,
    /// What the method replaces; nothing for those that only add tokens.
    pub(crate) selection: Selection,
    /// Fully trained modules, as names or trailing parts of names.
    pub(crate) modules_to_save: Vec<String>,
    /// Names of modules, and the tokens whose rows of them were trained, in the order of the rows.
    pub(crate) trained_tokens: Vec<(String, Vec<u64>)>,
    /// Whether biases of the base were trained.
    pub(crate) has_biases: bool,
    /// A trained embedding is the head, too, if they are tied in the base.
    pub(crate) ensure_weight_tying: bool,
}

/// The method with what only it knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Method {
    Lora(LoraConfig),
    AdaLora(AdaLoraConfig),
    Vera(VeraConfig),
    /// The names that are scaled before the linear and not after it.
    Ia3 {
        feedforward: Option<ModuleNames>,
    },
    LoHa(Ranks),
    LoKr(Ranks),
    /// Embeddings before the prompt: prompt tuning and P-tuning.
    Prompt(VirtualTokens),
    /// Keys and values before the prompt.
    Prefix(VirtualTokens),
    /// Rows of the embedding and nothing else.
    TrainableTokens,
}

/// LoRA and what is saved as LoRA.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraConfig {
    pub(crate) ranks: Ranks,
    pub(crate) use_dora: bool,
    /// B has a bias.
    pub(crate) lora_bias: bool,
    /// The adapter is active from the last occurrence of these tokens on. Not empty.
    pub(crate) invocation_tokens: Option<Box<[TokenId]>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdaLoraConfig {
    pub(crate) alpha: f64,
    /// Before pruning.
    pub(crate) init_rank: usize,
    /// Names of modules and what pruning left of their ranks.
    pub(crate) ranks: Vec<(String, usize)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VeraConfig {
    pub(crate) rank: usize,
    /// What A and B are drawn from, unless they are saved.
    pub(crate) seed: u64,
    pub(crate) has_projection: bool,
}

/// Tokens before the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtualTokens {
    pub(crate) num_tokens: usize,
    /// `token_dim` and `num_layers`, which older files may lack.
    pub(crate) width: Option<usize>,
    pub(crate) num_layers: Option<usize>,
}

/// Ranks and alphas of modules.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ranks {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    /// Scale by alpha / sqrt(rank) and not alpha / rank.
    pub(crate) use_rslora: bool,
    /// In the order of the file: the first that matches counts.
    pub(crate) rank_pattern: Vec<(String, usize)>,
    pub(crate) alpha_pattern: Vec<(String, f64)>,
}

/// Which modules are replaced.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selection {
    pub(crate) target_modules: ModuleNames,
    pub(crate) exclude_modules: Option<ModuleNames>,
    pub(crate) layers_to_transform: Option<Vec<u64>>,
    pub(crate) layers_pattern: Vec<String>,
}

/// How PEFT names a set of modules.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModuleNames {
    /// Full names or whole trailing parts of them.
    List(Vec<String>),
    /// A regular expression for the full name.
    Pattern(String),
}

impl Default for ModuleNames {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// The bytes of `adapter_config.json` as a JSON object.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let value = parse(bytes).map_err(|cause| {
        Refusal::new(format!("has an adapter_config.json that is not valid JSON: {cause}"))
    })?;
    match value {
        Value::Object(object) => Ok(object),
        _ => refuse("has an adapter_config.json that is not a JSON object".to_owned()),
    }
}

impl PeftConfig {
    /// Reads the object of `adapter_config.json`.
    pub(crate) fn read(object: &Map<String, Value>) -> Result<Self, Refusal> {
        let mut config = Self {
            method: Method::TrainableTokens,
            selection: Selection::default(),
            modules_to_save: Vec::new(),
            trained_tokens: Vec::new(),
            has_biases: false,
            ensure_weight_tying: false,
        };
        match peft_type(object)? {
            Served::Lora => config.read_lora(object)?,
            Served::AdaLora => config.read_adalora(object)?,
            Served::Vera => config.read_vera(object)?,
            Served::Ia3 => {
                check_keys(object, of_method::IA3)?;
                config.method = Method::Ia3 { feedforward: names(object, "feedforward_modules")? };
                config.selection = selection(object)?;
            }
            Served::LoHa => {
                check_keys(object, of_method::LOHA)?;
                config.method = Method::LoHa(ranks(object, "alpha")?);
                config.selection = selection(object)?;
            }
            Served::LoKr => {
                check_keys(object, of_method::LOKR)?;
                config.method = Method::LoKr(ranks(object, "alpha")?);
                config.selection = selection(object)?;
            }
            Served::PromptTuning => {
                check_keys(object, of_method::PROMPT_TUNING)?;
                config.method = Method::Prompt(virtual_tokens(object)?);
            }
            Served::PTuning => {
                check_keys(object, of_method::P_TUNING)?;
                config.method = Method::Prompt(virtual_tokens(object)?);
            }
            Served::PrefixTuning => {
                check_keys(object, of_method::PREFIX_TUNING)?;
                config.method = Method::Prefix(virtual_tokens(object)?);
            }
            Served::TrainableTokens => {
                check_keys(object, of_method::TRAINABLE_TOKENS)?;
                config.read_trainable_tokens(object)?;
            }
        }
        if let Some(ModuleNames::List(names)) = names(object, "modules_to_save")? {
            config.modules_to_save = names;
        }
        Ok(config)
    }

    fn read_lora(&mut self, object: &Map<String, Value>) -> Result<(), Refusal> {
        check_keys(object, of_method::LORA)?;
        check_init(object)?;
        self.selection = selection(object)?;
        self.has_biases = has_biases(object)?;
        self.ensure_weight_tying = flag(object, "ensure_weight_tying");
        self.trained_tokens = trained_tokens(object)?;
        let (use_dora, lora_bias) = (flag(object, "use_dora"), flag(object, "lora_bias"));
        if use_dora && lora_bias {
            return refuse(
                "sets both use_dora and lora_bias in adapter_config.json, which peft does not \
                 define together"
                    .to_owned(),
            );
        }
        let ranks = ranks(object, "lora_alpha")?;
        let invocation_tokens = invocation_tokens(object)?;
        if invocation_tokens.is_some() {
            self.check_activated(use_dora, object)?;
        }
        self.method = Method::Lora(LoraConfig { ranks, use_dora, lora_bias, invocation_tokens });
        Ok(())
    }

    /// What is trained beside the updates of linears is active everywhere in PEFT.
    fn check_activated(&self, use_dora: bool, object: &Map<String, Value>) -> Result<(), Refusal> {
        let others = [
            ("use_dora", use_dora),
            ("bias", self.has_biases),
            ("trainable_token_indices", !self.trained_tokens.is_empty()),
            ("modules_to_save", names(object, "modules_to_save")?.is_some()),
        ];
        match others.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => refuse(format!(
                "sets both alora_invocation_tokens and {key} in adapter_config.json, but only \
                 updates of linears can become active in mid-prompt"
            )),
            None => Ok(()),
        }
    }

    fn read_adalora(&mut self, object: &Map<String, Value>) -> Result<(), Refusal> {
        check_keys(object, of_method::ADALORA)?;
        for key in ["use_dora", "use_rslora", "lora_bias", "ensure_weight_tying"] {
            if flag(object, key) {
                return refuse(format!(
                    "sets {key} in adapter_config.json, which peft does not define for AdaLoRA"
                ));
            }
        }
        self.selection = selection(object)?;
        self.has_biases = has_biases(object)?;
        self.trained_tokens = trained_tokens(object)?;
        if invocation_tokens(object)?.is_some() {
            return refuse(
                "sets alora_invocation_tokens in adapter_config.json, which peft does not define \
                 for AdaLoRA"
                    .to_owned(),
            );
        }
        self.method = Method::AdaLora(AdaLoraConfig {
            alpha: alpha(object, "lora_alpha", 8.0)?,
            init_rank: count(object, "init_r", 12)?,
            ranks: pattern(object, "rank_pattern", kept_ranks)?,
        });
        Ok(())
    }

    fn read_vera(&mut self, object: &Map<String, Value>) -> Result<(), Refusal> {
        check_keys(object, of_method::VERA)?;
        if has_biases(object)? {
            return refuse(
                "sets bias in adapter_config.json, but peft does not save the biases that VeRA \
                 trains; train with bias=\"none\""
                    .to_owned(),
            );
        }
        self.selection = selection(object)?;
        let seed = object.get("projection_prng_key").filter(|value| !value.is_null());
        let seed = seed.map_or(Some(0), Value::as_u64);
        let Some(seed) = seed else {
            return refuse(
                "has a projection_prng_key in adapter_config.json that is no whole number from 0"
                    .to_owned(),
            );
        };
        let has_projection = !matches!(object.get("save_projection"), Some(Value::Bool(false)));
        let rank = count(object, "r", 256)?;
        self.method = Method::Vera(VeraConfig { rank, seed, has_projection });
        Ok(())
    }

    /// The modules are named beside the tokens, and by default the embedding.
    fn read_trainable_tokens(&mut self, object: &Map<String, Value>) -> Result<(), Refusal> {
        let modules = match names(object, "target_modules")? {
            Some(ModuleNames::List(names)) => names,
            Some(ModuleNames::Pattern(name)) => vec![name],
            None => vec!["embed_tokens".to_owned()],
        };
        let Some(tokens) = numbers(object, "token_indices", "token")? else {
            return refuse("names no token_indices in adapter_config.json".to_owned());
        };
        self.trained_tokens = modules.into_iter().map(|module| (module, tokens.clone())).collect();
        Ok(())
    }
}

pub(crate) fn refuse<T>(reason: String) -> Result<T, Refusal> {
    Err(Refusal::new(reason))
}

fn selection(object: &Map<String, Value>) -> Result<Selection, Refusal> {
    let Some(target_modules) = names(object, "target_modules")? else {
        return refuse(
            "names no target_modules in adapter_config.json; they must be a list of modules, a \
             pattern or \"all-linear\""
                .to_owned(),
        );
    };
    let layers_pattern = match names(object, "layers_pattern")? {
        Some(ModuleNames::List(patterns)) => patterns,
        Some(ModuleNames::Pattern(pattern)) => vec![pattern],
        None => Vec::new(),
    };
    let layers_to_transform = numbers(object, "layers_to_transform", "layer")?;
    // PEFT takes `layers_to_transform` with a list of targets only.
    let is_pattern = matches!(target_modules, ModuleNames::Pattern(_));
    match &layers_to_transform {
        Some(_) if is_pattern => {
            return refuse(
                "sets layers_to_transform, but target_modules is a string: name the layers in its \
                 pattern, or make it a list"
                    .to_owned(),
            );
        }
        None if !layers_pattern.is_empty() => {
            return refuse("sets layers_pattern without layers_to_transform".to_owned());
        }
        _ => {}
    }
    let exclude_modules = names(object, "exclude_modules")?;
    Ok(Selection { target_modules, exclude_modules, layers_to_transform, layers_pattern })
}

fn ranks(object: &Map<String, Value>, alpha_key: &str) -> Result<Ranks, Refusal> {
    Ok(Ranks {
        rank: count(object, "r", 8)?,
        alpha: alpha(object, alpha_key, 8.0)?,
        use_rslora: flag(object, "use_rslora"),
        rank_pattern: pattern(object, "rank_pattern", rank_of)?,
        alpha_pattern: pattern(object, "alpha_pattern", alpha_of)?,
    })
}

fn virtual_tokens(object: &Map<String, Value>) -> Result<VirtualTokens, Refusal> {
    let given = |key| match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => rank_of(key, value).map(Some),
    };
    let Some(num_tokens) = given("num_virtual_tokens")? else {
        return refuse("names no num_virtual_tokens in adapter_config.json".to_owned());
    };
    if given("num_transformer_submodules")?.is_some_and(|num| num != 1) {
        return refuse(
            "sets num_transformer_submodules in adapter_config.json to another number than 1: it \
             was made for an encoder-decoder"
                .to_owned(),
        );
    }
    let (width, num_layers) = (given("token_dim")?, given("num_layers")?);
    Ok(VirtualTokens { num_tokens, width, num_layers })
}

/// A list stands for the embedding, an object names the modules.
fn trained_tokens(object: &Map<String, Value>) -> Result<Vec<(String, Vec<u64>)>, Refusal> {
    let key = "trainable_token_indices";
    match object.get(key) {
        Some(Value::Object(modules)) => modules
            .iter()
            .filter_map(|(name, tokens)| match numbers_of(key, tokens, "token") {
                Ok(tokens) => tokens.map(|tokens| Ok((name.clone(), tokens))),
                Err(refusal) => Some(Err(refusal)),
            })
            .collect(),
        _ => {
            let tokens = numbers(object, key, "token")?;
            Ok(tokens.into_iter().map(|tokens| ("embed_tokens".to_owned(), tokens)).collect())
        }
    }
}

/// How many of a mask's ranks are kept.
fn kept_ranks(key: &str, value: &Value) -> Result<usize, Refusal> {
    let mask = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if mask.is_empty() || !mask.iter().all(Value::is_boolean) {
        return refuse(format!(
            "has {} as {key} in adapter_config.json; AdaLoRA's is a list of true and false",
            shown(value)
        ));
    }
    Ok(mask.iter().filter(|kept| **kept == Value::Bool(true)).count())
}

fn has_biases(object: &Map<String, Value>) -> Result<bool, Refusal> {
    match object.get("bias").and_then(Value::as_str) {
        None | Some("none") => Ok(false),
        Some("all" | "lora_only" | "vera_only") => Ok(true),
        Some(bias) => refuse(format!(
            "sets bias to {} in adapter_config.json; it must be \"none\", \"all\" or \
             \"lora_only\"",
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
