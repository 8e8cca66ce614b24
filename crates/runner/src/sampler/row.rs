//! A row of logits, looked at a block at a time. In: the row. Out: its largest, those above a floor, the
//! mass of all. Knows no parameters of sampling.
//!
//! The *order* of tokens here is by logit, the largest first, then by id.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::LazyLock;
use weft_kernels::Isa;
use weft_kernels::logits::{BLOCK, masses_into, scan};
use weft_types::TokenId;

/// A token that could be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    pub(super) logit: f32,
    /// Its share of the mass; 1 for the most likely.
    pub(super) weight: f64,
}

/// Reused buffers of a thread.
#[derive(Default)]
struct Scratch {
    maxima: Vec<f32>,
    masses: Vec<f32>,
    sorted: Vec<f32>,
    kept: Vec<Candidate>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

static ISA: LazyLock<Isa> = LazyLock::new(Isa::detect);

/// See the module.
pub(crate) struct Row<'a> {
    pub(super) logits: &'a [f32],
    max: f32,
    scratch: &'a mut Scratch,
}

/// Calls `look` with the row, and whether all of it is finite.
pub(crate) fn look_at<R>(logits: &[f32], look: impl FnOnce(&mut Row<'_>, bool) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        let is_finite = scan(*ISA, logits, &mut scratch.maxima);
        let max = scratch.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        look(&mut Row { logits, max, scratch }, is_finite)
    })
}

impl Row<'_> {
    /// The first in order.
    pub(super) fn arg_max(&self) -> TokenId {
        let first = |values: &[f32]| values.iter().position(|&x| x == self.max).unwrap_or(0);
        let start = first(&self.scratch.maxima) * BLOCK;
        (start + first(&self.logits[start..])) as TokenId
    }

    /// The largest logit.
    pub(crate) fn max(&self) -> f32 {
        self.max
    }

    /// `Σ e^((x - max) · scale)`, of which the largest logit's share is 1. Also finds the mass of each
    /// block.
    pub(crate) fn mass(&mut self, scale: f32) -> f64 {
        masses_into(*ISA, self.logits, self.max, scale, &mut self.scratch.masses);
        self.scratch.masses.iter().copied().map(f64::from).sum()
    }

    /// The token in which `target` of the mass falls, in the order of ids; after [`Self::mass`] with
    /// the same scale.
    pub(super) fn at_mass(&self, target: f64, scale: f32) -> TokenId {
        let mut left = target;
        // Rounding can leave a little: the last that could be drawn.
        let mut last = 0;
        for (block, &mass) in self.scratch.masses.iter().enumerate() {
            let mass = f64::from(mass);
            if mass <= 0.0 {
                continue;
            }
            last = block;
            if left < mass {
                break;
            }
            left -= mass;
        }
        let start = last * BLOCK;
        let block = &self.logits[start..(start + BLOCK).min(self.logits.len())];
        let mut found = None;
        for (token, &logit) in (start..).zip(block) {
            let weight = weight(logit, self.max, scale);
            if weight > 0.0 {
                found = Some(token);
                left -= weight;
            }
            if left < 0.0 {
                break;
            }
        }
        found.map_or_else(|| self.arg_max(), |token| token as TokenId)
    }

    /// Keeps those of at least `floor`, in no order, and returns their mass. Blocks below it are skipped,
    /// and so is what can never be drawn.
    pub(super) fn keep_at_least(&mut self, floor: f32, scale: f32) -> f64 {
        let floor = floor.max(f32::MIN);
        let Scratch { maxima, kept, .. } = &mut *self.scratch;
        kept.clear();
        for (block, logits) in self.logits.chunks(BLOCK).enumerate() {
            if maxima[block] >= floor {
                let tokens = (block * BLOCK) as TokenId..;
                let found = tokens.zip(logits).filter(|&(_, &logit)| logit >= floor);
                kept.extend(found.map(|(token, &logit)| Candidate {
                    token,
                    logit,
                    weight: weight(logit, self.max, scale),
                }));
            }
        }
        mass_of(kept)
    }

    /// Keeps the first `k` in order, at least one, in no order, and returns their mass.
    pub(super) fn keep_first(&mut self, k: usize, scale: f32) -> f64 {
        let Scratch { maxima, sorted, .. } = &mut *self.scratch;
        // The k blocks with the largest maxima have at least k logits that reach the least of these.
        let floor = if k <= maxima.len() {
            sorted.clone_from(maxima);
            *sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let mass = self.keep_at_least(floor, scale);
        let kept = self.kept();
        if k >= kept.len() {
            return mass;
        }
        kept.select_nth_unstable_by(k - 1, in_order);
        kept.truncate(k);
        mass_of(kept)
    }

    /// What was kept last.
    pub(super) fn kept(&mut self) -> &mut Vec<Candidate> {
        &mut self.scratch.kept
    }

    /// The first `k` in order, at least one, sorted.
    pub(crate) fn sorted_first(&mut self, k: usize) -> impl Iterator<Item = TokenId> {
        self.keep_first(k, 1.0);
        self.kept().sort_unstable_by(in_order);
        self.kept().iter().map(|candidate| candidate.token)
    }
}

fn weight(logit: f32, max: f32, scale: f32) -> f64 {
    f64::from(((logit - max) * scale).exp())
}

pub(super) fn mass_of(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// See the module.
fn in_order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Where candidates are fewer, they are sorted.
const FEW: usize = 32;
/// Ranges of logits that candidates are divided into.
const NUM_RANGES: usize = 256;

/// How many candidates, in order, it takes until their mass `is_enough`; all, if it never is. They come
/// to the beginning of `candidates`, the last of them last. Time is linear: candidates are divided by
/// ranges of logits, and only that in which the end lies is divided again or sorted.
pub(super) fn prefix_until(candidates: &mut [Candidate], is_enough: impl Fn(f64) -> bool) -> usize {
    let (mut start, mut end) = (0, candidates.len());
    let mut mass_before = 0.0;
    while end - start > FEW {
        let part = &mut candidates[start..end];
        let logits = || part.iter().map(|candidate| candidate.logit);
        let (max, min) = (logits().fold(f32::MIN, f32::max), logits().fold(f32::MAX, f32::min));
        if max <= min {
            break;
        }
        // Each rounds to the same side or not at all, so no range has a logit above one before it.
        let per_logit = (NUM_RANGES as f32 / (max - min)).min(f32::MAX);
        let range = |candidate: &Candidate| {
            (((max - candidate.logit) * per_logit) as usize).min(NUM_RANGES - 1)
        };
        let mut masses = [0.0; NUM_RANGES];
        let mut last = 0;
        for candidate in &*part {
            let range = range(candidate);
            masses[range] += candidate.weight;
            last = last.max(range);
        }
        if last == 0 {
            // Too close together, or too far apart, to be divided.
            break;
        }
        let mut chosen = 0;
        while chosen < last && !is_enough(mass_before + masses[chosen]) {
            mass_before += masses[chosen];
            chosen += 1;
        }
        // Those of earlier ranges, those of the chosen, those of later ones.
        let (mut num_earlier, mut next, mut first_later) = (0, 0, part.len());
        while next < first_later {
            match range(&part[next]).cmp(&chosen) {
                Ordering::Less => {
                    part.swap(num_earlier, next);
                    (num_earlier, next) = (num_earlier + 1, next + 1);
                }
                Ordering::Equal => next += 1,
                Ordering::Greater => {
                    first_later -= 1;
                    part.swap(next, first_later);
                }
            }
        }
        end = start + first_later;
        start += num_earlier;
    }
    candidates[start..end].sort_unstable_by(in_order);
    for (index, candidate) in (start..end).zip(&candidates[start..end]) {
        mass_before += candidate.weight;
        if is_enough(mass_before) {
            return index + 1;
        }
    }
    end
}
