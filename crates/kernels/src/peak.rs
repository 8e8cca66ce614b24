//! What this machine can do at best, measured: the roofs of a roofline (Williams, Waterman & Patterson
//! 2009). In: threads. Out: bytes and operations per second. No kernel uses it.

use crate::Isa;
use crate::pool::ThreadPool;
use crate::vector::prefetch;
use std::hint::black_box;
use std::time::Instant;

/// Bytes per second that all threads together read from `buffer`, which no cache should hold: the best
/// of `repeats`.
#[must_use]
pub fn read_bytes_per_s(pool: &ThreadPool, buffer: &[u64], repeats: usize) -> f64 {
    /// Numbers of a claim: 256 KiB.
    const CLAIM: usize = 1 << 15;
    /// Numbers that are asked for before they are read: what the processor fetches by itself is less than
    /// memory gives.
    const AHEAD: usize = 512;
    let claims: Vec<&[u64]> = buffer.chunks(CLAIM).collect();
    let best = best_of(repeats, || {
        pool.run(claims.len(), 1, |range| {
            for claim in &claims[range] {
                // Eight sums, so that additions do not wait for each other: a cache line.
                let mut sums = [0u64; 8];
                for (line, numbers) in claim.as_chunks::<8>().0.iter().enumerate() {
                    prefetch(claim, 8 * line + AHEAD);
                    for (sum, number) in sums.iter_mut().zip(numbers) {
                        *sum = sum.wrapping_add(*number);
                    }
                }
                black_box(sums);
            }
        });
    });
    size_of_val(buffer) as f64 / best
}

/// Multiplications and additions of 8-bit integers per second on all threads, each counted as one
/// operation, with the instructions of `isa`: the best of `repeats`. `None` where there are no
/// instructions of our kernels to measure.
#[must_use]
pub fn int8_ops_per_s(pool: &ThreadPool, isa: Isa, repeats: usize) -> Option<f64> {
    const ROUNDS: usize = 100_000;
    let ops_per_round = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 2 * x86::VNNI_MULTIPLIES,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => 2 * x86::TILE_MULTIPLIES,
        _ => 0,
    };
    if ops_per_round == 0 {
        return None;
    }
    let num_threads = pool.num_threads();
    let best = best_of(repeats, || {
        // Claims of one: a thread that came late takes what is left.
        pool.run(4 * num_threads, 1, |range| {
            for _ in range {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: an `Isa` is only made where the machine has it.
                    Isa::Avx512 => unsafe { x86::multiply_vectors(ROUNDS) },
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx => crate::matmul::amx::multiply_tiles(ROUNDS),
                    _ => {}
                }
            }
        });
    });
    Some((4 * num_threads * ROUNDS * ops_per_round) as f64 / best)
}

/// Seconds of the fastest run.
fn best_of(repeats: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..repeats.max(1)).map(|_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    use std::hint::black_box;

    /// Sums that do not wait for each other: more than an instruction takes cycles on two ports.
    const SUMS: usize = 16;
    /// Of one round of [`multiply_vectors`].
    pub(super) const VNNI_MULTIPLIES: usize = 64 * SUMS;
    /// Of one round of [`crate::matmul::amx::multiply_tiles`]: four products of 16 x 64 by 64 x 16.
    pub(super) const TILE_MULTIPLIES: usize = 4 * 16 * 16 * 64;

    /// # Safety
    /// The machine has AVX-512 F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply_vectors(rounds: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(2)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_roof_is_a_number() {
        let pool = ThreadPool::new(2);
        assert!(read_bytes_per_s(&pool, &vec![1; 1 << 16], 1) > 0.0);
        for isa in Isa::available() {
            let is_measured = matches!(isa, Isa::Avx512 | Isa::Amx);
            let rate = int8_ops_per_s(&pool, isa, 1);
            assert_eq!(rate.is_some_and(|rate| rate > 0.0), is_measured, "{isa}");
        }
    }
}
