//! Sixteen lanes as registers, for kernels whose sums fill the register file: there the compiler
//! does not find the vectors in plain loops over [`crate::lanes`].
//!
//! The same kernel body is compiled for each type by [`multivector!`]. Bits may differ between types
//! (some fuse multiplication and addition), never between calls of one.

use crate::isa::PORTABLE_FMA;
use crate::lanes::{Bf16, Element, F16, LANES, Lanes, exp, fma, max_lanes, sum_lanes};

/// Sixteen values in registers. The methods of a type may be called only inside functions that are
/// compiled for its instruction set, on machines that have it: only [`multivector!`] names types.
pub(crate) trait Vector: Copy {
    /// Rows and columns of accumulators that the register file holds beside the operands are
    /// `BLOCK * BLOCK`: 4 or 2.
    const BLOCK: usize;
    /// All lanes the same.
    fn splat(value: f32) -> Self;
    /// `self * b + c`
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self * b`
    fn mul(self, b: Self) -> Self;
    /// `self - b`
    fn sub(self, b: Self) -> Self;
    /// A table of sixteen at four bits of each lane of `words`, whose bits are no numbers: those that come
    /// `NIBBLE` times four bits after the lowest.
    fn lookup<const NIBBLE: u32>(self, words: Self) -> Self;
    /// An unsigned byte of each lane's bits, which are no numbers: the `BYTE`-th after the lowest.
    #[inline(always)]
    fn byte<const BYTE: u32>(self) -> Self {
        let mut numbers = self.to_lanes();
        for number in &mut numbers {
            *number = f32::from((number.to_bits() >> (8 * BYTE)) as u8);
        }
        Self::load(&numbers)
    }
    /// From memory.
    fn load(source: &Lanes) -> Self;
    /// From little-endian single precision.
    fn load_f32(source: &[u8; 4 * LANES]) -> Self;
    /// From little-endian half precision.
    fn load_f16(source: &[u8; 2 * LANES]) -> Self;
    /// From little-endian bfloat16.
    fn load_bf16(source: &[u8; 2 * LANES]) -> Self;
    /// From signed bytes.
    fn load_i8(source: &[u8; LANES]) -> Self;
    /// To memory.
    fn to_lanes(self) -> Lanes;
    /// Sum of all lanes, as [`sum_lanes`] adds.
    #[inline(always)]
    fn sum(self) -> f32 {
        sum_lanes(self.to_lanes())
    }
    /// Largest lane, as [`max_lanes`] finds it.
    #[inline(always)]
    fn max(self) -> f32 {
        max_lanes(self.to_lanes())
    }
    /// One lane's `a * b + c`, with the same rounding.
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32;
    /// One lane's e^x, as [`crate::lanes::exp`].
    fn exp(x: f32) -> f32;
}

/// What the compiler makes of plain loops.
#[derive(Clone, Copy)]
pub(crate) struct Portable(Lanes);

impl Vector for Portable {
    const BLOCK: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        let mut sum = c;
        for lane in 0..LANES {
            sum.0[lane] = Self::scalar_mul_add(self.0[lane], b.0[lane], c.0[lane]);
        }
        sum
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        let mut product = self;
        for lane in 0..LANES {
            product.0[lane] *= b.0[lane];
        }
        product
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        let mut difference = self;
        for lane in 0..LANES {
            difference.0[lane] -= b.0[lane];
        }
        difference
    }

    #[inline(always)]
    fn lookup<const NIBBLE: u32>(self, words: Self) -> Self {
        let mut numbers = [0.0; LANES];
        for lane in 0..LANES {
            numbers[lane] = self.0[(words.0[lane].to_bits() >> (4 * NIBBLE) & 15) as usize];
        }
        Self(numbers)
    }

    #[inline(always)]
    fn load(source: &Lanes) -> Self {
        Self(*source)
    }

    #[inline(always)]
    fn load_f32(source: &[u8; 4 * LANES]) -> Self {
        Self(lanes_from(source, f32::from_le_bytes))
    }

    #[inline(always)]
    fn load_f16(source: &[u8; 2 * LANES]) -> Self {
        Self(lanes_from(source, |bytes| F16(u16::from_le_bytes(bytes)).to_f32()))
    }

    #[inline(always)]
    fn load_bf16(source: &[u8; 2 * LANES]) -> Self {
        Self(lanes_from(source, |bytes| Bf16(u16::from_le_bytes(bytes)).to_f32()))
    }

    #[inline(always)]
    fn load_i8(source: &[u8; LANES]) -> Self {
        Self(lanes_from(source, |bytes| f32::from(i8::from_le_bytes(bytes))))
    }

    #[inline(always)]
    fn to_lanes(self) -> Lanes {
        self.0
    }

    #[inline(always)]
    fn scalar_mul_add(a: f32, b: f32, c: f32) -> f32 {
        fma::<PORTABLE_FMA>(a, b, c)
    }

    #[inline(always)]
    fn exp(x: f32) -> f32 {
        exp::<PORTABLE_FMA>(x)
    }
}

#[inline(always)]
fn lanes_from<const SIZE: usize>(source: &[u8], value: impl Fn([u8; SIZE]) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (lane, &bytes) in lanes.iter_mut().zip(source.as_chunks().0) {
        *lane = value(bytes);
    }
    lanes
}

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{Neon, eight_halves};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86;

/// An element of stored matrices, read from bytes at any alignment.
pub(crate) trait Stored: Copy {
    /// Bytes of one.
    const SIZE: usize;
    /// Sixteen elements from the front of `bytes`.
    fn load<V: Vector>(bytes: &[u8]) -> V;
    /// The element at the front of `bytes`.
    fn at(bytes: &[u8]) -> f32;
}

/// Asks for the cache line of the element at `index`, which need not be one of `of`: memory works while we
/// compute. Has no other effect.
#[inline(always)]
pub(crate) fn prefetch<T>(of: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint reads nothing, and the pointer need not be valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(of.as_ptr().wrapping_add(index).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (of, index);
}

/// The first `N` bytes.
#[inline(always)]
fn first<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("a matrix ends with its last element")
}

impl Stored for f32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<V: Vector>(bytes: &[u8]) -> V {
        V::load_f32(first(bytes))
    }
    #[inline(always)]
    fn at(bytes: &[u8]) -> f32 {
        Self::from_le_bytes(*first(bytes))
    }
}

impl Stored for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<V: Vector>(bytes: &[u8]) -> V {
        V::load_f16(first(bytes))
    }
    #[inline(always)]
    fn at(bytes: &[u8]) -> f32 {
        Self(u16::from_le_bytes(*first(bytes))).to_f32()
    }
}

impl Stored for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<V: Vector>(bytes: &[u8]) -> V {
        V::load_bf16(first(bytes))
    }
    #[inline(always)]
    fn at(bytes: &[u8]) -> f32 {
        Self(u16::from_le_bytes(*first(bytes))).to_f32()
    }
}

impl Stored for i8 {
    const SIZE: usize = 1;
    #[inline(always)]
    fn load<V: Vector>(bytes: &[u8]) -> V {
        V::load_i8(first(bytes))
    }
    #[inline(always)]
    fn at(bytes: &[u8]) -> f32 {
        f32::from(Self::from_le_bytes(*first(bytes)))
    }
}

/// Defines `fn $name(isa, args…)` that runs `$body::<V>(args…)` compiled for `isa`, with the
/// [`Vector`] of that set.
///
/// `$body` and all that it calls are `#[inline(always)]` and pass no closures, so that vectors stay
/// in registers.
macro_rules! multivector {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$lt:lifetime>)? ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name $(<$lt>)? (isa: $crate::isa::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$lt>)? ($($arg: $ty),*) { $body::<$crate::vector::Avx512>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$lt>)? ($($arg: $ty),*) { $body::<$crate::vector::Avx2>($($arg),*) }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon $(<$lt>)? ($($arg: $ty),*) { $body::<$crate::vector::Neon>($($arg),*) }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` other than portable is only made by `Isa::available`, which
                // checked that this machine has the features.
                $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as above.
                $crate::isa::Isa::Neon | $crate::isa::Isa::NeonDot => unsafe { neon($($arg),*) },
                _ => $body::<$crate::vector::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use multivector;

#[cfg(test)]
mod tests {
    use super::*;

    multivector! {
        fn widen(bytes: &[u8; 64], lanes: &mut [Lanes; 4]) = widen_body
    }

    #[inline(always)]
    fn widen_body<V: Vector>(bytes: &[u8; 64], lanes: &mut [Lanes; 4]) {
        let [halves, bfloats, floats, integers] = lanes;
        *halves = F16::load::<V>(bytes).to_lanes();
        *bfloats = Bf16::load::<V>(bytes).to_lanes();
        *floats = f32::load::<V>(bytes).to_lanes();
        *integers = i8::load::<V>(bytes).to_lanes();
    }

    multivector! {
        fn fold(lanes: &Lanes, folded: &mut [f32; 2]) = fold_body
    }

    #[inline(always)]
    fn fold_body<V: Vector>(lanes: &Lanes, folded: &mut [f32; 2]) {
        *folded = [V::load(lanes).sum(), V::load(lanes).max()];
    }

    #[test]
    fn lanes_fold_in_the_same_order_on_every_set() {
        for isa in crate::Isa::available() {
            for start in 0..50 {
                let lanes: Lanes =
                    std::array::from_fn(|i| ((start + 7 * i) as f32 * 0.37).sin() * 1e3);
                let mut folded = [0.0; 2];
                fold(isa, &lanes, &mut folded);
                let want = [sum_lanes(lanes), max_lanes(lanes)];
                assert_eq!(folded.map(f32::to_bits), want.map(f32::to_bits), "{isa}");
            }
        }
    }

    multivector! {
        fn look_up(table: &Lanes, words: &[u8; 64], lanes: &mut [Lanes; 4]) = look_up_body
    }

    #[inline(always)]
    fn look_up_body<V: Vector>(table: &Lanes, words: &[u8; 64], lanes: &mut [Lanes; 4]) {
        let (table, words) = (V::load(table), V::load_f32(words));
        *lanes = [
            table.lookup::<0>(words).to_lanes(),
            table.lookup::<7>(words).to_lanes(),
            words.byte::<0>().to_lanes(),
            words.byte::<3>().to_lanes(),
        ];
    }

    #[test]
    fn every_nibble_and_byte_finds_its_number_whatever_lies_beside_it_on_every_set() {
        let table: Lanes = std::array::from_fn(|i| 100.0 + i as f32);
        for isa in crate::Isa::available() {
            for first in 0..16u32 {
                let mut words = [0; 64];
                for (lane, word) in words.as_chunks_mut().0.iter_mut().enumerate() {
                    let (low, high) = ((lane as u32 + first) % 16, (lane as u32 * 5 + first) % 16);
                    *word = (low | high << 28 | 0x0a5a_5a50).to_le_bytes();
                }
                let mut lanes = [[0.0; LANES]; 4];
                look_up(isa, &table, &words, &mut lanes);
                for lane in 0..LANES {
                    let want = [(lane as u32 + first) % 16, (lane as u32 * 5 + first) % 16];
                    let want = want.map(|code| 100.0 + code as f32);
                    assert_eq!([lanes[0][lane], lanes[1][lane]], want, "{isa}");
                    let word = words.as_chunks::<4>().0[lane];
                    let want = [word[0], word[3]].map(f32::from);
                    assert_eq!([lanes[2][lane], lanes[3][lane]], want, "{isa}");
                }
            }
        }
    }

    #[test]
    fn every_finite_value_is_widened_exactly_on_every_set() {
        for isa in crate::Isa::available() {
            for first in (0..=u16::MAX).step_by(32) {
                let words: [u16; 32] = std::array::from_fn(|i| first + i as u16);
                let mut bytes = [0; 64];
                for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
                let mut lanes = [[0.0; LANES]; 4];
                widen(isa, &bytes, &mut lanes);
                let [halves, bfloats, floats, integers] = lanes;
                for lane in 0..LANES {
                    let want = half::f16::from_bits(words[lane]);
                    if want.is_finite() {
                        assert_eq!(halves[lane].to_bits(), want.to_f32().to_bits(), "{isa}");
                    }
                    assert_eq!(bfloats[lane].to_bits(), u32::from(words[lane]) << 16, "{isa}");
                    assert_eq!(integers[lane], f32::from(bytes[lane] as i8), "{isa}");
                    let (low, high) = (words[2 * lane], words[2 * lane + 1]);
                    let want = u32::from(high) << 16 | u32::from(low);
                    assert_eq!(floats[lane].to_bits(), want, "{isa}");
                }
            }
        }
    }
}
