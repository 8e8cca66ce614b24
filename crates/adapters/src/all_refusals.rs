//! Every reason against an adapter at once, where loading stops at the first: for whoever asks what a
//! directory lacks. In: the bytes of both files. Out: sentences. No base is needed; what depends on one
//! (shapes, layers) is said by loading.

use crate::adapter_hub::AdapterHubConfig;
use crate::error::Refusal;
use crate::matrix::check_finite;
use crate::peft_config::{PeftConfig, parse_object};
use crate::tensor_names::{ADALORA, IA3, LOHA, LOKR, LORA, VERA, Word, tensor_name};
use crate::tensors::read_tensors;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Keys that others need beside them to be read at all.
const FRAME: [&str; 2] = ["peft_type", "target_modules"];

/// Sentences of one kind are given once, with the number of further ones.
const MAX_OF_A_KIND: usize = 3;

/// What would be refused of `adapter_config.json` and `adapter_model.safetensors`, in their order.
#[must_use]
pub fn all_refusals(config: &[u8], tensors: &[u8]) -> Vec<Refusal> {
    let mut refusals = of_config(config);
    refusals.extend(of_tensors(tensors, words(config)));
    refusals
}

/// Each key is read alone beside those that every configuration needs, so that none hides another.
fn of_config(config: &[u8]) -> Vec<Refusal> {
    let object = match parse_object(config) {
        Ok(object) => object,
        Err(refusal) => return vec![refusal],
    };
    match AdapterHubConfig::read(&object) {
        Ok(None) => {}
        Ok(Some(_)) => return Vec::new(),
        Err(refusal) => return vec![refusal],
    }
    let whole = PeftConfig::read(&object).err();
    let frame: Map<String, Value> =
        FRAME.iter().filter_map(|&key| Some((key.to_owned(), object.get(key)?.clone()))).collect();
    let refusal_of = |object: &Map<String, Value>| PeftConfig::read(object).err();
    if refusal_of(&frame).is_some() {
        return whole.into_iter().collect();
    }
    let mut refusals = Vec::new();
    for (key, value) in object.iter().filter(|(key, _)| !FRAME.contains(&key.as_str())) {
        let mut with_key = frame.clone();
        with_key.insert(key.clone(), value.clone());
        refusals.extend(refusal_of(&with_key));
    }
    // What only several keys together say.
    match whole {
        Some(refusal) if refusals.is_empty() => vec![refusal],
        _ => refusals,
    }
}

/// The words in the names of a method's tensors; `None` where tensors belong to no module.
fn words(config: &[u8]) -> Option<&'static [Word]> {
    let object = parse_object(config).ok()?;
    match object.get("peft_type")?.as_str()? {
        "LORA" => Some(LORA),
        "ADALORA" => Some(ADALORA),
        "VERA" => Some(VERA),
        "IA3" => Some(IA3),
        "LOHA" => Some(LOHA),
        "LOKR" => Some(LOKR),
        _ => None,
    }
}

fn of_tensors(bytes: &[u8], words: Option<&[Word]>) -> Vec<Refusal> {
    let tensors = match read_tensors(bytes) {
        Ok(tensors) => tensors,
        Err(refusal) => return vec![refusal],
    };
    let mut refusals: Vec<Refusal> = Vec::new();
    let (mut counts, mut num_hidden) = (BTreeMap::<String, usize>::new(), 0);
    for (name, tensor) in &tensors {
        let named = words.map_or(Ok(()), |words| tensor_name(name, words).map(drop));
        let checked = named.and_then(|()| check_finite(name, tensor));
        let Err(refusal) = checked else { continue };
        // The sentence without the tensor's name.
        let kind = refusal.reason().rsplit('"').next().unwrap_or_default().to_owned();
        let count = counts.entry(kind).or_default();
        *count += 1;
        if *count <= MAX_OF_A_KIND {
            refusals.push(refusal);
        } else {
            num_hidden += 1;
        }
    }
    if num_hidden > 0 {
        refusals.push(Refusal::new(format!("holds {num_hidden} more tensors of these kinds")));
    }
    refusals
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::safetensors_file::{RawTensor, safetensors_bytes};
    use weft_types::Dtype;

    #[test]
    fn every_key_and_tensor_that_would_be_refused_is_named() {
        let config = br#"{"peft_type": "LORA", "target_modules": ["q_proj"], "r": 0,
            "unheard_of": true, "layer_replication": [[0, 1]]}"#;
        let module = "base_model.model.model.layers.0.self_attn.q_proj";
        let mut tensors = vec![RawTensor::new(
            format!("{module}.lora_A.weight"),
            Dtype::F32,
            &[1, 1],
            &[f32::NAN],
        )];
        for i in 0..9 {
            tensors.push(RawTensor::new(format!("strange.{i}"), Dtype::F32, &[1], &[1.0]));
        }
        let refusals = all_refusals(config, &safetensors_bytes(&tensors));
        let text: Vec<&str> = refusals.iter().map(Refusal::reason).collect();
        let text = text.join("\n");
        for word in ["rank 0", "unheard_of", "layer_replication", "NaN", "strange.2"] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
        assert!(text.contains("6 more") && !text.contains("strange.3"), "{text}");
    }

    #[test]
    fn an_adapter_that_is_served_has_none() {
        let adapter = weft_testkit::peft::RandomAdapter::default();
        let config = serde_json::to_vec(&adapter.config()).unwrap();
        let tensors = safetensors_bytes(&adapter.tensors(&weft_testkit::tiny_llama_spec()));
        assert_eq!(all_refusals(&config, &tensors), []);
        let refusals = all_refusals(b"[]", b"");
        assert_eq!(refusals.len(), 2, "{refusals:?}");
    }

    #[test]
    fn what_only_keys_together_say_is_said() {
        let config =
            br#"{"peft_type": "LORA", "target_modules": "q_proj", "layers_to_transform": [0]}"#;
        assert_eq!(of_config(config).len(), 1);
    }
}
