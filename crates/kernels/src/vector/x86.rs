//! The vectors of x86: AVX2 with FMA and F16C, and AVX-512.

use super::{LANES, Lanes, Vector, exp};
use std::arch::x86_64::{
    __m128i, __m256, __m512, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps,
    _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_unpackhi_epi64, _mm256_add_ps,
    _mm256_and_si256, _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_max_ps, _mm256_mul_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_sub_ps, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

/// Two registers of AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2([__m256; 2]);

// Every block below is safe for the same reasons: by the trait's rule the machine has the
// instructions, and pointers come from references to sixteen elements.
impl Vector for Avx2 {
    const BLOCK: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { _mm256_set1_ps(value) }; 2])
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self([
                _mm256_fmadd_ps(self.0[0], b.0[0], c.0[0]),
                _mm256_fmadd_ps(self.0[1], b.0[1], c.0[1]),
            ])
        }
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self([_mm256_mul_ps(self.0[0], b.0[0]), _mm256_mul_ps(self.0[1], b.0[1])]) }
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self([_mm256_sub_ps(self.0[0], b.0[0]), _mm256_sub_ps(self.0[1], b.0[1])]) }
    }

    #[inline(always)]
    fn lookup<const NIBBLE: u32>(self, words: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let shift = _mm256_set1_epi32(4 * NIBBLE as i32);
            let mut halves = self.0;
            for (i, half) in halves.iter_mut().enumerate() {
                let code = _mm256_srlv_epi32(_mm256_castps_si256(words.0[i]), shift);
                // The low three bits choose in either half of the table, the fourth the half.
                let low = _mm256_permutevar8x32_ps(self.0[0], code);
                let high = _mm256_permutevar8x32_ps(self.0[1], code);
                let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
                *half = _mm256_blendv_ps(low, high, fourth);
            }
            Self(halves)
        }
    }

    #[inline(always)]
    fn byte<const BYTE: u32>(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let (shift, mask) = (_mm256_set1_epi32(8 * BYTE as i32), _mm256_set1_epi32(0xff));
            let low = _mm256_srlv_epi32(_mm256_castps_si256(self.0[0]), shift);
            let high = _mm256_srlv_epi32(_mm256_castps_si256(self.0[1]), shift);
            Self([
                _mm256_cvtepi32_ps(_mm256_and_si256(low, mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(high, mask)),
            ])
        }
    }

    #[inline(always)]
    fn load(source: &Lanes) -> Self {
        let source = source.as_ptr();
        // SAFETY: see above.
        unsafe { Self([_mm256_loadu_ps(source), _mm256_loadu_ps(source.add(8))]) }
    }

    #[inline(always)]
    fn load_f32(source: &[u8; 4 * LANES]) -> Self {
        let source = source.as_ptr().cast::<f32>();
        // SAFETY: see above.
        unsafe { Self([_mm256_loadu_ps(source), _mm256_loadu_ps(source.add(8))]) }
    }

    #[inline(always)]
    fn load_f16(source: &[u8; 2 * LANES]) -> Self {
        let source = source.as_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            let (low, high) = (_mm_loadu_si128(source), _mm_loadu_si128(source.add(1)));
            Self([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
        }
    }

    #[inline(always)]
    fn load_bf16(source: &[u8; 2 * LANES]) -> Self {
        let source = source.as_ptr().cast::<__m128i>();
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(source));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.add(1)));
            Self([
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ])
        }
    }

    #[inline(always)]
    fn load_i8(source: &[u8; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let low = _mm_loadu_si128(source.as_ptr().cast());
            let high = _mm_unpackhi_epi64(low, low);
            Self([
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            ])
        }
    }

    #[inline(always)]
    fn to_lanes(self) -> Lanes {
        let mut lanes = [0.0; LANES];
        let out = lanes.as_mut_ptr();
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(out, self.0[0]);
            _mm256_storeu_ps(out.add(8), self.0[1]);
        }
        lanes
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { sum_of_eight(_mm256_add_ps(self.0[0], self.0[1])) }
    }

    #[inline(always)]
    fn max(self) -> f32 {
        // SAFETY: see above.
        unsafe { max_of_eight(_mm256_max_ps(self.0[1], self.0[0])) }
    }

    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn exp(x: f32) -> f32 {
        exp::<true>(x)
    }
}

/// Halves are added until one is left.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn sum_of_eight(v: __m256) -> f32 {
    // SAFETY: as promised by the caller.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// The same for the largest; of two that do not compare, the lower lane.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn max_of_eight(v: __m256) -> f32 {
    // SAFETY: as promised by the caller.
    unsafe {
        let v = _mm_max_ps(_mm256_extractf128_ps::<1>(v), _mm256_castps256_ps128(v));
        let v = _mm_max_ps(_mm_movehl_ps(v, v), v);
        _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(v), v))
    }
}

/// One register of AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Vector for Avx512 {
    const BLOCK: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    fn lookup<const NIBBLE: u32>(self, words: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_castps_si512(words.0);
            let codes = _mm512_srlv_epi32(words, _mm512_set1_epi32(4 * NIBBLE as i32));
            // Only the low four bits choose.
            Self(_mm512_permutexvar_ps(codes, self.0))
        }
    }

    #[inline(always)]
    fn byte<const BYTE: u32>(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_castps_si512(self.0);
            let words = _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * BYTE as i32));
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xff))))
        }
    }

    #[inline(always)]
    fn load(source: &Lanes) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(source.as_ptr()) })
    }

    #[inline(always)]
    fn load_f32(source: &[u8; 4 * LANES]) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(source.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_f16(source: &[u8; 2 * LANES]) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_bf16(source: &[u8; 2 * LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    fn load_i8(source: &[u8; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(source.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }

    #[inline(always)]
    fn to_lanes(self) -> Lanes {
        let mut lanes = [0.0; LANES];
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), self.0) };
        lanes
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }

    #[inline(always)]
    fn max(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            max_of_eight(_mm256_max_ps(high, _mm512_castps512_ps256(self.0)))
        }
    }

    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn exp(x: f32) -> f32 {
        exp::<true>(x)
    }
}
