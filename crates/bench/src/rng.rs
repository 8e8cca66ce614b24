//! The only source of chance: xoshiro256++ seeded by SplitMix64, and the draws made from it.
//!
//! Written out here so that a seed names the same workload for ever, whatever a library changes.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream `purpose` of `seed`. Streams of different purposes are independent, so that a
    /// longer prompt does not change when requests arrive.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a of the purpose, so that equal seeds give different streams.
        let mut word = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let state = std::array::from_fn(|_| {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = word;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..bound`; 0 if `bound` is 0. The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `low..=high`, for `low <= high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below((high.saturating_sub(low) as u64).saturating_add(1)) as usize
    }

    /// Standard normal, by Box and Muller's cosine branch.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma of the given shape and scale (mean `shape * scale`), by Marsaglia and Tsang.
    pub fn gamma(&mut self, shape: f64, scale: f64) -> f64 {
        if shape < 1.0 {
            // Gamma(a) = Gamma(a + 1) * U^(1/a)
            let boost = (1.0 - self.unit()).powf(1.0 / shape);
            return self.gamma(shape + 1.0, scale) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_variance(draws: &[f64]) -> (f64, f64) {
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        (mean, variance)
    }

    #[test]
    fn a_seed_and_purpose_name_one_stream_for_ever() {
        let mut rng = Rng::new(42, "prompts");
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [1_327_649_416_402_247_902, 13_041_938_933_052_398_883, 10_389_646_462_156_805_830]
        );
        assert_ne!(Rng::new(42, "arrivals").next_u64(), first[0]);
        assert_ne!(Rng::new(43, "prompts").next_u64(), first[0]);
    }

    #[test]
    fn between_reaches_both_ends_and_nothing_else() {
        let mut rng = Rng::new(1, "test");
        let mut seen = [0_usize; 7];
        for _ in 0..7_000 {
            seen[rng.between(3, 9) - 3] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
    }

    #[test]
    fn gamma_has_the_mean_and_variance_of_its_parameters() {
        for (shape, scale) in [(0.25, 2.0), (1.0, 0.5), (4.0, 3.0)] {
            let mut rng = Rng::new(7, "gamma");
            let draws: Vec<f64> = (0..100_000).map(|_| rng.gamma(shape, scale)).collect();
            let (mean, variance) = mean_and_variance(&draws);
            assert!((mean / (shape * scale) - 1.0).abs() < 0.03, "mean {mean}");
            assert!((variance / (shape * scale * scale) - 1.0).abs() < 0.08, "var {variance}");
        }
    }
}
