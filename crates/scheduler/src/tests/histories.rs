//! Random histories of arrivals, cancellations, steps and failures, in caches that are too small.

use super::world::{Outcome, VOCAB_SIZE, World, plain};
use crate::NewSequence;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;
use weft_types::{ContentHash, ExecutorLimits, StopConditions, TokenId};

#[derive(Clone, Debug)]
enum Op {
    Add(NewSequence),
    Abort(usize),
    Step(Outcome),
}

fn limits() -> impl Strategy<Value = ExecutorLimits> {
    (1..=4usize, 3..=24usize, 8..=40usize, 1..=6usize, 1..=16usize).prop_map(
        |(block_size, num_blocks, max_model_len, max_num_seqs, max_num_batched_tokens)| {
            ExecutorLimits {
                block_size,
                num_blocks,
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
    let adapter = prop::option::of((0..2u8).prop_map(|byte| ContentHash([byte; 32])));
    let salt = prop::option::weighted(0.2, Just(Arc::from("salt")));
    (prompt(), stop, adapter, salt, prop::bool::weighted(0.8)).prop_map(
        |(prompt, stop, adapter, cache_salt, uses_cache)| NewSequence {
            stop,
            adapter,
            cache_salt,
            uses_cache,
            ..plain(&prompt, 0)
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let index = 0..32usize;
    prop_oneof![
        5 => new_sequence().prop_map(Op::Add),
        1 => index.clone().prop_map(Op::Abort),
        10 => Just(Op::Step(Outcome::Computed)),
        1 => Just(Op::Step(Outcome::Failed)),
        1 => index.clone().prop_map(|index| Op::Step(Outcome::OneFailed(index))),
        1 => index.prop_map(|index| Op::Step(Outcome::AbortedMeanwhile(index))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    /// Blocks are neither lost nor shared wrongly, every sequence ends once and in time, and what
    /// is computed stands on the right prefix: `World` checks all of it after every operation.
    #[test]
    fn every_history_is_sound(
        limits in limits(),
        enable_prefix_caching in prop::bool::weighted(0.8),
        ops in vec(op(), 0..80),
    ) {
        let mut world = World::new(limits, enable_prefix_caching);
        for op in ops {
            match op {
                Op::Add(new) => drop(world.add(new)),
                Op::Abort(index) => world.abort(index),
                Op::Step(outcome) => world.step(outcome),
            }
        }
        world.run_to_the_end();
    }

    /// The cache, the size of a step and the company change what is computed when, never what
    /// comes out.
    #[test]
    fn tokens_do_not_depend_on_how_they_are_scheduled(
        limits in limits(),
        enable_prefix_caching: bool,
        news in vec(new_sequence(), 1..12),
    ) {
        let mut together = World::new(limits.clone(), enable_prefix_caching);
        let ids: Vec<_> = news.iter().map(|new| together.add(new.clone())).collect();
        together.run_to_the_end();
        for (id, new) in ids.into_iter().zip(news) {
            let mut alone = World::new(limits.clone(), false);
            let alone_id = alone.add(new);
            prop_assert_eq!(id.is_some(), alone_id.is_some());
            let (Some(id), Some(alone_id)) = (id, alone_id) else { continue };
            alone.run_to_the_end();
            prop_assert_eq!(&together.ended[&id].tokens, &alone.ended[&alone_id].tokens);
        }
    }
}
