//! `adapter_config.json` of AdapterHub's library `adapters` → the facts that decide what a bottleneck
//! adapter computes. Only configurations that Llama's and Mistral's layers compute exactly as
//! [`weft_types::Bottleneck`] does are accepted; the rest is refused by key. Knows no tensors.

use crate::error::Refusal;
use crate::json::shown;
use crate::peft_config::refuse;
use crate::quoted::Quoted;
use serde_json::{Map, Value};
use weft_types::{Activation, BottleneckInput};

/// What is left of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdapterHubConfig {
    /// Part of the tensors' names.
    pub(crate) name: String,
    /// After attention, after the MLP.
    pub(crate) has_attention: bool,
    pub(crate) has_output: bool,
    pub(crate) reads: BottleneckInput,
    pub(crate) activation: Activation,
    pub(crate) scaling: Scaling,
    /// Layers without adapters.
    pub(crate) leave_out: Vec<u64>,
    reduction: Reduction,
}

/// What the output is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scaling {
    Given(f32),
    /// One number, which is among the tensors.
    Learned,
    /// One for each output.
    Channel,
}

/// By how much narrower than the model a bottleneck is.
#[derive(Clone, Debug, PartialEq)]
enum Reduction {
    Same(f64),
    /// Layers by number, or "default".
    ByLayer(Vec<(String, f64)>),
}

/// Keys around the configuration.
const OUTER: [&str; 8] = [
    "config",
    "config_id",
    "hidden_size",
    "model_class",
    "model_name",
    "model_type",
    "name",
    "version",
];

/// Keys that are read, or count in training only, or only with others that must be off.
const KNOWN: [&str; 26] = [
    "adapter_residual_before_ln",
    "dropout",
    "factorized_phm_W",
    "factorized_phm_rule",
    "hypercomplex_nonlinearity",
    "init_weights",
    "inv_adapter_reduction_factor",
    "learn_phm",
    "leave_out",
    "mh_adapter",
    "non_linearity",
    "original_ln_after",
    "original_ln_before",
    "output_adapter",
    "phm_bias",
    "phm_c_init",
    "phm_dim",
    "phm_init_range",
    "phm_rank",
    "reduction_factor",
    "residual_before_ln",
    "scaling",
    "shared_W_phm",
    "shared_phm_rule",
    "stochastic_depth",
    "architecture",
];

/// Keys that must be off, and why.
const OFF: [(&str, &str); 7] = [
    ("cross_adapter", "this base has no cross attention"),
    ("inv_adapter", "invertible adapters of the embedding are not supported"),
    ("is_parallel", "an adapter that reads the input of a block is not supported"),
    ("ln_after", "a layer norm after the bottleneck is not supported"),
    ("ln_before", "a layer norm before the bottleneck is not supported"),
    ("phm_layer", "Compacter's products are not supported"),
    ("use_gating", "a gate over the whole sequence is not supported"),
];

impl AdapterHubConfig {
    /// Reads the object of `adapter_config.json`; `None` if it is PEFT's.
    pub(crate) fn read(object: &Map<String, Value>) -> Result<Option<Self>, Refusal> {
        if object.contains_key("peft_type") || !object.contains_key("config") {
            return Ok(None);
        }
        if let Some(key) = object.keys().find(|key| !OUTER.contains(&key.as_str())) {
            return refuse(unknown(key));
        }
        match object.get("model_type").and_then(Value::as_str) {
            Some("llama" | "mistral") => {}
            found => {
                return refuse(format!(
                    "has model_type {} in adapter_config.json; bottleneck adapters are served for \
                     \"llama\" and \"mistral\"",
                    Quoted(found.unwrap_or("null"))
                ));
            }
        }
        // Older ones meant other functions by the names of activations.
        if !object.get("version").is_some_and(Value::is_string) {
            return refuse(
                "has no version in adapter_config.json; save the adapter again with a current \
                 release of adapters"
                    .to_owned(),
            );
        }
        let Some(name) = object.get("name").and_then(Value::as_str) else {
            return refuse("has no name in adapter_config.json".to_owned());
        };
        let Some(Value::Object(config)) = object.get("config") else {
            return refuse(
                "has a config in adapter_config.json that is no object; save the adapter again with \
                 a current release of adapters, which writes it out"
                    .to_owned(),
            );
        };
        Self::read_inner(name, config).map(Some)
    }

    fn read_inner(name: &str, config: &Map<String, Value>) -> Result<Self, Refusal> {
        if let Some(architecture) = config.get("architecture").and_then(Value::as_str) {
            return refuse(format!(
                "has the architecture {} in adapter_config.json; of AdapterHub's adapters only \
                 bottlenecks are served: train it with PEFT",
                Quoted(architecture)
            ));
        }
        for (key, value) in config {
            let off = OFF.iter().find(|(name, _)| name == key);
            match off {
                Some((_, why)) if !matches!(value, Value::Null | Value::Bool(false)) => {
                    return refuse(format!(
                        "sets {key} to {} in adapter_config.json, but {why}",
                        shown(value)
                    ));
                }
                None if !KNOWN.contains(&key.as_str()) => return refuse(unknown(key)),
                _ => {}
            }
        }
        let flag = |key: &str, default: bool| match config.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => refuse(format!(
                "sets {key} to {} in adapter_config.json; it must be true or false",
                shown(other)
            )),
        };
        if !flag("original_ln_after", true)? {
            return refuse(
                "sets original_ln_after to false in adapter_config.json: its layers have no \
                 residual connection, which is not supported"
                    .to_owned(),
            );
        }
        let reads_sum = flag("original_ln_before", false)?;
        if reads_sum && !flag("residual_before_ln", true)? {
            return refuse(
                "sets original_ln_before without residual_before_ln in adapter_config.json: its \
                 layers add their input twice, which is not supported"
                    .to_owned(),
            );
        }
        Ok(Self {
            name: name.to_owned(),
            has_attention: flag("mh_adapter", false)?,
            has_output: flag("output_adapter", false)?,
            reads: if reads_sum { BottleneckInput::Residual } else { BottleneckInput::Output },
            activation: activation(config)?,
            scaling: scaling(config)?,
            leave_out: leave_out(config)?,
            reduction: reduction(config)?,
        })
    }

    /// The width of the bottleneck of a layer; `None` if the configuration names none.
    pub(crate) fn width(&self, layer: usize, hidden_size: usize) -> Option<usize> {
        let factor = match &self.reduction {
            Reduction::Same(factor) => *factor,
            Reduction::ByLayer(factors) => {
                let find = |key: &str| factors.iter().find(|(name, _)| name == key);
                find(&layer.to_string()).or_else(|| find("default"))?.1
            }
        };
        // Python's floor division of floats.
        Some(((hidden_size as f64 / factor).floor() as usize).max(1))
    }
}

fn unknown(key: &str) -> String {
    format!(
        "sets {} in adapter_config.json, a key that this server does not know and that may change \
         what the adapter computes; remove it if it does not",
        Quoted(key)
    )
}

fn activation(config: &Map<String, Value>) -> Result<Activation, Refusal> {
    let name = config.get("non_linearity").and_then(Value::as_str).unwrap_or_default();
    match name.to_ascii_lowercase().as_str() {
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "swish" | "silu" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        "linear" => Ok(Activation::Identity),
        _ => refuse(format!(
            "has the non_linearity {} in adapter_config.json; it must be relu, gelu, gelu_new, \
             gelu_fast, gelu_pytorch_tanh, swish, silu, tanh or linear",
            Quoted(name)
        )),
    }
}

fn scaling(config: &Map<String, Value>) -> Result<Scaling, Refusal> {
    match config.get("scaling") {
        None => Ok(Scaling::Given(1.0)),
        Some(Value::String(word)) if word == "learned" => Ok(Scaling::Learned),
        Some(Value::String(word)) if word == "channel" => Ok(Scaling::Channel),
        Some(value) => match value.as_f64().map(|value| value as f32) {
            Some(value) if value.is_finite() => Ok(Scaling::Given(value)),
            _ => refuse(format!(
                "has the scaling {} in adapter_config.json; it must be a number, \"learned\" or \
                 \"channel\"",
                shown(value)
            )),
        },
    }
}

fn leave_out(config: &Map<String, Value>) -> Result<Vec<u64>, Refusal> {
    let Some(value) = config.get("leave_out").filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let layers = value.as_array().and_then(|layers| layers.iter().map(Value::as_u64).collect());
    layers.map_or_else(
        || {
            refuse(format!(
                "has {} as leave_out in adapter_config.json; it must be a list of layers",
                shown(value)
            ))
        },
        Ok,
    )
}

fn reduction(config: &Map<String, Value>) -> Result<Reduction, Refusal> {
    let value = config.get("reduction_factor").unwrap_or(&Value::Null);
    let factor = |value: &Value| match value.as_f64() {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        _ => refuse(format!(
            "has the reduction_factor {} in adapter_config.json; it must be a number above 0",
            shown(value)
        )),
    };
    match value {
        Value::Object(by_layer) => by_layer
            .iter()
            .map(|(layer, value)| Ok((layer.clone(), factor(value)?)))
            .collect::<Result<_, _>>()
            .map(Reduction::ByLayer),
        same => factor(same).map(Reduction::Same),
    }
}
