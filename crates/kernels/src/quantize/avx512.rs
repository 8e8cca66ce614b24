//! Rows to integers with AVX-512: the loops of the parent module, which the compiler does not keep in
//! registers, with the same bits for numbers that are finite.

use crate::vector::{Avx512, Vector};
use crate::weight::GROUP;
use std::arch::x86_64::{
    _mm256_storeu_si256, _mm512_abs_ps, _mm512_cvtepi32_epi16, _mm512_cvtps_epi32, _mm512_loadu_ps,
    _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

/// As the parent's `quantize_groups_body`.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn quantize_groups(
    limit: f32,
    x: &[f32],
    codes: &mut [i16],
    scales: &mut [f32],
    sums: &mut [i32],
    totals: &mut [f32],
) {
    let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
    let groups = groups.zip(scales).zip(totals).zip(sums.as_chunks_mut::<2>().0);
    for ((((x, codes), scale), total), sums) in groups {
        // SAFETY: a group is 32 numbers to read and 32 codes to write.
        unsafe {
            let low = _mm512_loadu_ps(x.as_ptr());
            let high = _mm512_loadu_ps(x.as_ptr().add(GROUP / 2));
            let mut lanes = [0.0; GROUP / 2];
            let larger = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
            _mm512_storeu_ps(lanes.as_mut_ptr(), larger);
            let largest = Avx512::load(&lanes).max();
            let inverse = if largest > 0.0 { limit / largest } else { 0.0 };
            let inverse = _mm512_set1_ps(inverse);
            // Rounds to the nearest, ties to even.
            let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
            let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
            let codes = codes.as_mut_ptr();
            _mm256_storeu_si256(codes.cast(), _mm512_cvtepi32_epi16(low));
            _mm256_storeu_si256(codes.add(GROUP / 2).cast(), _mm512_cvtepi32_epi16(high));
            *sums = [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)];
            *scale = largest / limit;
        }
        *total = *scale * (sums[0].wrapping_add(sums[1])) as f32;
    }
}
