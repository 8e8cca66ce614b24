//! Four-bit codes that stand for the numbers of a table. In: a code or a number. Out: the other. Knows
//! no matrix and no scale.

use serde::{Deserialize, Serialize};

/// A table of sixteen numbers in [-1, 1]. What a weight is: the number times its block's absmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codebook {
    /// Quantiles of a normal distribution (QLoRA, Dettmers et al. 2023).
    Nf4,
    /// A sign, two bits of exponent, one of mantissa; the largest is 1.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    -0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

impl Codebook {
    /// What each code stands for.
    #[must_use]
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The code of the nearest number, of two as near the lower code; 0 for a NaN.
    #[must_use]
    pub fn nearest(self, value: f32) -> u8 {
        let mut best = (f32::INFINITY, 0);
        for (code, number) in self.values().iter().enumerate() {
            let distance = (value - number).abs();
            if distance < best.0 {
                best = (distance, code);
            }
        }
        best.1 as u8
    }
}

impl std::fmt::Display for Codebook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nf4 => "NF4",
            Self::Fp4 => "FP4",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_the_nearest_to_its_own_number() {
        for book in [Codebook::Nf4, Codebook::Fp4] {
            for (code, &number) in book.values().iter().enumerate() {
                // FP4 has a zero of either sign.
                let want = if number == 0.0 && book == Codebook::Fp4 { 0 } else { code };
                assert_eq!(usize::from(book.nearest(number)), want, "{book}");
            }
        }
        assert_eq!(Codebook::Nf4.nearest(f32::NAN), 0);
        assert_eq!(Codebook::Nf4.nearest(0.04), 8);
    }
}
