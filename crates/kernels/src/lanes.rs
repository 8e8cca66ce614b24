//! Arithmetic on fixed lanes of sixteen, written so that the compiler turns it into vectors.
//!
//! Rust never reassociates or contracts floating-point operations, so these give the same bits
//! however they are vectorised.

/// Lanes that the kernels work in: one AVX-512 register, two AVX2 ones, four NEON ones.
pub(crate) const LANES: usize = 16;

/// One value per lane.
pub(crate) type Lanes = [f32; LANES];

/// `a * b + c`, fused where the instruction set has it.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `acc[i] += s * b[i]`
#[inline(always)]
pub(crate) fn axpy_lanes<const FMA: bool>(s: f32, b: &[f32; LANES], acc: &mut Lanes) {
    for lane in 0..LANES {
        acc[lane] = fma::<FMA>(s, b[lane], acc[lane]);
    }
}

/// Sum of all lanes by halving: a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes(mut v: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            v[lane] += v[lane + width];
        }
        width /= 2;
    }
    v[0]
}

/// Largest lane; a NaN loses against any number.
#[inline(always)]
pub(crate) fn max_lanes(mut v: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            v[lane] = if v[lane + width] > v[lane] { v[lane + width] } else { v[lane] };
        }
        width /= 2;
    }
    v[0]
}

/// e^x to about one unit in the last place, for x ≤ 88. Below -87 it is 0.
///
/// Range reduction x = n ln 2 + f, then a degree-6 polynomial on |f| ≤ ln 2 / 2.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n * ln 2 loses nothing.
    let f = fma::<FMA>(n, -0.693_359_4, clamped);
    let f = fma::<FMA>(n, 2.121_944_4e-4, f);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, f, 1.398_199_9e-3);
    p = fma::<FMA>(p, f, 8.333_452e-3);
    p = fma::<FMA>(p, f, 4.166_579_6e-2);
    p = fma::<FMA>(p, f, 1.666_666_5e-1);
    p = fma::<FMA>(p, f, 0.5);
    let value = fma::<FMA>(p * f, f, f) + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32).wrapping_add(127);
    let power = f32::from_bits((exponent as u32) << 23);
    if x < -87.0 { 0.0 } else { value * power }
}

/// Sixteen-bit float formats and f32 itself, read lane by lane without branches.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// To single precision: exact. (f16 infinities and NaN are not supported.)
    fn to_f32(self) -> f32;
    /// Round to nearest even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

/// bfloat16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

impl Element for Bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self(half::bf16::from_f32(value).to_bits())
    }
}

/// IEEE half-precision bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct F16(pub(crate) u16);

impl Element for F16 {
    /// Moves exponent and mantissa into place. A subnormal borrows a leading one and gives it back
    /// by subtraction, because arithmetic on subnormal f32 takes x86 a hundred cycles.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        const BIAS: u32 = (127 - 15) << 23;
        const LEADING_ONE: u32 = 1 << 23;
        let magnitude = u32::from(self.0 & 0x7fff) << 13;
        let normal = magnitude + BIAS;
        let borrowed = f32::from_bits(normal + LEADING_ONE);
        let subnormal = (borrowed - f32::from_bits(BIAS + LEADING_ONE)).to_bits();
        let magnitude = if magnitude < LEADING_ONE { subnormal } else { normal };
        f32::from_bits(magnitude | u32::from(self.0 & 0x8000) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        // Saturate: an infinity in a cache would poison every later read.
        Self(half::f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits())
    }
}

/// Sixteen elements from the front of `source`.
#[inline(always)]
pub(crate) fn load<T: Element>(source: &[T]) -> Lanes {
    let source: &[T; LANES] = source[..LANES].try_into().expect("length is LANES");
    let mut lanes = [0.0; LANES];
    for lane in 0..LANES {
        lanes[lane] = source[lane].to_f32();
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_of_f64() {
        for step in -8700..=880 {
            let x = step as f32 * 0.01;
            let want = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {want}");
            }
        }
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(0.0), 1.0);
    }

    #[test]
    fn every_finite_half_reads_exactly() {
        for bits in 0..=u16::MAX {
            let half = half::f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(F16(bits).to_f32().to_bits(), half.to_f32().to_bits(), "{bits:04x}");
            }
        }
    }
}
