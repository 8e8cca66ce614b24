//! Whole plans, step by step. A line is a step: each part as `name start..end`, `!` where a token
//! is drawn, and its blocks.

use super::world::{Outcome, World, plain};
use expect_test::{Expect, expect};
use std::fmt::Write;
use weft_types::ExecutorLimits;

/// Runs a script of `+PROMPT_LEN/MAX_TOKENS` (sequences are named a, b, … as they come) and
/// `step`.
#[track_caller]
fn check(limits: ExecutorLimits, script: &str, expected: &Expect) {
    let mut world = World::new(limits, true);
    let mut shown = String::new();
    for word in script.split_whitespace() {
        if let Some((len, max_tokens)) = word.strip_prefix('+').and_then(|w| w.split_once('/')) {
            let len: u32 = len.parse().unwrap();
            let prompt: Vec<u32> = (0..len).map(|index| index % 4).collect();
            world.add(plain(&prompt, max_tokens.parse().unwrap())).unwrap();
            continue;
        }
        assert_eq!(word, "step");
        world.step(Outcome::Computed);
        let parts = world.plan.sequences.iter().map(|chunk| {
            let name = (b'a' + chunk.seq.0 as u8) as char;
            let (start, end) = (chunk.start, chunk.start + chunk.tokens.len());
            let draws = if chunk.sample { "!" } else { "" };
            let blocks = &world.plan.block_tables[chunk.blocks.clone()];
            let blocks: Vec<String> = blocks.iter().map(|block| block.0.to_string()).collect();
            format!("{name} {start}..{end}{draws} [{}]", blocks.join(" "))
        });
        writeln!(shown, "{}", parts.collect::<Vec<_>>().join("  ")).unwrap();
    }
    expected.assert_eq(&shown);
}

const LIMITS: ExecutorLimits = ExecutorLimits {
    block_size: 4,
    num_blocks: 16,
    chunk_bytes: 64,
    max_model_len: 64,
    max_num_seqs: 4,
    max_num_batched_tokens: 8,
};

#[test]
fn a_long_prefill_is_cut_and_mixed_with_decodes() {
    check(
        LIMITS,
        "+3/4 step +18/2 step step step step",
        &expect![[r#"
        a 0..3! [0]
        a 3..4! [0]  b 0..7 [1 2]
        a 4..5! [0 3]  b 7..14 [1 2 4 5]
        a 5..6! [0 3]  b 14..18! [1 2 4 5 6]
        b 18..19! [1 2 4 5 6]
    "#]],
    );
}

#[test]
fn a_second_equal_prompt_reuses_the_blocks_of_the_first() {
    check(
        LIMITS,
        "+9/3 step step +9/3 step step",
        &expect![[r#"
        a 0..8 [0 1]
        a 8..9! [0 1 2]
        a 9..10! [0 1 2]  b 8..9! [0 1 3]
        a 10..11! [0 1 2]  b 9..10! [0 1 3]
    "#]],
    );
}

#[test]
fn the_latest_arrival_gives_way_and_comes_back() {
    let limits = ExecutorLimits { num_blocks: 4, ..LIMITS };
    check(
        limits,
        "+3/9 +2/9 step step step step step step step step step step step step step",
        &expect![[r#"
            a 0..3! [0]  b 0..2! [1]
            a 3..4! [0]  b 2..3! [1]
            a 4..5! [0 2]  b 3..4! [1]
            a 5..6! [0 2]  b 4..5! [1 3]
            a 6..7! [0 2]  b 5..6! [1 3]
            a 7..8! [0 2]  b 6..7! [1 3]
            a 8..9! [0 2 3]
            a 9..10! [0 2 3]
            a 10..11! [0 2 3]
            b 4..8! [1 3]
            b 8..9! [1 3 2]
            b 9..10! [1 3 2]

        "#]],
    );
}

#[test]
fn nobody_overtakes_a_sequence_that_waits_for_room() {
    let limits = ExecutorLimits { num_blocks: 5, ..LIMITS };
    check(
        limits,
        "+8/4 step step +20/1 +1/1 step step step step step step",
        &expect![[r#"
        a 0..8! [0 1]
        a 8..9! [0 1 2]
        a 9..10! [0 1 2]
        a 10..11! [0 1 2]
        b 8..16 [0 1 2 3]
        b 16..20! [0 1 2 3 4]
        c 0..1! [4]

    "#]],
    );
}
