//! `y[t,:] = x[t,:] / sqrt(mean(x[t,:]²) + eps) * w`   x, y:[T,D] w:[D]
//! (RMSNorm, Zhang & Sennrich 2019).

use crate::Isa;
use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes, fma, sum_lanes};
use crate::pool::{DisjointMut, ThreadPool};

/// Normalises the rows of `x` into `y`.
///
/// # Panics
/// When lengths do not agree.
pub fn rms_norm_into(
    pool: &ThreadPool,
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    y: &mut [f32],
) {
    assert_eq!(x.len(), y.len());
    let y = DisjointMut::new(y);
    let width = weight.len();
    pool.run(x.len() / width, 32, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: each row is in one claimed range.
        rms_norm_rows(isa, &x[range.clone()], weight, eps, unsafe { y.slice(range) });
    });
}

/// Normalises each run of `weight.len()` values in place: the q and k norms of Qwen3.
///
/// # Panics
/// When `x` is not whole runs.
pub fn rms_norm_in_place(pool: &ThreadPool, isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width));
    let num_rows = x.len() / width;
    let x = DisjointMut::new(x);
    pool.run(num_rows, 64, |rows| {
        // SAFETY: each row is in one claimed range.
        rms_norm_in_place_rows(
            isa,
            unsafe { x.slice(rows.start * width..rows.end * width) },
            weight,
            eps,
        );
    });
}

multiversion! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) = rms_norm_rows_body
}
multiversion! {
    fn rms_norm_in_place_rows(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_in_place_body
}

#[inline(always)]
fn inverse_rms<const FMA: bool>(x: &[f32], eps: f32) -> f32 {
    let mut acc: Lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            acc[lane] = fma::<FMA>(chunk[lane], chunk[lane], acc[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        acc[lane] = fma::<FMA>(value, value, acc[lane]);
    }
    1.0 / (sum_lanes(acc) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_rows_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = inverse_rms::<FMA>(x, eps);
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

#[inline(always)]
fn rms_norm_in_place_body<const FMA: bool>(x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms::<FMA>(x, eps);
        for (x, &w) in x.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_f64_reference_in_and_out_of_place() {
        let pool = ThreadPool::new(2);
        for width in [1, 16, 45, 576] {
            let x: Vec<f32> = (0..3 * width).map(|i| ((i * 7 % 23) as f32 - 11.0) * 0.3).collect();
            let w: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            for isa in Isa::available() {
                let mut y = vec![0.0; x.len()];
                rms_norm_into(&pool, isa, &x, &w, 1e-5, &mut y);
                let mut in_place = x.clone();
                rms_norm_in_place(&pool, isa, &mut in_place, &w, 1e-5);
                assert_eq!(y, in_place);
                for (t, x) in x.chunks_exact(width).enumerate() {
                    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                        assert!((f64::from(y[t * width + i]) - want).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
