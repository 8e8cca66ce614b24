//! The adapters of the demo, made by PEFT's training, load for the base that they were made for.

use std::path::Path;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_types::BaseModelSpec;

/// SmolLM2-135M-Instruct.
pub(crate) fn demo_base() -> BaseModelSpec {
    BaseModelSpec {
        num_layers: 30,
        hidden_size: 576,
        intermediate_size: 1536,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        max_context: 8192,
        tied_embeddings: true,
    }
}

#[test]
fn every_demo_adapter_loads_in_its_own_rank() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/adapters");
    let mut ranks = Vec::new();
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let config = std::fs::read(path.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let limits = LoadLimits { max_lora_rank: 64 };
        let adapter = load_peft_dir(&path, &demo_base(), &limits).unwrap();
        let patterns = config["rank_pattern"].as_object().into_iter().flatten();
        let in_config = patterns.map(|(_, rank)| rank).chain([&config["r"]]);
        let largest = in_config.filter_map(serde_json::Value::as_u64).max();
        assert_eq!(Some(adapter.max_rank() as u64), largest, "{}", path.display());
        ranks.push(adapter.max_rank());
    }
    assert!(ranks.len() >= 5, "{ranks:?}");
}
