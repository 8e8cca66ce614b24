//! The vectors of aarch64: NEON, which always comes with fused multiply-add and with conversion
//! from half precision.

use super::{LANES, Lanes, Vector, exp};
use std::arch::aarch64::{
    float32x4_t, uint8x16x4_t, uint32x4_t, vandq_u32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32,
    vdupq_n_u32, vfmaq_f32, vget_low_s8, vget_low_s16, vget_low_u16, vld1q_f32, vld1q_s8, vld1q_u8,
    vld1q_u16, vmlaq_u32, vmovl_high_s8, vmovl_high_s16, vmovl_s8, vmovl_s16, vmulq_f32,
    vqtbl4q_u8, vreinterpretq_f32_u8, vreinterpretq_f32_u32, vreinterpretq_u8_f32,
    vreinterpretq_u8_u32, vreinterpretq_u32_f32, vshll_high_n_u16, vshll_n_u16, vshlq_u32,
    vst1q_f32, vsubq_f32,
};
use std::arch::asm;

/// Registers of sixteen values.
const REGISTERS: usize = LANES / 4;

/// Four registers of NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; REGISTERS]);

// Every block below is safe for the same reasons: by the trait's rule the machine has the
// instructions, and pointers come from references to sixteen elements.
impl Vector for Neon {
    const BLOCK: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { vdupq_n_f32(value) }; REGISTERS])
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        let mut sum = c.0;
        for i in 0..REGISTERS {
            // SAFETY: see above.
            sum[i] = unsafe { vfmaq_f32(c.0[i], self.0[i], b.0[i]) };
        }
        Self(sum)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        let mut product = self.0;
        for i in 0..REGISTERS {
            // SAFETY: see above.
            product[i] = unsafe { vmulq_f32(self.0[i], b.0[i]) };
        }
        Self(product)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        let mut difference = self.0;
        for i in 0..REGISTERS {
            // SAFETY: see above.
            difference[i] = unsafe { vsubq_f32(self.0[i], b.0[i]) };
        }
        Self(difference)
    }

    #[inline(always)]
    fn lookup<const NIBBLE: u32>(self, words: Self) -> Self {
        let mut numbers = self.0;
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = self.0;
            let table = uint8x16x4_t(
                vreinterpretq_u8_f32(a),
                vreinterpretq_u8_f32(b),
                vreinterpretq_u8_f32(c),
                vreinterpretq_u8_f32(d),
            );
            for i in 0..REGISTERS {
                let words = vreinterpretq_u32_f32(words.0[i]);
                // A shift to the left by a negative number.
                let codes = vshlq_u32(words, vdupq_n_s32(-4 * NIBBLE as i32));
                let codes = vandq_u32(codes, vdupq_n_u32(15));
                // The table is of bytes: number `code` is its bytes 4 code to 4 code + 3.
                let bytes: uint32x4_t =
                    vmlaq_u32(vdupq_n_u32(0x0302_0100), codes, vdupq_n_u32(0x0404_0404));
                let bytes = vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes));
                numbers[i] = vreinterpretq_f32_u8(bytes);
            }
        }
        Self(numbers)
    }

    #[inline(always)]
    fn load(source: &Lanes) -> Self {
        // SAFETY: see above.
        unsafe { load(source.as_ptr()) }
    }

    #[inline(always)]
    fn load_f32(source: &[u8; 4 * LANES]) -> Self {
        // SAFETY: see above; NEON loads from any address.
        unsafe { load(source.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(source: &[u8; 2 * LANES]) -> Self {
        let source = source.as_ptr();
        // SAFETY: see above.
        unsafe {
            let ([a, b], [c, d]) = (eight_halves(source), eight_halves(source.add(LANES)));
            Self([a, b, c, d])
        }
    }

    #[inline(always)]
    fn load_bf16(source: &[u8; 2 * LANES]) -> Self {
        let source = source.as_ptr().cast::<u16>();
        // SAFETY: see above.
        unsafe {
            let (first, second) = (vld1q_u16(source), vld1q_u16(source.add(8)));
            Self([
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(first))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(first)),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(second))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(second)),
            ])
        }
    }

    #[inline(always)]
    fn load_i8(source: &[u8; LANES]) -> Self {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_s8(source.as_ptr().cast());
            let (first, second) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))),
                vcvtq_f32_s32(vmovl_high_s16(first)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))),
                vcvtq_f32_s32(vmovl_high_s16(second)),
            ])
        }
    }

    #[inline(always)]
    fn to_lanes(self) -> Lanes {
        let mut lanes = [0.0; LANES];
        for (lanes, register) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            // SAFETY: see above.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), register) };
        }
        lanes
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

/// Sixteen floats at any address.
///
/// # Safety
/// The machine has NEON; 64 bytes are readable at `source`.
#[inline(always)]
unsafe fn load(source: *const f32) -> Neon {
    // SAFETY: as promised by the caller.
    unsafe {
        Neon([
            vld1q_f32(source),
            vld1q_f32(source.add(4)),
            vld1q_f32(source.add(8)),
            vld1q_f32(source.add(12)),
        ])
    }
}

/// Eight halves as floats. The instruction is of every aarch64, its intrinsic asks for more.
///
/// # Safety
/// The machine has NEON; 16 bytes are readable at `source`.
#[inline(always)]
pub(crate) unsafe fn eight_halves(source: *const u8) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: as promised by the caller; the instructions only read and write registers.
    unsafe {
        let halves = vld1q_u8(source);
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            low = out(vreg) low,
            high = lateout(vreg) high,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}
