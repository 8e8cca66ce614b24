//! Random matrices as PyTorch draws them on a CPU, bit for bit: for adapters that save a seed and not the
//! matrices. A generator that is seeded alike is MT19937 (Matsumoto and Nishimura 1998).

/// Words of the state.
const N: usize = 624;

/// How far ahead the twist looks.
const M: usize = 397;

/// The 32-bit Mersenne twister.
pub(super) struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// Of the seed, the low 32 bits count.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = [0; N];
        state[0] = (seed & u64::from(u32::MAX)) as u32;
        for i in 1..N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// 32 random bits.
    pub(super) fn draw(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }
}

/// `Tensor.uniform_(-bound, bound)` of a float32 `[rows, cols]`, with Kaiming's bound for `cols` inputs
/// and the gain of a rectifier.
pub(super) fn kaiming_uniform(random: &mut Mt19937, rows: usize, cols: usize) -> Vec<f32> {
    let deviation = 2.0_f64.sqrt() / (cols as f64).sqrt();
    let bound = 3.0_f64.sqrt() * deviation;
    let (from, to) = (-bound as f32, bound as f32);
    // Torch has 24 random bits, and does the arithmetic in double precision.
    let draw = |random: &mut Mt19937| {
        let fraction = f64::from(random.draw() & 0x00ff_ffff) / f64::from(1 << 24);
        (fraction * f64::from(to - from) + f64::from(from)) as f32
    };
    (0..rows * cols).map(|_| draw(random)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_gives_the_numbers_of_its_authors() {
        // The ten-thousandth number of the default seed, which the C++ standard states.
        let mut random = Mt19937::new(5489);
        let last = (0..10_000).map(|_| random.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn seeds_are_cut_to_32_bits() {
        assert_eq!(Mt19937::new(7 + (1 << 32)).draw(), Mt19937::new(7).draw());
        assert_ne!(Mt19937::new(8).draw(), Mt19937::new(7).draw());
    }
}
