//! Every key that PEFT's configurations ever had, by method: read, known to leave inference as it is,
//! or to be off. A key that is in no table may change the arithmetic and is refused.

use crate::error::Refusal;
use crate::json::shown;
use crate::peft_config::refuse;
use crate::quoted::Quoted;
use serde_json::{Map, Value};

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

/// The keys of one method.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Read by `peft_config`.
    read: &'static [(&'static str, Allowed)],
    /// Do not change what a finished adapter computes.
    harmless: &'static [(&'static str, Allowed)],
    /// Must be off, and why.
    off: &'static [(&'static str, Allowed, &'static str)],
}

/// Of all methods.
const COMMON: Keys = Keys {
    read: &[("peft_type", &[Text])],
    harmless: &[
        ("auto_mapping", &[Object]),
        ("base_model_name_or_path", &[Text]),
        ("inference_mode", &[Bool]),
        ("peft_version", &[Text]),
        ("revision", &[Text]),
        ("runtime_config", &[Object]),
        ("task_type", &[Text]),
        ("unsloth_fixed", &[Bool]),
    ],
    off: &[],
};

/// Of methods that replace modules.
const MODULES: Keys = Keys {
    read: &[
        ("target_modules", &[List, Text]),
        ("exclude_modules", &[List, Text]),
        ("modules_to_save", &[List]),
    ],
    harmless: &[],
    off: &[("fan_in_fan_out", &[Bool], "the linears of this model are stored as [out, in]")],
};

/// Of those that choose layers.
const LAYERS: Keys = Keys {
    read: &[("layers_to_transform", &[List, Number]), ("layers_pattern", &[List, Text])],
    harmless: &[],
    off: &[],
};

const RANK_PATTERNS: Keys = Keys {
    read: &[("rank_pattern", &[Object]), ("alpha_pattern", &[Object])],
    harmless: &[],
    off: &[],
};

/// The configurations of initialisations count only with `init_lora_weights`, which is read.
const LORA: Keys = Keys {
    read: &[
        ("alora_invocation_tokens", &[List]),
        ("r", &[Number]),
        ("lora_alpha", &[Number]),
        ("use_rslora", &[Bool]),
        ("use_dora", &[Bool]),
        ("bias", &[Text]),
        ("lora_bias", &[Bool]),
        ("init_lora_weights", &[Bool, Text]),
        ("trainable_token_indices", &[List, Object]),
        ("ensure_weight_tying", &[Bool]),
    ],
    harmless: &[
        ("corda_config", &[Object]),
        ("eva_config", &[Object]),
        ("loftq_config", &[Object]),
        ("lora_dropout", &[Number]),
        ("lora_ga_config", &[Object]),
        ("megatron_core", &[Text]),
        ("merge_weights", &[Bool]),
        ("qalora_group_size", &[Number]),
    ],
    off: &[
        ("arrow_config", &[Object], "routing between adapters is not supported"),
        ("enable_lora", &[List], "merged linears are not supported"),
        ("kasa_config", &[Object], "KaSA is not supported"),
        ("layer_replication", &[List], "the base is served with its own layers only"),
        ("megatron_config", &[Object], "Megatron layers are not supported"),
        ("monteclora_config", &[Object], "MonteCLoRA is not supported"),
        ("target_parameters", &[List], "updates of bare parameters are not supported"),
        ("use_bdlora", &[Bool, Object], "block-diagonal LoRA is not supported"),
        ("use_qalora", &[Bool], "QA-LoRA pools its inputs, which is not supported"),
        ("velora_config", &[Object], "VeLoRA is not supported"),
    ],
};

/// AdaLoRA's configuration is LoRA's with the budget's schedule, which ends with training. `r` and
/// `rank_pattern` have another meaning than in LoRA.
const ADALORA: Keys = Keys {
    read: &[("init_r", &[Number]), ("rank_pattern", &[Object])],
    harmless: &[
        ("alpha_pattern", &[Object]),
        ("beta1", &[Number]),
        ("beta2", &[Number]),
        ("deltaT", &[Number]),
        ("orth_reg_weight", &[Number]),
        ("target_r", &[Number]),
        ("tfinal", &[Number]),
        ("tinit", &[Number]),
        ("total_step", &[Number]),
    ],
    off: &[],
};

const VERA: Keys = Keys {
    read: &[
        ("r", &[Number]),
        ("bias", &[Text]),
        ("projection_prng_key", &[Number]),
        ("save_projection", &[Bool]),
    ],
    harmless: &[("d_initial", &[Number]), ("init_weights", &[Bool]), ("vera_dropout", &[Number])],
    off: &[],
};

const IA3: Keys = Keys {
    read: &[("feedforward_modules", &[List, Text])],
    harmless: &[("init_ia3_weights", &[Bool])],
    off: &[],
};

const LYCORIS: Keys = Keys {
    read: &[("r", &[Number]), ("alpha", &[Number])],
    harmless: &[
        ("module_dropout", &[Number]),
        ("rank_dropout", &[Number]),
        ("rank_dropout_scale", &[Bool]),
        ("use_effective_conv2d", &[Bool]),
    ],
    off: &[],
};

const LOHA: Keys = Keys { read: &[], harmless: &[("init_weights", &[Bool])], off: &[] };

/// The shapes of the tensors say how a matrix was decomposed.
const LOKR: Keys = Keys {
    read: &[],
    harmless: &[
        ("decompose_both", &[Bool]),
        ("decompose_factor", &[Number]),
        ("init_weights", &[Bool, Text]),
    ],
    off: &[],
};

/// Of methods that put tokens before the prompt. Where their embeddings or keys came from counts in
/// training only: what is saved is what comes out.
const VIRTUAL_TOKENS: Keys = Keys {
    read: &[
        ("num_virtual_tokens", &[Number]),
        ("num_transformer_submodules", &[Number]),
        ("num_layers", &[Number]),
        ("token_dim", &[Number]),
    ],
    harmless: &[("num_attention_heads", &[Number])],
    off: &[("modules_to_save", &[List], "fully trained modules beside a prompt are not supported")],
};

const PROMPT_TUNING: Keys = Keys {
    read: &[],
    harmless: &[
        ("prompt_tuning_init", &[Text]),
        ("prompt_tuning_init_text", &[Text]),
        ("prompt_tuning_init_state_dict_path", &[Text]),
        ("tokenizer_kwargs", &[Object]),
        ("tokenizer_name_or_path", &[Text]),
    ],
    off: &[],
};

const P_TUNING: Keys = Keys {
    read: &[],
    harmless: &[
        ("encoder_dropout", &[Number]),
        ("encoder_hidden_size", &[Number]),
        ("encoder_num_layers", &[Number]),
        ("encoder_reparameterization_type", &[Text]),
    ],
    off: &[],
};

const PREFIX_TUNING: Keys = Keys {
    read: &[],
    harmless: &[
        ("encoder_hidden_size", &[Number]),
        ("init_weights", &[Bool, Text]),
        ("prefix_projection", &[Bool]),
    ],
    off: &[],
};

const TRAINABLE_TOKENS: Keys = Keys {
    read: &[("target_modules", &[List, Text]), ("token_indices", &[List])],
    harmless: &[("init_weights", &[Bool])],
    off: &[],
};

/// The tables of each method.
pub(crate) mod of_method {
    use super::Keys;

    pub(crate) const LORA: &[Keys] =
        &[super::COMMON, super::MODULES, super::LAYERS, super::RANK_PATTERNS, super::LORA];
    pub(crate) const ADALORA: &[Keys] =
        &[super::COMMON, super::MODULES, super::LAYERS, super::ADALORA, super::LORA];
    pub(crate) const VERA: &[Keys] = &[super::COMMON, super::MODULES, super::LAYERS, super::VERA];
    pub(crate) const IA3: &[Keys] = &[super::COMMON, super::MODULES, super::IA3];
    pub(crate) const LOHA: &[Keys] = &[
        super::COMMON,
        super::MODULES,
        super::LAYERS,
        super::RANK_PATTERNS,
        super::LYCORIS,
        super::LOHA,
    ];
    pub(crate) const LOKR: &[Keys] = &[
        super::COMMON,
        super::MODULES,
        super::LAYERS,
        super::RANK_PATTERNS,
        super::LYCORIS,
        super::LOKR,
    ];
    pub(crate) const PROMPT_TUNING: &[Keys] =
        &[super::COMMON, super::VIRTUAL_TOKENS, super::PROMPT_TUNING];
    pub(crate) const P_TUNING: &[Keys] = &[super::COMMON, super::VIRTUAL_TOKENS, super::P_TUNING];
    pub(crate) const PREFIX_TUNING: &[Keys] =
        &[super::COMMON, super::VIRTUAL_TOKENS, super::PREFIX_TUNING];
    pub(crate) const TRAINABLE_TOKENS: &[Keys] = &[super::COMMON, super::TRAINABLE_TOKENS];
}

/// Refuses a key that `tables` do not have, one of a type that it cannot have, and one that must be off
/// and is not.
pub(crate) fn check_keys(object: &Map<String, Value>, tables: &[Keys]) -> Result<(), Refusal> {
    object.iter().try_for_each(|(key, value)| check_key(key, value, tables))
}

fn check_key(key: &str, value: &Value, tables: &[Keys]) -> Result<(), Refusal> {
    let off = tables.iter().flat_map(|keys| keys.off).find(|(name, ..)| *name == key);
    let (allowed, reason) = match off {
        Some((_, allowed, reason)) => (*allowed, Some(reason)),
        None => {
            let mut known = tables.iter().flat_map(|keys| keys.read.iter().chain(keys.harmless));
            match known.find(|(name, _)| *name == key) {
                Some((_, allowed)) => (*allowed, None),
                None => {
                    return refuse(format!(
                        "sets {} in adapter_config.json, a key that this server does not know and \
                         that may change what the adapter computes; remove it if it does not",
                        Quoted(key)
                    ));
                }
            }
        }
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
