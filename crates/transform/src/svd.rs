//! The best low-rank approximation of an update. In: a dense matrix, or factors of a larger rank. Out:
//! factors with the singular values split evenly between them.
//!
//! Dense matrices are approximated by a randomized range finder with subspace iteration (Halko,
//! Martinsson and Tropp 2011): the error is within a hair of the best, and the cost is that of a few
//! products with as many columns as the rank. Factors are recompressed exactly.

use crate::factors::Factors;
use crate::matrix::Matrix;

/// Columns beyond the rank: what they catch does not disturb the last wanted direction.
const OVERSAMPLING: usize = 12;

/// Each iteration squares how far the singular values are apart.
const NUM_ITERATIONS: usize = 4;

/// Of the rank asked for, or less if the matrix is smaller. `delta` is `cols × rows`; twice its memory
/// is used.
pub(crate) fn truncated(delta: &Matrix, rank: usize) -> Factors {
    let (cols, rows) = delta.shape();
    let width = rank.saturating_add(OVERSAMPLING).min(cols).min(rows);
    let transposed = delta.transpose();
    let mut state = 0x5eed_u64;
    let probe = Matrix::from_fn(rows, width, |_, _| uniform(&mut state));
    let mut range = (delta * probe).qr().q();
    for _ in 0..NUM_ITERATIONS {
        let other = (&transposed * &range).qr().q();
        range = (delta * other).qr().q();
    }
    // delta ≈ range · rangeᵀ · delta
    let b = &transposed * &range;
    recompressed(&Factors { a: range, b }, rank)
}

/// The best approximation of `factors` with at most `rank` columns; exact if it has no more than those.
pub(crate) fn recompressed(factors: &Factors, rank: usize) -> Factors {
    let (qa, ra) = factors.a.clone().qr().unpack();
    let (qb, rb) = factors.b.clone().qr().unpack();
    // a·bᵀ = qa · (ra·rbᵀ) · qbᵀ
    let svd = (ra * rb.transpose()).svd(true, true);
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else {
        // Both were asked for.
        return factors.clone();
    };
    let rank = rank.min(svd.singular_values.len());
    let roots = svd.singular_values.map(f64::sqrt);
    let scaled = |basis: Matrix, vectors: Matrix| {
        let mut product = basis * vectors.columns(0, rank);
        for (mut column, &root) in product.column_iter_mut().zip(&roots) {
            column *= root;
        }
        product
    };
    Factors { a: scaled(qa, u), b: scaled(qb, v_t.transpose()) }
}

/// The singular values of `a·bᵀ`, largest first.
pub(crate) fn singular_values(factors: &Factors) -> Vec<f64> {
    let ra = factors.a.clone().qr().r();
    let rb = factors.b.clone().qr().r();
    let mut values = (ra * rb.transpose()).singular_values().as_slice().to_vec();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values
}

/// In -1 ..= 1, from a xorshift that must not be zero.
fn uniform(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::tests::random_factors;

    fn relative_error(got: &Factors, want: &Matrix) -> f64 {
        (got.product() - want).norm() / want.norm()
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_again() {
        for (cols, rows, rank) in [(40, 90, 5), (90, 40, 5), (8, 6, 3), (5, 5, 5), (1, 9, 1)] {
            let want = random_factors(cols, rows, rank, 3).product();
            let got = truncated(&want, rank);
            assert_eq!(got.rank(), rank);
            assert!(relative_error(&got, &want) < 1e-10, "{cols} {rows} {rank}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_best_approximation() {
        // A full-rank matrix: the best error is the norm of the singular values that are left out.
        let full = random_factors(60, 50, 50, 9).product();
        let mut values: Vec<f64> = full.singular_values().iter().copied().collect();
        values.sort_unstable_by(|a, b| b.total_cmp(a));
        for rank in [1, 7, 30] {
            let best = values[rank..].iter().map(|value| value * value).sum::<f64>().sqrt();
            let got = (truncated(&full, rank).product() - &full).norm();
            assert!(got < 1.001 * best && got > 0.999 * best, "rank {rank}: {got} {best}");
        }
    }

    #[test]
    fn recompressing_to_the_same_rank_changes_nothing() {
        let factors = random_factors(30, 20, 4, 1);
        let got = recompressed(&factors, 4);
        assert!(relative_error(&got, &factors.product()) < 1e-12);
        // More than the matrix can have is less.
        let wide = random_factors(3, 20, 9, 1);
        let got = recompressed(&wide, 9);
        assert_eq!(got.rank(), 3);
        assert!(relative_error(&got, &wide.product()) < 1e-12);
    }

    #[test]
    fn singular_values_are_those_of_the_product() {
        let factors = random_factors(12, 9, 3, 4);
        let got = singular_values(&factors);
        let squares = got.iter().map(|value| value * value).sum::<f64>();
        assert_eq!(got.len(), 3);
        assert!((squares.sqrt() - factors.product().norm()).abs() < 1e-9);
        assert!(got.is_sorted_by(|a, b| a >= b));
    }
}
