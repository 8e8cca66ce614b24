//! One row of logits, a *block* at a time: the largest of each block, and how much of the softmax's mass
//! is in it. In: a row. Out: a number a block, with which whoever draws skips most of the row. Knows no
//! tokens and no sampling.
//!
//! `masses[b] = Σ e^((x[i] - max) · scale)` over the block's i

use crate::Isa;
use crate::isa::multiversion;
use crate::lanes::{LANES, exp, max_lanes, sum_lanes};

/// Logits of a block; the last may have fewer.
pub const BLOCK: usize = 64;

/// The largest logit of each block; false if any logit is not finite.
pub fn scan(isa: Isa, logits: &[f32], maxima: &mut Vec<f32>) -> bool {
    maxima.resize(logits.len().div_ceil(BLOCK), 0.0);
    scan_blocks(isa, logits, maxima)
}

/// The mass of each block. No logit is above `max`.
pub fn masses_into(isa: Isa, logits: &[f32], max: f32, scale: f32, masses: &mut Vec<f32>) {
    masses.resize(logits.len().div_ceil(BLOCK), 0.0);
    sum_blocks(isa, logits, max, scale, masses);
}

multiversion! {
    fn scan_blocks(logits: &[f32], maxima: &mut [f32]) -> bool = scan_blocks_body
}
multiversion! {
    fn sum_blocks(logits: &[f32], max: f32, scale: f32, masses: &mut [f32]) = sum_blocks_body
}

#[inline(always)]
fn scan_blocks_body<const FMA: bool>(logits: &[f32], maxima: &mut [f32]) -> bool {
    // x * 0 is 0 for every finite x and NaN for the others.
    let mut zeros = [0.0; LANES];
    let mut rest_is_finite = true;
    for (block, max) in logits.chunks(BLOCK).zip(maxima) {
        let mut largest = [f32::NEG_INFINITY; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for x in lanes {
            for lane in 0..LANES {
                zeros[lane] += x[lane] * 0.0;
                largest[lane] = if x[lane] > largest[lane] { x[lane] } else { largest[lane] };
            }
        }
        *max = rest.iter().copied().fold(max_lanes(largest), f32::max);
        rest_is_finite &= rest.iter().all(|x| x.is_finite());
    }
    rest_is_finite && sum_lanes(zeros) == 0.0
}

#[inline(always)]
fn sum_blocks_body<const FMA: bool>(logits: &[f32], max: f32, scale: f32, masses: &mut [f32]) {
    for (block, mass) in logits.chunks(BLOCK).zip(masses) {
        let mut sums = [0.0; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for x in lanes {
            for lane in 0..LANES {
                sums[lane] += exp::<FMA>((x[lane] - max) * scale);
            }
        }
        *mass = rest.iter().fold(sum_lanes(sums), |sum, x| sum + exp::<FMA>((x - max) * scale));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.3).collect()
    }

    #[test]
    fn blocks_have_their_maxima_and_masses_on_every_instruction_set() {
        for isa in Isa::available() {
            for len in [1, 15, 64, 65, 200, 1024] {
                let logits = row(len);
                let (mut maxima, mut masses) = (vec![9.0; 3], Vec::new());
                assert!(scan(isa, &logits, &mut maxima));
                let max = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                masses_into(isa, &logits, max, 0.5, &mut masses);
                assert_eq!((maxima.len(), masses.len()), (len.div_ceil(64), len.div_ceil(64)));
                for (b, block) in logits.chunks(64).enumerate() {
                    assert_eq!(maxima[b], block.iter().copied().fold(f32::MIN, f32::max));
                    let want: f64 = block.iter().map(|x| (f64::from(x - max) * 0.5).exp()).sum();
                    assert!((f64::from(masses[b]) - want).abs() <= 1e-6 * want + 1e-30, "{isa}");
                }
            }
        }
    }

    #[test]
    fn a_logit_that_is_not_finite_is_found_wherever_it_is() {
        for isa in Isa::available() {
            for at in [0, 63, 64, 90, 99] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut logits = row(100);
                    logits[at] = bad;
                    assert!(!scan(isa, &logits, &mut Vec::new()), "{bad} at {at}, {isa}");
                }
            }
        }
    }

    #[test]
    fn a_logit_that_cannot_be_drawn_has_no_mass() {
        let mut masses = Vec::new();
        let logits = [f32::NEG_INFINITY; 20];
        masses_into(Isa::detect(), &logits, 3.0, 2.0, &mut masses);
        assert_eq!(masses, [0.0]);
    }
}
