//! Which rows of a batch share an adapter, as Punica's workloads have it. Pure, and without chance.

use std::fmt;

/// Exponent of the skewed workload.
const ZIPF: f64 = 1.5;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// All rows have one adapter.
    Identical,
    /// Each row has its own.
    Distinct,
    /// ⌈√n⌉ adapters share n rows evenly.
    Uniform,
    /// Adapter i has rows in proportion to 1 / i^1.5.
    Zipf,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Identical, Self::Distinct, Self::Uniform, Self::Zipf];

    /// Rows of each adapter, the most popular first; none is 0, and together they are `num_rows`.
    #[must_use]
    pub fn segments(self, num_rows: usize) -> Vec<usize> {
        let num_adapters = match self {
            Self::Identical => num_rows.min(1),
            Self::Distinct | Self::Zipf => num_rows,
            Self::Uniform => (num_rows as f64).sqrt().ceil() as usize,
        };
        let weight = |index: usize| {
            if self == Self::Zipf { ((index + 1) as f64).powf(-ZIPF) } else { 1.0 }
        };
        let total: f64 = (0..num_adapters).map(weight).sum();
        // Rows lie evenly in the distribution, so that chance is no part of a measurement.
        let (mut segments, mut row, mut so_far) = (Vec::new(), 0, 0.0);
        for index in 0..num_adapters {
            so_far += weight(index) / total;
            let is_last = index + 1 == num_adapters;
            let end =
                if is_last { num_rows } else { (so_far * num_rows as f64 - 0.5).ceil() as usize };
            if end > row {
                segments.push(end - row);
                row = end;
            }
        }
        segments
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identical => "identical",
            Self::Distinct => "distinct",
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_those_of_their_names() {
        assert_eq!(Workload::Identical.segments(32), [32]);
        assert_eq!(Workload::Distinct.segments(8), [1; 8]);
        assert_eq!(Workload::Uniform.segments(32), [5, 6, 5, 5, 6, 5]);
        let zipf = Workload::Zipf.segments(32);
        assert!(zipf[0] >= 12 && zipf.len() > 5 && zipf.is_sorted_by(|a, b| a >= b), "{zipf:?}");
    }

    #[test]
    fn every_row_has_an_adapter_and_every_adapter_a_row() {
        for workload in Workload::ALL {
            for num_rows in 0..70 {
                let segments = workload.segments(num_rows);
                assert_eq!(segments.iter().sum::<usize>(), num_rows, "{workload}");
                assert!(segments.iter().all(|&rows| rows > 0), "{workload} {num_rows}");
            }
        }
    }
}
