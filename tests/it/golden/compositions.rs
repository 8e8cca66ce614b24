//! Compositions of golden adapters: logits within 1e-4 of peft with several adapters active at once.

use super::prompts;
use crate::support::decoding::{all_logits, chunk_bytes, packed_logits, relative_error};
use crate::support::{golden, golden_metadata};
use std::sync::Arc;
use weft_adapters::{AdapterRegistry, LoadLimits, RegistryConfig, load_peft_dir};
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;

#[tokio::test]
async fn compositions_give_the_logits_of_peft_with_several_active_adapters() {
    for name in ["two", "scaled", "one", "heads"] {
        let path = golden(&format!("compositions/{name}.safetensors"));
        let metadata = golden_metadata(&path);
        let base = golden(&format!("models/{}", metadata["base"]));
        let model = LoadedModel::load(&base, &LoadOptions::default()).unwrap();
        let registry = AdapterRegistry::new(RegistryConfig {
            adapter_dir: Some(golden("adapters")),
            chunk_bytes: chunk_bytes(&model),
            ..RegistryConfig::new(model.spec().clone())
        });
        let registry = registry.unwrap();
        let formula = &metadata["formula"];
        let lease = registry.resolve(formula).await.unwrap();
        let first = formula.split('+').next().unwrap().rsplit('*').next().unwrap();
        let first = golden(&format!("adapters/{first}"));
        let first = load_peft_dir(&first, model.spec(), &LoadLimits::default());
        let first = Arc::new(first.unwrap());
        for (tokens, want) in prompts(&GoldenFile::open(&path).unwrap()) {
            let packed = lease.weights().as_ref().clone();
            let error = relative_error(&packed_logits(&model, Some(packed), 0, &tokens), &want);
            println!("{formula}: rank {}, error {error:.1e}", lease.weights().max_rank());
            assert!(error < 1e-4, "{formula}: {error}");
            let without = relative_error(&all_logits(&model, Some(&first), &tokens), &want);
            assert!(without > 1e-2, "{formula} is more than its first part");
        }
    }
}
