//! Out: numbers that nobody can guess, for request ids and for the seeds of requests without one.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 random bits: a keyed hash whose key the standard library takes from the operating system.
pub(crate) fn random_u64() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(0);
    hasher.finish()
}

/// The seed of choice `index` of a request: choice 0 has the request's own, so that `n` does not
/// change it. The finalizer of SplitMix64.
pub(crate) fn derive_seed(seed: u64, index: usize) -> u64 {
    if index == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{derive_seed, random_u64};

    #[test]
    fn numbers_differ() {
        assert_ne!(random_u64(), random_u64());
    }

    #[test]
    fn the_first_choice_keeps_the_seed_and_the_others_differ() {
        assert_eq!(derive_seed(7, 0), 7);
        let seeds: std::collections::HashSet<_> = (0..16).map(|i| derive_seed(7, i)).collect();
        assert_eq!(seeds.len(), 16);
    }
}
