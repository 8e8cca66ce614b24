//! `out[t,:] = W[rows[t],:]`   W:[vocab, K] packed, out:[T, K]

use crate::pool::{DisjointMut, ThreadPool};
use crate::weight::PackedLinear;

/// Gathers rows of a packed matrix in single precision. One that the matrix does not have becomes NaNs:
/// its sequence fails, and no other, unless an adapter gives the row.
///
/// # Panics
/// When `out` has another length.
pub fn gather_rows_into(pool: &ThreadPool, weight: &PackedLinear, rows: &[u32], out: &mut [f32]) {
    let width = weight.num_inputs();
    assert_eq!(out.len(), rows.len() * width);
    let out = DisjointMut::new(out);
    pool.run(rows.len(), 8, |range| {
        for index in range {
            // SAFETY: each index is claimed once.
            let out = unsafe { out.slice(index * width..(index + 1) * width) };
            match rows[index] as usize {
                row if row < weight.num_outputs() => weight.dequantize_row_into(row, out),
                _ => out.fill(f32::NAN),
            }
        }
    });
}
