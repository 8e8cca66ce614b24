//! Adapters that become active in mid-prompt: the base before, and nothing of them without an
//! invocation.

use super::*;

const INVOCATION: [TokenId; 2] = [1, 2];

async fn activated(dir: &Path) -> (AdapterRegistry, AdapterLease) {
    let base = weft_testkit::tiny_llama_spec();
    let registry = AdapterRegistry::new(RegistryConfig {
        chunk_bytes: 4096,
        ..RegistryConfig::new(base.clone())
    });
    let registry = registry.unwrap();
    let invocation_tokens = Some(INVOCATION.to_vec());
    let adapter = RandomAdapter { invocation_tokens, ..RandomAdapter::of_rank(2, 7) };
    adapter.write(&base, dir).unwrap();
    let tokens = registry.add_static("activated", dir).unwrap();
    assert_eq!(tokens.rank, Some(2));
    let lease = registry.resolve("activated").await.unwrap();
    (registry, lease)
}

/// A prompt that invokes the adapter after `len` tokens of its own.
fn invoking(seed: u32, len: usize) -> Vec<TokenId> {
    [prompt(seed, len), vec![INVOCATION[0], INVOCATION[1], 500]].concat()
}

async fn finished(
    engine: &EngineHandle,
    tokens: &[TokenId],
    lease: Option<&AdapterLease>,
) -> Answer {
    answer(engine.submit(request(tokens, 3), lease.cloned()).unwrap()).await
}

#[tokio::test]
async fn the_prompt_before_the_invocation_is_the_bases_for_both() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, lease) = activated(dir.path()).await;
    let engine = engine(sim());
    let cached = async |tokens: &[TokenId], lease: Option<&AdapterLease>| {
        finished(&engine, tokens, lease).await.usage().cached_tokens
    };
    assert_eq!(cached(&prompt(3, 40), None).await, 0);
    assert_eq!(cached(&invoking(3, 40), Some(&lease)).await, 32);
    assert_eq!(cached(&invoking(4, 40), Some(&lease)).await, 0);
    assert_eq!(cached(&prompt(4, 40), None).await, 32);
    drop(lease);
    assert_idle(&engine);
}

#[tokio::test]
async fn tokens_after_the_invocation_are_the_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, lease) = activated(dir.path()).await;
    let engine = engine(sim());
    let tokens = invoking(5, 20);
    let adapter =
        AdapterRef { active_from: 20, ..AdapterRef::new(AdapterId(0), lease.content_hash()) };
    let request = request(&tokens, 3);
    let spec = |adapter| SequenceSpec {
        prompt: request.prompt.clone(),
        sampling: request.sampling.clone(),
        stop_token_ids: Vec::new(),
        min_tokens: 0,
        adapter,
    };
    let got = finished(&engine, &tokens, Some(&lease)).await;
    assert_eq!(got.tokens, sim().expected_tokens(spec(Some(adapter)), 3));
    assert_ne!(got.tokens, sim().expected_tokens(spec(None), 3));
    assert_ne!(got.tokens, expected(&request, Some(&lease)), "not active from the begin on");
}

#[tokio::test]
async fn an_adapter_that_is_not_invoked_is_the_base_and_is_not_brought_to_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, lease) = activated(dir.path()).await;
    // Not a chunk beside the sequence itself.
    let limits = ExecutorLimits { num_blocks: 2, max_model_len: 32, ..sim_limits() };
    let engine = engine(SimExecutor::new(limits, VOCAB_SIZE));
    let request = request(&prompt(6, 24), 3);
    let got = answer(engine.submit(request.clone(), Some(lease.clone())).unwrap()).await;
    assert_eq!(got.tokens, expected(&request, None));
    assert_eq!(engine.stats().memory().counters.loads, 0);
    let refused = engine.submit(super::request(&invoking(6, 24), 3), Some(lease)).unwrap_err();
    assert!(refused.to_string().contains("the adapter takes"), "{refused}");
}
