//! Random histories of arrivals, cancellations, steps and failures, in caches that are too small.

use super::world::{Outcome, VOCAB_SIZE, World, adapter, plain};
use crate::{CostModel, EvictionKind, NewSequence, SchedulerConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;
use weft_types::{ExecutorLimits, StopConditions, TokenId};

#[derive(Clone, Debug)]
enum Op {
    Add(NewSequence),
    Abort(usize),
    Step(Outcome),
    Pin(u8, bool),
    /// So many milliseconds pass.
    Expire(u64),
}

fn limits() -> impl Strategy<Value = ExecutorLimits> {
    (1..=4usize, 3..=24usize, 8..=40usize, 1..=6usize, 1..=16usize).prop_map(
        |(block_size, num_blocks, max_model_len, max_num_seqs, max_num_batched_tokens)| {
            ExecutorLimits {
                block_size,
                num_blocks,
                chunk_bytes: 64,
                max_model_len,
                max_num_seqs,
                max_num_batched_tokens,
            }
        },
    )
}

/// One of three families of prompts that share their beginnings, with a tail of its own.
fn prompt() -> impl Strategy<Value = Arc<[TokenId]>> {
    (0..3usize, 0..20usize, vec(0..VOCAB_SIZE, 1..4)).prop_map(|(family, shared, tail)| {
        let of_family = |index: usize| ((index * index + 3 * family * index + family) % 4) as u32;
        (0..shared).map(of_family).chain(tail).collect()
    })
}

fn new_sequence() -> impl Strategy<Value = NewSequence> {
    let stop = (0..10u32, 0..3u32, vec(0..VOCAB_SIZE, 0..2)).prop_map(
        |(max_tokens, min_tokens, stop_token_ids)| StopConditions {
            max_tokens,
            min_tokens,
            stop_token_ids,
        },
    );
    // The byte names the adapter, so it also sets its size.
    let adapter =
        prop::option::of((0..6u8).prop_map(|byte| adapter(byte, usize::from(byte) % 4 + 1)));
    let tenant = (0..3u8).prop_map(|tenant| Arc::from(format!("tenant-{tenant}")));
    let who = (tenant, -1..2i32, prop::option::weighted(0.2, 1..200u64));
    let salt = prop::option::weighted(0.2, Just(Arc::from("salt")));
    // Of adapters that become active somewhere in the prompt.
    let activation = any::<prop::sample::Index>();
    (prompt(), stop, (adapter, activation), salt, prop::bool::weighted(0.8), who).prop_map(
        |(prompt, stop, adapter, cache_salt, uses_cache, (tenant, priority, deadline_ms))| {
            let (adapter, activation) = adapter;
            let byte = adapter.map(|adapter| adapter.hash.0[0]);
            let num_virtual_tokens = if byte == Some(5) { 3 } else { 0 };
            let virtual_tokens = VOCAB_SIZE..VOCAB_SIZE + num_virtual_tokens;
            let prompt: Vec<_> = virtual_tokens.chain(prompt.iter().copied()).collect();
            let is_activated = matches!(byte, Some(3 | 4));
            NewSequence {
                num_virtual_tokens: num_virtual_tokens as usize,
                active_from: if is_activated { activation.index(prompt.len()) } else { 0 },
                stop,
                adapter,
                tenant,
                priority,
                deadline_ms,
                cache_salt,
                uses_cache,
                ..plain(&prompt, 0)
            }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let index = 0..32usize;
    prop_oneof![
        5 => new_sequence().prop_map(Op::Add),
        1 => index.clone().prop_map(Op::Abort),
        10 => Just(Op::Step(Outcome::Computed)),
        1 => (0..6u8, any::<bool>()).prop_map(|(byte, is_pinned)| Op::Pin(byte, is_pinned)),
        1 => (1..40u64).prop_map(Op::Expire),
        1 => Just(Op::Step(Outcome::Failed)),
        1 => index.clone().prop_map(|index| Op::Step(Outcome::OneFailed(index))),
        1 => index.prop_map(|index| Op::Step(Outcome::AbortedMeanwhile(index))),
    ]
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    let eviction = prop_oneof![
        Just(EvictionKind::Gdsf),
        Just(EvictionKind::Lru),
        Just(EvictionKind::Chameleon)
    ];
    let rank_s = prop_oneof![Just(0.0), Just(5e-4), Just(5e-3)];
    let weights = prop_oneof![
        Just(Vec::new()),
        Just(vec![(Arc::from("tenant-0"), 4.0), (Arc::from("tenant-1"), 0.5)])
    ];
    (limits(), prop::bool::weighted(0.8), eviction, rank_s, weights, 0..60u64, 0..6u64, 0..60u64)
        .prop_map(
            |(
                limits,
                caching,
                eviction,
                rank_s,
                tenant_weights,
                quantum_tokens,
                max_bypasses,
                burst_tokens,
            )| {
                SchedulerConfig {
                    enable_prefix_caching: caching,
                    eviction,
                    costs: CostModel { rank_s, ..CostModel::default() },
                    quantum_tokens,
                    max_bypasses,
                    burst_tokens,
                    tenant_weights,
                    ..SchedulerConfig::new(limits)
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..Default::default() })]

    /// Chunks are neither lost nor shared wrongly, every sequence ends once and in time, what is
    /// computed stands on the right prefix and adapter: `World` checks all after every operation.
    #[test]
    fn every_history_is_sound(
        config in config(),
        load_steps in 1..4usize,
        refuse_every in prop_oneof![Just(0), 2..5usize],
        ops in vec(op(), 0..60),
    ) {
        let mut world = World::with_config(config);
        (world.load_steps, world.refuse_every) = (load_steps, refuse_every);
        for op in ops {
            match op {
                Op::Add(new) => drop(world.add(new)),
                Op::Abort(index) => world.abort(index),
                Op::Step(outcome) => world.step(outcome),
                Op::Pin(byte, is_pinned) => world.pin(adapter(byte, 1).hash, is_pinned),
                Op::Expire(ms) => world.expire(ms),
            }
        }
        world.run_to_the_end();
    }

    /// The same history gives the same plans.
    #[test]
    fn plans_are_determined_by_the_history(config in config(), ops in vec(op(), 0..40)) {
        let mut worlds = [World::with_config(config.clone()), World::with_config(config)];
        for op in ops {
            for world in &mut worlds {
                match op.clone() {
                    Op::Add(new) => drop(world.add(new)),
                    Op::Abort(index) => world.abort(index),
                    Op::Step(outcome) => world.step(outcome),
                    Op::Pin(byte, is_pinned) => world.pin(adapter(byte, 1).hash, is_pinned),
                    Op::Expire(ms) => world.expire(ms),
                }
            }
            prop_assert_eq!(&worlds[0].plan, &worlds[1].plan);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// The cache, the size of a step and the company change what is computed when, never what
    /// comes out.
    #[test]
    fn tokens_do_not_depend_on_how_they_are_scheduled(
        config in config(),
        news in vec(new_sequence(), 1..12),
    ) {
        let mut together = World::with_config(config.clone());
        let ids: Vec<_> = news.iter().map(|new| together.add(new.clone())).collect();
        together.run_to_the_end();
        for (id, new) in ids.into_iter().zip(news) {
            let mut alone = World::new(config.limits.clone(), false);
            let alone_id = alone.add(new);
            prop_assert_eq!(id.is_some(), alone_id.is_some());
            let (Some(id), Some(alone_id)) = (id, alone_id) else { continue };
            alone.run_to_the_end();
            prop_assert_eq!(&together.ended[&id].tokens, &alone.ended[&alone_id].tokens);
        }
    }
}
