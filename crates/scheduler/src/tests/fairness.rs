//! Fairness among tenants and among adapters: bounds that hold over any history.

use super::world::{Outcome, World, adapter, plain};
use crate::{NewSequence, SchedulerConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use weft_types::{ExecutorLimits, SeqId};

const LIMITS: ExecutorLimits = ExecutorLimits {
    block_size: 4,
    num_blocks: 32,
    chunk_bytes: 64,
    max_model_len: 40,
    max_num_seqs: 4,
    max_num_batched_tokens: 12,
};

fn of_tenant(name: &str, len: usize, max_tokens: u32, hash: Option<u8>) -> NewSequence {
    let prompt: Vec<u32> = (0..len as u32).map(|index| index % 3).collect();
    NewSequence {
        tenant: Arc::from(name),
        adapter: hash.map(|byte| adapter(byte, usize::from(byte) % 3 + 1)),
        // Prompts are alike: what one tenant computes must not be given to another for free.
        cache_salt: Some(Arc::from(name)),
        ..plain(&prompt, max_tokens)
    }
}

fn counter(world: &World, name: &str) -> f64 {
    let mut counters = world.scheduler.tenant_counters();
    counters.find(|(tenant, _)| &***tenant == name).map_or(0.0, |(_, counter)| counter)
}

/// `max(w_p · longest prompt, w_q · tokens of a full batch)`: what VTC's counters may differ by.
fn vtc_bound() -> f64 {
    let batch = LIMITS.num_blocks * LIMITS.block_size;
    (LIMITS.max_model_len).max(2 * batch) as f64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    /// VTC, theorem 4.4: two backlogged tenants of equal weight get, over any interval, service
    /// that differs by at most twice the bound; here plus the quantum, while adapters
    /// are loaded, and the credit of one that was idle.
    #[test]
    fn backlogged_tenants_get_the_same(
        shapes in vec((0..2usize, 1..20usize, 1..16u32, prop::option::of(0..8u8)), 40..80),
        quantum_tokens in 0..100u64,
        burst_tokens in 0..100u64,
        load_steps in 1..4usize,
    ) {
        let config = SchedulerConfig { quantum_tokens, burst_tokens, ..SchedulerConfig::new(LIMITS) };
        let mut world = World::with_config(config);
        world.load_steps = load_steps;
        let names = ["a", "b"];
        let mut waiting: HashMap<SeqId, usize> = HashMap::new();
        let mut next = [0, 0];
        let mut differences = Vec::new();
        for _ in 0..120 {
            // Both always have four that wait.
            for tenant in 0..2 {
                let of_this = waiting.values().filter(|&&owner| owner == tenant).count();
                for _ in of_this..4 {
                    let (_, len, max_tokens, hash) = shapes[next[tenant] % shapes.len()];
                    // The other tenant asks for longer prompts and answers.
                    let new = of_tenant(names[tenant], len + 9 * tenant, max_tokens, hash);
                    next[tenant] += 1 + tenant;
                    if let Some(id) = world.add(new) {
                        waiting.insert(id, tenant);
                    }
                }
            }
            world.step(Outcome::Computed);
            let running: HashSet<SeqId> = world.scheduler.running().collect();
            waiting.retain(|id, _| !running.contains(id) && world.live.contains_key(id));
            differences.push(counter(&world, "a") - counter(&world, "b"));
        }
        let bound = vtc_bound() + (quantum_tokens + burst_tokens) as f64;
        let most = differences.iter().copied().fold(f64::MIN, f64::max);
        let least = differences.iter().copied().fold(f64::MAX, f64::min);
        prop_assert!(most <= bound && least >= -bound, "{least} to {most}, not {bound}");
        prop_assert!(most - least <= 2.0 * bound);
    }

    /// Whatever its adapter, a sequence is overtaken by a bounded number of those that came later.
    #[test]
    fn no_adapter_starves(
        hashes in vec(prop::option::of(0..12u8), 20..60),
        lens in vec((1..24usize, 1..10u32), 20..60),
        max_bypasses in 0..8u64,
        load_steps in 1..5usize,
    ) {
        let config = SchedulerConfig { max_bypasses, ..SchedulerConfig::new(LIMITS) };
        let mut world = World::with_config(config);
        world.load_steps = load_steps;
        let mut overtaken: HashMap<SeqId, u64> = HashMap::new();
        for (index, &hash) in hashes.iter().enumerate() {
            let (len, max_tokens) = lens[index % lens.len()];
            if let Some(id) = world.add(of_tenant("", len, max_tokens, hash)) {
                overtaken.insert(id, 0);
            }
        }
        let mut steps = 0;
        while !world.live.is_empty() {
            world.step(Outcome::Computed);
            steps += 1;
            prop_assert!(steps < 20_000);
            let ran: Vec<SeqId> =
                world.scheduler.running().chain(world.ended.keys().copied()).collect();
            for id in ran {
                if overtaken.remove(&id).is_some() {
                    for (_, count) in overtaken.iter_mut().filter(|(other, _)| **other < id) {
                        *count += 1;
                    }
                }
            }
            // In the step in which it is passed over first, a whole batch may overtake it.
            let bound = max_bypasses + LIMITS.max_num_seqs as u64;
            prop_assert!(overtaken.values().all(|&count| count <= bound), "{overtaken:?}");
        }
    }
}

#[test]
fn a_tenant_that_floods_does_not_hold_up_another() {
    let mut world = World::with_config(SchedulerConfig::new(LIMITS));
    for _ in 0..40 {
        world.add(of_tenant("flood", 8, 8, None)).unwrap();
    }
    world.step(Outcome::Computed);
    let small = world.add(of_tenant("small", 8, 2, None)).unwrap();
    let mut num_ended = 0;
    while world.live.contains_key(&small) {
        world.step(Outcome::Computed);
        num_ended = world.ended.len();
    }
    assert!(num_ended <= 2 * LIMITS.max_num_seqs, "{num_ended} of the flood ended before it");
}

#[test]
fn a_tenant_that_is_behind_takes_its_share_of_the_places_at_once() {
    let mut world = World::with_config(SchedulerConfig::new(LIMITS));
    for _ in 0..8 {
        world.add(of_tenant("flood", 4, 16, None)).unwrap();
    }
    for _ in 0..4 {
        world.step(Outcome::Computed);
    }
    let num_running = |world: &World, name: &str| {
        let of_tenant = |id: &SeqId| &*world.live[id].new.tenant == name;
        world.scheduler.running().filter(of_tenant).count()
    };
    assert_eq!(num_running(&world, "flood"), 4);
    for expected in [1, 2, 2] {
        world.add(of_tenant("small", 4, 16, None)).unwrap();
        world.step(Outcome::Computed);
        assert_eq!(num_running(&world, "small"), expected);
        assert_eq!(num_running(&world, "flood"), 4 - expected);
    }
    assert_eq!(world.scheduler.counters().num_preemptions, 2);
    world.run_to_the_end();
}

#[test]
fn a_tenant_that_is_behind_is_computed_before_prompts_that_have_begun() {
    let mut world = World::with_config(SchedulerConfig::new(LIMITS));
    world.add(of_tenant("flood", 4, 16, None)).unwrap();
    world.step(Outcome::Computed);
    world.add(of_tenant("flood", 36, 4, None)).unwrap();
    world.step(Outcome::Computed);
    world.add(of_tenant("small", 8, 2, None)).unwrap();
    world.step(Outcome::Computed);
    let lens: Vec<usize> = world.plan.sequences.iter().map(|chunk| chunk.tokens.len()).collect();
    assert_eq!(lens, [1, 3, 8], "a decode, the rest for the long prompt, all of the small one");
    world.run_to_the_end();
}

#[test]
fn a_tenant_of_twice_the_weight_gets_twice_as_much() {
    let tenant_weights = vec![(Arc::from("heavy"), 2.0)];
    let mut world =
        World::with_config(SchedulerConfig { tenant_weights, ..SchedulerConfig::new(LIMITS) });
    for _ in 0..60 {
        world.add(of_tenant("heavy", 6, 6, None)).unwrap();
        world.add(of_tenant("light", 6, 6, None)).unwrap();
    }
    for _ in 0..120 {
        world.step(Outcome::Computed);
    }
    let ended_of = |name: &str| {
        let clients = world.ended.values();
        clients.filter(|client| &*client.new.tenant == name).count() as f64
    };
    let ratio = ended_of("heavy") / ended_of("light");
    assert!((1.6..2.5).contains(&ratio), "{ratio}");
}

#[test]
fn a_returning_tenant_has_saved_up_no_more_than_its_credit() {
    let config = SchedulerConfig { burst_tokens: 50, ..SchedulerConfig::new(LIMITS) };
    let mut world = World::with_config(config);
    world.add(of_tenant("idle", 4, 1, None)).unwrap();
    world.run_to_the_end();
    for _ in 0..90 {
        world.add(of_tenant("busy", 8, 8, None)).unwrap();
    }
    for _ in 0..40 {
        world.step(Outcome::Computed);
    }
    for _ in 0..30 {
        world.add(of_tenant("idle", 8, 8, None)).unwrap();
    }
    let before = counter(&world, "busy");
    assert!((counter(&world, "idle") - before).abs() <= vtc_bound() + 50.0);
    for _ in 0..60 {
        world.step(Outcome::Computed);
    }
    assert!(counter(&world, "busy") > before, "the busy one goes on being served");
}

#[test]
fn lower_priority_numbers_run_first_whoever_asks() {
    let mut world =
        World::with_config(SchedulerConfig::new(ExecutorLimits { max_num_seqs: 1, ..LIMITS }));
    let first = world.add(of_tenant("a", 4, 4, None)).unwrap();
    world.step(Outcome::Computed);
    let late = world.add(NewSequence { priority: 5, ..of_tenant("b", 4, 2, None) }).unwrap();
    let urgent = world.add(NewSequence { priority: -1, ..of_tenant("a", 4, 2, None) }).unwrap();
    while world.live.contains_key(&urgent) {
        world.step(Outcome::Computed);
    }
    assert!(world.ended.contains_key(&first) && world.live.contains_key(&late));
}
