//! Angular frequencies of the rotary embedding.

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series.
    pub theta: f32,
    /// Values of a head that are rotated: `head_dim` or less.
    pub rotary_dim: usize,
    /// How the series is stretched to longer contexts.
    pub scaling: RopeScaling,
}

/// Stretching of the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high` are kept.
        high_freq_factor: f32,
        /// The context of the pre-training.
        original_context: f32,
    },
    /// Each frequency divided by its own number: GGUF's `rope_freqs.weight`.
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// One frequency for each pair of rotated values.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let half = self.rotary_dim / 2;
        (0..half)
            .map(|i| {
                let frequency = 1.0 / self.theta.powf((2 * i) as f32 / self.rotary_dim as f32);
                self.scaling.apply(frequency, i)
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f32, index: usize) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Divisors(divisors) => frequency / divisors[index],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = std::f32::consts::TAU / frequency;
                if wavelength < original_context / high_freq_factor {
                    frequency
                } else if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
