//! Element types of GGUF tensors: their numbers, names and block sizes. No arithmetic.

use std::fmt;

/// How a tensor's elements are stored. Quantized types store blocks along the contiguous direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// A type that Weft cannot multiply, by its number in the file.
    Other(u32),
}

/// Number in the file, name, elements of a block, bytes of a block.
type Row = (u32, &'static str, usize, usize);

const SUPPORTED: [(GgmlType, Row); 11] = [
    (GgmlType::F32, (0, "F32", 1, 4)),
    (GgmlType::F16, (1, "F16", 1, 2)),
    (GgmlType::BF16, (30, "BF16", 1, 2)),
    (GgmlType::Q4_0, (2, "Q4_0", 32, 18)),
    (GgmlType::Q4_1, (3, "Q4_1", 32, 20)),
    (GgmlType::Q5_0, (6, "Q5_0", 32, 22)),
    (GgmlType::Q5_1, (7, "Q5_1", 32, 24)),
    (GgmlType::Q8_0, (8, "Q8_0", 32, 34)),
    (GgmlType::Q4K, (12, "Q4_K", 256, 144)),
    (GgmlType::Q5K, (13, "Q5_K", 256, 176)),
    (GgmlType::Q6K, (14, "Q6_K", 256, 210)),
];

/// Known by name and size, so that an error can name them and the table can still be checked.
const OTHERS: [Row; 20] = [
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
];

impl GgmlType {
    /// The type with this number in the file; unknown numbers are kept as [`GgmlType::Other`].
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        SUPPORTED
            .iter()
            .find(|(_, row)| row.0 == number)
            .map_or(Self::Other(number), |(dtype, _)| *dtype)
    }

    fn row(self) -> Option<&'static Row> {
        match self {
            Self::Other(number) => OTHERS.iter().find(|row| row.0 == number),
            _ => SUPPORTED.iter().find(|(dtype, _)| *dtype == self).map(|(_, row)| row),
        }
    }

    /// Its number in the file.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            // Every other one has a row.
            _ => self.row().map_or(0, |row| row.0),
        }
    }

    /// Whether Weft can read tensors of this type.
    #[must_use]
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// Elements of one block; `None` for a number that ggml does not define.
    #[must_use]
    pub fn block_len(self) -> Option<usize> {
        self.row().map(|row| row.2)
    }

    /// Bytes of one block; `None` for a number that ggml does not define.
    #[must_use]
    pub fn block_bytes(self) -> Option<usize> {
        self.row().map(|row| row.3)
    }

    /// The supported types for an error message: "F32, F16, …".
    #[must_use]
    pub fn supported_names() -> String {
        SUPPORTED.map(|(_, row)| row.1).join(", ")
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.row(), self) {
            (Some(row), _) => f.write_str(row.1),
            (None, Self::Other(number)) => write!(f, "number {number}"),
            (None, known) => write!(f, "{known:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_number_maps_back_to_its_type() {
        for (dtype, row) in SUPPORTED {
            assert_eq!(GgmlType::from_number(row.0), dtype);
            assert_eq!(dtype.to_string(), row.1);
        }
    }

    #[test]
    fn unsupported_types_are_named_in_messages() {
        assert_eq!(GgmlType::from_number(23).to_string(), "IQ4_XS");
        assert_eq!(GgmlType::from_number(23).block_bytes(), Some(136));
        assert_eq!(GgmlType::from_number(999).to_string(), "number 999");
        assert_eq!(GgmlType::from_number(999).block_len(), None);
        assert!(!GgmlType::from_number(23).is_supported());
    }
}
