//! Every directory of the malformed table is refused with the words that the table demands.

use crate::demo::demo_base;
use weft_adapters::{AdapterError, AdapterRegistry, LoadLimits, RegistryConfig, load_peft_dir};
use weft_testkit::malformed::malformed_adapters;
use weft_testkit::peft::RandomAdapter;
use weft_testkit::tiny_llama_spec;
use weft_types::BaseModelSpec;

const MAX_RANK: usize = 64;

#[test]
fn every_malformed_directory_is_refused_with_a_sentence_that_says_why() {
    check_table(&tiny_llama_spec(), MAX_RANK);
}

#[test]
fn the_table_holds_for_a_larger_base_and_limit() {
    check_table(&demo_base(), 512);
}

fn check_table(base: &BaseModelSpec, max_lora_rank: usize) {
    let limits = LoadLimits { max_lora_rank };
    let mut wrong = Vec::new();
    for case in malformed_adapters(base, max_lora_rank) {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path()).unwrap();
        let message = match load_peft_dir(dir.path(), base, &limits) {
            Err(error @ AdapterError::Rejected { .. }) => error.to_string(),
            other => {
                wrong.push(format!("{}: {:?}", case.name, other.map(|_| "loaded")));
                continue;
            }
        };
        let missing = case.words.iter().find(|word| !message.contains(*word));
        let is_sentence = message.len() < 700
            && message.starts_with("adapter \"")
            && !message.ends_with('.')
            && !message.chars().any(|c| c.is_control() && c != '\n');
        if missing.is_some() || !is_sentence {
            wrong.push(format!("{}: {missing:?} in: {message}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn after_every_malformed_adapter_the_next_good_one_is_served() {
    let base = tiny_llama_spec();
    let config = RegistryConfig { max_lora_rank: MAX_RANK, ..RegistryConfig::new(base.clone()) };
    let registry = AdapterRegistry::new(config).unwrap();
    let good = tempfile::tempdir().unwrap();
    RandomAdapter::default().write(&base, good.path()).unwrap();
    for case in malformed_adapters(&base, MAX_RANK) {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path()).unwrap();
        let error = registry.load("x", dir.path(), false).await.unwrap_err();
        assert!(error.to_string().starts_with("adapter \"x\" "), "{}: {error}", case.name);
        assert!(registry.resolve("x").await.is_err(), "{}", case.name);
    }
    registry.load("x", good.path(), false).await.unwrap();
    assert_eq!(registry.resolve("x").await.unwrap().weights().max_rank(), 8);
}
