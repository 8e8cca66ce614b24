//! One rule a test.

use super::world::{Client, Outcome, VOCAB_SIZE, World, adapter, plain};
use crate::{AdapterSpec, AddError, CostModel, NewSequence, Scheduler, SchedulerConfig};
use std::sync::Arc;
use weft_types::{ExecutorLimits, FinishReason, StopConditions, TokenEvent, TokenId};

const LIMITS: ExecutorLimits = ExecutorLimits {
    block_size: 4,
    num_blocks: 16,
    chunk_bytes: 64,
    max_model_len: 48,
    max_num_seqs: 4,
    max_num_batched_tokens: 8,
};

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|index| index % 3).collect()
}

fn cached_tokens(client: &Client) -> usize {
    let Some(TokenEvent::Finished { usage, .. }) = &client.end else {
        panic!("it ended with {:?}", client.end)
    };
    usage.cached_tokens
}

/// Runs `first` and then `second` to their ends; how much of `second` came from the cache.
fn cached_of_second(first: NewSequence, second: NewSequence) -> usize {
    let mut world = World::new(LIMITS, true);
    world.add(first).unwrap();
    world.run_to_the_end();
    let id = world.add(second).unwrap();
    world.run_to_the_end();
    cached_tokens(&world.ended[&id])
}

#[test]
fn an_equal_prompt_is_cached_up_to_the_block_before_its_last_token() {
    assert_eq!(cached_of_second(plain(&prompt(11), 2), plain(&prompt(11), 2)), 8);
    assert_eq!(cached_of_second(plain(&prompt(12), 2), plain(&prompt(12), 2)), 8);
    assert_eq!(cached_of_second(plain(&prompt(13), 2), plain(&prompt(13), 2)), 12);
    assert_eq!(cached_of_second(plain(&prompt(4), 2), plain(&prompt(4), 2)), 0);
}

#[test]
fn drawn_tokens_are_found_by_the_next_turn_of_a_conversation() {
    let mut world = World::new(LIMITS, true);
    let id = world.add(plain(&prompt(6), 7)).unwrap();
    world.run_to_the_end();
    let mut next_turn = world.ended[&id].tokens.clone();
    next_turn.extend([1, 2]);
    let id = world.add(plain(&next_turn, 1)).unwrap();
    world.run_to_the_end();
    assert_eq!(cached_tokens(&world.ended[&id]), 12);
}

#[test]
fn prefixes_are_not_shared_between_adapters_or_salts() {
    let base = plain(&prompt(12), 1);
    let adapter = |byte| NewSequence { adapter: Some(adapter(byte, 1)), ..base.clone() };
    let salted = |salt| NewSequence { cache_salt: Some(Arc::from(salt)), ..base.clone() };
    assert_eq!(cached_of_second(base.clone(), adapter(1)), 0);
    assert_eq!(cached_of_second(adapter(1), adapter(2)), 0);
    assert_eq!(cached_of_second(adapter(1), adapter(1)), 8);
    assert_eq!(cached_of_second(base.clone(), salted("a")), 0);
    assert_eq!(cached_of_second(salted("a"), salted("b")), 0);
    assert_eq!(cached_of_second(salted("a"), salted("a")), 8);
}

#[test]
fn blocks_before_an_activation_are_shared_with_the_base_both_ways() {
    let base = plain(&prompt(14), 1);
    let activated = |byte, active_from| NewSequence {
        adapter: Some(adapter(byte, 1)),
        active_from,
        ..base.clone()
    };
    assert_eq!(cached_of_second(base.clone(), activated(1, 8)), 8);
    assert_eq!(cached_of_second(base.clone(), activated(1, 9)), 8);
    assert_eq!(cached_of_second(base.clone(), activated(1, 7)), 4);
    assert_eq!(cached_of_second(activated(1, 9), base.clone()), 8);
    assert_eq!(cached_of_second(activated(1, 3), base.clone()), 0);
    assert_eq!(cached_of_second(activated(1, 5), activated(2, 5)), 4);
    assert_eq!(cached_of_second(activated(1, 5), activated(1, 6)), 4);
    assert_eq!(cached_of_second(activated(1, 5), activated(1, 5)), 12);
}

#[test]
fn virtual_tokens_are_computed_once_for_all_requests_of_an_adapter_and_never_told() {
    let of_prompt = |first: u32, byte| {
        let virtual_tokens = VOCAB_SIZE..VOCAB_SIZE + 8;
        let tokens: Vec<_> = virtual_tokens.chain([first]).chain(prompt(4)).collect();
        NewSequence { num_virtual_tokens: 8, adapter: Some(adapter(byte, 1)), ..plain(&tokens, 1) }
    };
    let mut world = World::new(LIMITS, true);
    let run = |world: &mut World, new| {
        let id = world.add(new).unwrap();
        let mut num_computed = 0;
        while !world.live.is_empty() {
            world.step(Outcome::Computed);
            num_computed += world.plan.tokens.len();
        }
        let Some(TokenEvent::Finished { usage, .. }) = world.ended[&id].end else { panic!() };
        (usage.prompt_tokens, usage.cached_tokens, num_computed)
    };
    assert_eq!(run(&mut world, of_prompt(1, 1)), (5, 0, 13));
    assert_eq!(run(&mut world, of_prompt(2, 1)), (5, 0, 5));
    assert_eq!(run(&mut world, of_prompt(2, 1)), (5, 4, 1));
    assert_eq!(run(&mut world, of_prompt(2, 2)), (5, 0, 13));
    assert_eq!(world.scheduler.counters().prompt_tokens, 20);
    assert_eq!(world.scheduler.counters().prefix_hit_tokens, 4);
}

#[test]
fn a_prompt_whose_log_probabilities_are_asked_for_is_computed_whole() {
    let base = plain(&prompt(12), 1);
    let with_logprobs = NewSequence { uses_cache: false, ..base.clone() };
    assert_eq!(cached_of_second(base.clone(), with_logprobs.clone()), 0);
    assert_eq!(cached_of_second(with_logprobs, base), 8);
}

#[test]
fn nothing_is_cached_when_caching_is_off() {
    let mut world = World::new(LIMITS, false);
    for _ in 0..2 {
        let id = world.add(plain(&prompt(12), 2)).unwrap();
        world.run_to_the_end();
        assert_eq!(cached_tokens(&world.ended[&id]), 0);
    }
    assert_eq!(world.scheduler.counters().prefix_query_tokens, 0);
}

#[test]
fn zero_max_tokens_computes_the_prompt_and_draws_nothing() {
    let mut world = World::new(LIMITS, true);
    let id = world.add(plain(&prompt(10), 0)).unwrap();
    world.step(Outcome::Computed);
    world.step(Outcome::Computed);
    let client = &world.ended[&id];
    assert_eq!(client.num_drawn(), 0);
    let reason = FinishReason::Length;
    assert!(matches!(client.end, Some(TokenEvent::Finished { reason: r, .. }) if r == reason));
    assert_eq!(world.scheduler.counters().generation_tokens, 0);
}

#[test]
fn a_stop_token_ends_the_sequence_once_min_tokens_are_drawn() {
    let stop = |min_tokens| StopConditions {
        max_tokens: 20,
        min_tokens,
        stop_token_ids: vec![0, 1, 2, 3],
    };
    for min_tokens in [0, 1, 5] {
        let mut world = World::new(LIMITS, true);
        let id = world.add(NewSequence { stop: stop(min_tokens), ..plain(&[1, 2], 0) }).unwrap();
        world.run_to_the_end();
        assert_eq!(world.ended[&id].num_drawn(), min_tokens as usize + 1);
    }
}

#[test]
fn a_sequence_ends_at_the_length_of_the_context() {
    let mut world = World::new(LIMITS, true);
    let id = world.add(plain(&prompt(40), 100)).unwrap();
    world.run_to_the_end();
    assert_eq!(world.ended[&id].tokens.len(), LIMITS.max_model_len);
}

#[test]
fn preempted_sequences_keep_their_tokens_and_return_in_order() {
    // 7 blocks; three sequences that need up to 4 each.
    let mut world = World::new(ExecutorLimits { num_blocks: 7, ..LIMITS }, true);
    let ids: Vec<_> = (0..3).map(|id| world.add(plain(&[id, 1, 2, 3], 10)).unwrap()).collect();
    let mut ended = Vec::new();
    while !world.live.is_empty() {
        world.step(Outcome::Computed);
        ended.extend(ids.iter().filter(|&id| world.ended.contains_key(id)));
        ended.dedup();
    }
    assert!(world.scheduler.counters().num_preemptions > 0, "the cache was meant to be too small");
    assert!(ended.starts_with(&ids[..1]), "the oldest ends first: {ended:?}");
    assert!(world.ended.values().all(|client| client.num_drawn() == 10));
}

#[test]
fn aborted_request_returns_its_blocks() {
    let mut world = World::new(LIMITS, false);
    world.add(plain(&prompt(20), 10)).unwrap();
    world.step(Outcome::Computed);
    assert_eq!(world.scheduler.pool_use().kv, 2);
    world.abort(0);
    assert_eq!(world.scheduler.pool_use().kv, 0);
    assert!(world.scheduler.is_empty());
}

#[test]
fn a_failed_step_ends_its_sequences_and_no_others() {
    let mut world = World::new(ExecutorLimits { max_num_seqs: 1, ..LIMITS }, true);
    let first = world.add(plain(&prompt(4), 3)).unwrap();
    let second = world.add(plain(&prompt(5), 3)).unwrap();
    world.step(Outcome::Failed);
    assert!(matches!(world.ended[&first].end, Some(TokenEvent::Failed(_))));
    world.run_to_the_end();
    assert!(matches!(world.ended[&second].end, Some(TokenEvent::Finished { .. })));
}

#[test]
fn what_could_never_fit_is_refused_when_it_is_added() {
    let limits = ExecutorLimits { num_blocks: 5, ..LIMITS };
    let mut scheduler = Scheduler::new(SchedulerConfig::new(limits));
    let refused = scheduler.add(plain(&prompt(12), 30));
    assert_eq!(refused, Err(AddError::TooManyBlocks { needed: 11, num_virtual: 0, max: 5 }));
    assert!(scheduler.is_empty());
}

#[test]
fn prefill_chunks_shrink_by_what_the_ranks_of_a_step_cost() {
    let limits =
        ExecutorLimits { max_num_batched_tokens: 64, max_model_len: 256, num_blocks: 96, ..LIMITS };
    let tokens_beside = |num_adapters: u8| {
        // A rank costs as much as half a token.
        let costs = CostModel { token_s: 2e-3, rank_s: 1e-3, ..CostModel::default() };
        let config = SchedulerConfig { costs, ..SchedulerConfig::new(limits.clone()) };
        let mut world = World::with_config(config);
        for byte in 0..num_adapters {
            let spec = AdapterSpec { rank: 15, ..adapter(byte, 1) };
            world.add(NewSequence { adapter: Some(spec), ..plain(&prompt(3), 40) }).unwrap();
        }
        for _ in 0..4 {
            world.step(Outcome::Computed);
        }
        world.add(plain(&prompt(200), 1)).unwrap();
        world.step(Outcome::Computed);
        world.plan.sequences.last().unwrap().tokens.len()
    };
    assert_eq!(tokens_beside(0), 64);
    assert_eq!(tokens_beside(1), 64 - 1 - 7);
    assert_eq!(tokens_beside(3), 64 - 3 - 22);
}

#[test]
fn a_pinned_adapter_survives_pressure_until_nothing_else_is_left() {
    let mut world = World::new(LIMITS, true);
    let of = |byte: u8| NewSequence { adapter: Some(adapter(byte, 4)), ..plain(&prompt(4), 2) };
    world.pin(adapter(0, 4).hash, true);
    for byte in 0..6 {
        world.add(of(byte)).unwrap();
        world.run_to_the_end();
    }
    let is_resident = |world: &World, byte: u8| {
        let hash = adapter(byte, 4).hash;
        world.scheduler.adapters().any(|one| one.hash == hash && one.is_resident)
    };
    assert!(is_resident(&world, 0) && !is_resident(&world, 1));
    // Thirteen blocks of sixteen: the pin yields, rather than to let the request wait for ever.
    world.add(plain(&prompt(47), 1)).unwrap();
    world.add(NewSequence { adapter: Some(adapter(7, 4)), ..plain(&prompt(44), 2) }).unwrap();
    world.run_to_the_end();
    assert!(!is_resident(&world, 0));
}

#[test]
fn hits_and_loads_are_counted() {
    let mut world = World::new(LIMITS, true);
    let of = |byte: u8| NewSequence { adapter: Some(adapter(byte, 2)), ..plain(&prompt(4), 2) };
    for byte in [0, 1, 0, 0] {
        world.add(of(byte)).unwrap();
        world.run_to_the_end();
    }
    let counters = world.scheduler.residency_counters();
    assert_eq!((counters.hits, counters.misses), (2, 2));
    assert_eq!((counters.loads, counters.loaded_chunks, counters.evictions), (2, 4, 0));
}

#[test]
fn a_sequence_and_its_adapter_must_fit_together() {
    let mut scheduler = Scheduler::new(SchedulerConfig::new(LIMITS));
    let new = NewSequence { adapter: Some(adapter(0, 14)), ..plain(&prompt(8), 2) };
    let refused = AddError::AdapterTooLarge { adapter: 14, needed: 3, max: 16 };
    assert_eq!(scheduler.add(new), Err(refused));
    assert!(scheduler.is_empty() && scheduler.adapters().next().is_none());
}
