//! The value of `peft_type` → a method that is served, or a sentence about one that is not. Together
//! they are all methods of PEFT, which a test compares with PEFT's own list.

use crate::error::Refusal;
use crate::json::shown;
use crate::peft_config::refuse;
use serde_json::{Map, Value};

/// A method that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    Lora,
    AdaLora,
    Vera,
    Ia3,
    LoHa,
    LoKr,
    PromptTuning,
    PTuning,
    PrefixTuning,
    TrainableTokens,
}

const SERVED: [(&str, Served); 10] = [
    ("LORA", Served::Lora),
    ("ADALORA", Served::AdaLora),
    ("VERA", Served::Vera),
    ("IA3", Served::Ia3),
    ("LOHA", Served::LoHa),
    ("LOKR", Served::LoKr),
    ("PROMPT_TUNING", Served::PromptTuning),
    ("P_TUNING", Served::PTuning),
    ("PREFIX_TUNING", Served::PrefixTuning),
    ("TRAINABLE_TOKENS", Served::TrainableTokens),
];

const ROTATES: &str = "rotates the base's weights, which no update of low rank does";
const DENSE: &str = "changes whole weight matrices, which no update of low rank does";
const DECOMPOSES: &str = "is relative to a singular value decomposition of the base";
const DRAWN: &str = "draws its matrices from a random stream that this server does not reproduce";

/// The others, each with the reason.
const REFUSED: [(&str, &str); 35] = [
    ("ADAMSS", DECOMPOSES),
    ("ADAPTION_PROMPT", "adds gated attention to prompts in each layer"),
    ("BEFT", "trains biases where this base may have none"),
    ("BOFT", ROTATES),
    ("BONE", DENSE),
    ("C3A", DENSE),
    ("CARTRIDGE", "keeps keys and values in a form of its own"),
    ("CPT", "mixes trained tokens into tokens of the prompt"),
    ("DEFT", DENSE),
    ("DELORA", "scales each rank by lengths of the base's weights"),
    ("FOURIERFT", DENSE),
    ("FROD", DENSE),
    ("GLORA", "changes weights and biases by products with the base"),
    ("GRALORA", "cuts each linear into blocks"),
    ("HIRA", "multiplies the base's weights by its update"),
    ("HRA", ROTATES),
    ("LILY", "routes between shared matrices"),
    ("LN_TUNING", "trains the layer norms, which requests share"),
    ("MISS", DENSE),
    ("MULTITASK_PROMPT_TUNING", "needs a task with each request"),
    ("OFT", ROTATES),
    ("OSF", DECOMPOSES),
    ("PEANUT", "changes weights by a network of the base's weights"),
    ("POLY", "needs a task with each request"),
    ("PSOFT", DECOMPOSES),
    ("PVERA", DRAWN),
    ("RANDLORA", DRAWN),
    ("ROAD", "rotates the outputs of linears"),
    ("SHADOW", "runs a network of its own beside the base"),
    ("SHIRA", "changes single weights all over a matrix"),
    ("SUPERTUNING", "changes single weights all over a matrix"),
    ("TINYLORA", DECOMPOSES),
    ("UNILORA", DRAWN),
    ("VBLORA", "mixes its matrices from a bank of vectors"),
    ("WAVEFT", DENSE),
];

/// What is said of the one whose adapters can be served each on its own.
const XLORA: &str = "mixes adapters by a network that reads the base's hidden states, which no one \
                     adapter computes; serve its adapters under names of their own";

/// The method of a configuration.
pub(crate) fn peft_type(object: &Map<String, Value>) -> Result<Served, Refusal> {
    let method = match object.get("peft_type") {
        Some(Value::String(method)) => method.as_str(),
        None | Some(Value::Null) => {
            return refuse(
                "has no peft_type in adapter_config.json, e.g. \"LORA\"; files of AdapterHub's \
                 adapters have a \"config\" instead"
                    .to_owned(),
            );
        }
        Some(other) => {
            let served: Vec<_> = SERVED.iter().map(|(name, _)| *name).collect();
            return refuse(format!(
                "has peft_type {}; it must be one of {}",
                shown(other),
                served.join(", ")
            ));
        }
    };
    if let Some((_, served)) = SERVED.iter().find(|(name, _)| *name == method) {
        return Ok(*served);
    }
    if method == "XLORA" {
        return refuse(format!("has peft_type \"XLORA\", but that {XLORA}"));
    }
    let found = shown(&Value::from(method));
    match REFUSED.iter().find(|(name, _)| *name == method) {
        Some((_, why)) => refuse(format!(
            "has peft_type {found}, but that {why}; merge it into the base with peft's \
             merge_and_unload() if it can be, and serve the result as a base"
        )),
        None => {
            let served: Vec<_> = SERVED.iter().map(|(name, _)| *name).collect();
            refuse(format!(
                "has peft_type {found}, which this server does not know; it serves {}",
                served.join(", ")
            ))
        }
    }
}
