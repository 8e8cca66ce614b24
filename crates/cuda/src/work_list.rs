//! Which rows of a step get which adapter, as the LoRA kernels read it.
//!
//! In: segments, runs of rows with one adapter. Out: two lists of pieces: short segments for the
//! decode kernels, long ones for tensor cores. Built once a step, in memory that is used again; all
//! layers read the same lists.

use crate::driver::DevicePtr;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Rows of a piece for the decode kernels.
pub const MAX_DECODE_ROWS: usize = 8;
/// Rows of a piece for the prefill kernels.
pub const MAX_PREFILL_ROWS: usize = 64;
/// From here on tensor cores are faster than reading a segment's matrices once for eight rows.
pub const MIN_PREFILL_SEGMENT: usize = 16;

/// Rows of one adapter, as in the kernels. Zeros are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LoraPiece {
    /// The adapter's table.
    pub table: DevicePtr,
    /// Of the step.
    pub first_row: u32,
    /// None in padding.
    pub num_rows: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct WorkList {
    decode: Vec<LoraPiece>,
    prefill: Vec<LoraPiece>,
}

impl WorkList {
    /// Never allocates again in steps of up to `max_rows`.
    #[must_use]
    pub fn with_capacity(max_rows: usize) -> Self {
        Self {
            decode: Vec::with_capacity(Self::max_decode_pieces(max_rows)),
            prefill: Vec::with_capacity(Self::max_prefill_pieces(max_rows)),
        }
    }

    /// The most pieces for the decode kernels in a step of `num_rows`.
    #[must_use]
    pub fn max_decode_pieces(num_rows: usize) -> usize {
        num_rows
    }

    /// The most pieces for the prefill kernels in a step of `num_rows`.
    #[must_use]
    pub fn max_prefill_pieces(num_rows: usize) -> usize {
        num_rows / MIN_PREFILL_SEGMENT
    }

    /// Splits segments: rows, and the adapter's table, which is null for the base.
    pub fn build(&mut self, segments: impl IntoIterator<Item = (Range<usize>, DevicePtr)>) {
        self.decode.clear();
        self.prefill.clear();
        for (rows, table) in segments {
            if table == DevicePtr::NULL {
                continue;
            }
            let (pieces, max_rows) = if rows.len() < MIN_PREFILL_SEGMENT {
                (&mut self.decode, MAX_DECODE_ROWS)
            } else {
                (&mut self.prefill, MAX_PREFILL_ROWS)
            };
            pieces.extend(rows.clone().step_by(max_rows).map(|first| LoraPiece {
                table,
                first_row: first as u32,
                num_rows: max_rows.min(rows.end - first) as u32,
            }));
        }
    }

    /// Pads the list for the decode kernels, so that a recorded grid serves any step.
    ///
    /// # Panics
    /// When there are more pieces.
    pub fn pad_decode(&mut self, num_pieces: usize) {
        assert!(self.decode.len() <= num_pieces, "{} pieces of {num_pieces}", self.decode.len());
        self.decode.resize(num_pieces, LoraPiece::zeroed());
    }

    /// Pieces of up to [`MAX_DECODE_ROWS`].
    #[must_use]
    pub fn decode(&self) -> &[LoraPiece] {
        &self.decode
    }

    /// Pieces of up to [`MAX_PREFILL_ROWS`].
    #[must_use]
    pub fn prefill(&self) -> &[LoraPiece] {
        &self.prefill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(pieces: &[LoraPiece]) -> Vec<(u64, u32, u32)> {
        pieces.iter().map(|piece| (piece.table.0, piece.first_row, piece.num_rows)).collect()
    }

    #[test]
    fn short_segments_decode_long_ones_prefill_and_the_base_has_no_pieces() {
        let mut list = WorkList::with_capacity(128);
        let table = |address| DevicePtr(address);
        list.build([(0..3, table(1)), (3..9, table(0)), (9..24, table(2)), (24..112, table(3))]);
        assert_eq!(rows(list.decode()), [(1, 0, 3), (2, 9, 8), (2, 17, 7)]);
        assert_eq!(rows(list.prefill()), [(3, 24, 64), (3, 88, 24)]);
        list.pad_decode(4);
        assert_eq!(rows(list.decode())[3], (0, 0, 0));
    }

    #[test]
    fn a_list_never_outgrows_its_capacity() {
        for segment in 1..=130 {
            let mut list = WorkList::with_capacity(130);
            let starts = (0..130).step_by(segment);
            list.build(starts.map(|start| (start..130.min(start + segment), DevicePtr(1))));
            assert!(list.decode().len() <= WorkList::max_decode_pieces(130));
            assert!(list.prefill().len() <= WorkList::max_prefill_pieces(130));
        }
    }
}
