//! Tiles of integer weights with activations of 8 bits on x86: unsigned weight codes times signed bytes,
//! four inputs of an output in a 32-bit lane.
//!
//! AVX-512 has `vpdpbusd` for that. AVX2 has `vpmaddubsw`, whose sums of two products saturate at 16 bits:
//! a whole group of 4-bit codes stays below (eight sums of 2 · 15 · 127), 8-bit codes do not and are
//! multiplied as 16-bit integers, as 12-bit activations are (`avx2.rs`). All sums are exact.

use super::TileSums;
use super::amx::ORDER;
use super::avx2::halves as halves_8;
use super::avx512::{fetch_ahead, halves};
use crate::quantize::QuantizedRows;
use crate::weight::{Format, GROUP, TILE};
use std::arch::asm;
use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm256_add_epi16, _mm256_and_si256, _mm256_cvtepi32_ps,
    _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_packs_epi16, _mm256_permute4x64_epi64, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm512_add_epi32, _mm512_and_si512, _mm512_andnot_si512, _mm512_cvtepi32_ps, _mm512_fmadd_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srai_epi32, _mm512_srli_epi32,
};
use std::ops::Range;

/// Order in which the codes of four inputs lie in a word of `W8`, for eight.
const W8_ORDER: [i8; 8] = [0, 2, 1, 3, 4, 6, 5, 7];

/// Codes of 8 bits as bytes, in the order of each kind of weights.
///
/// # Safety
/// The machine has AVX2.
///
/// # Panics
/// When lengths differ or are not whole groups.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn narrow(codes: &[i16], for_w4: &mut [i8], for_w8: &mut [i8]) {
    let (groups, rest) = codes.as_chunks::<GROUP>();
    assert!(rest.is_empty() && for_w4.len() == codes.len() && for_w8.len() == codes.len());
    let (w4, w8) = (shuffle(ORDER), shuffle(W8_ORDER));
    let out = for_w4.as_chunks_mut::<GROUP>().0.iter_mut().zip(for_w8.as_chunks_mut::<GROUP>().0);
    for (codes, (for_w4, for_w8)) in groups.iter().zip(out) {
        // SAFETY: a group is 64 bytes to read, and 32 to write.
        unsafe {
            let codes = codes.as_ptr().cast::<__m256i>();
            let packed =
                _mm256_packs_epi16(_mm256_loadu_si256(codes), _mm256_loadu_si256(codes.add(1)));
            // Packing works in halves of 128 bits.
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(for_w4.as_mut_ptr().cast(), _mm256_shuffle_epi8(bytes, w4));
            _mm256_storeu_si256(for_w8.as_mut_ptr().cast(), _mm256_shuffle_epi8(bytes, w8));
        }
    }
}

/// A shuffle of each eight bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shuffle(order: [i8; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = order;
    let [i, j, k, l, m, n, o, p] = order.map(|index| index + 8);
    _mm256_setr_epi8(
        a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, a, b, c, d, e, f, g, h, i, j, k, l, m, n,
        o, p,
    )
}

/// `dot + w · x`, four products of bytes per lane, x the same in all.
///
/// In assembly because the compiler splits the intrinsic, as in `avx512.rs`.
///
/// # Safety
/// As `avx512::rows_at`; four bytes are readable at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_products(mut dot: __m512i, w: __m512i, x: *const i8) -> __m512i {
    // SAFETY: reads four bytes at `x`, as promised; touches nothing else.
    unsafe {
        asm!(
            "vpdpbusd {dot}, {w}, dword ptr [{x}]{{1to16}}",
            dot = inout(zmm_reg) dot,
            w = in(zmm_reg) w,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    dot
}

/// # Safety
/// As `avx512::rows_at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn w4<const ROWS: usize>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
) -> [__m512; ROWS] {
    let (num_groups, stride) = (x.num_inputs / GROUP, x.num_inputs);
    let mask = _mm512_set1_epi8(0x0f);
    // High codes are sixteen times too large in their place. With few rows it is cheaper to divide
    // their sums, which are exact multiples, and two chains of sums hide latency.
    let is_late = ROWS <= 2;
    let mut acc = [_mm512_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over `num_groups` blocks of 320 bytes; `bytes` over the rows' codes;
    // scales and totals have one entry a group.
    unsafe {
        let mut bytes = x.bytes_for_w4.as_ptr().add(first * stride);
        for group in 0..num_groups {
            fetch_ahead(block, 320);
            let mut dot = [_mm512_setzero_si512(); ROWS];
            let mut high_dot = [_mm512_setzero_si512(); ROWS];
            for part in 0..4 {
                let packed = _mm512_loadu_si512(block.add(64 + 64 * part).cast());
                let low = _mm512_and_si512(packed, mask);
                let high = if is_late {
                    _mm512_andnot_si512(mask, packed)
                } else {
                    _mm512_and_si512(_mm512_srli_epi32::<4>(packed), mask)
                };
                for row in 0..ROWS {
                    let x = bytes.add(row * stride + 8 * part);
                    dot[row] = add_products(dot[row], low, x);
                    if is_late {
                        high_dot[row] = add_products(high_dot[row], high, x.add(4));
                    } else {
                        dot[row] = add_products(dot[row], high, x.add(4));
                    }
                }
            }
            let (scale, min) = (halves(block), halves(block.add(32)));
            for row in 0..ROWS {
                if is_late {
                    let high = _mm512_srai_epi32::<4>(high_dot[row]);
                    dot[row] = _mm512_add_epi32(dot[row], high);
                }
                let index = (first + row) * num_groups + group;
                let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scales.get_unchecked(index)));
                acc[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[row]), scaled, acc[row]);
                let x_total = _mm512_set1_ps(*x.totals.get_unchecked(index));
                acc[row] = _mm512_fmadd_ps(min, x_total, acc[row]);
            }
            block = block.add(320);
            bytes = bytes.add(GROUP);
        }
    }
    acc
}

/// # Safety
/// As `avx512::rows_at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn w8<const ROWS: usize, const WIDTH: usize, const HAS_MIN: bool>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    offset: u8,
) -> [__m512; ROWS] {
    let (num_groups, stride) = (x.num_inputs / WIDTH, x.num_inputs);
    let header = if HAS_MIN { 64 } else { 32 };
    let offset = i32::from(offset);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over `num_groups` blocks of `header + 16 * WIDTH` bytes; sums have one
    // entry for 16 inputs; the rest as in `w4`.
    unsafe {
        let mut bytes = x.bytes_for_w8.as_ptr().add(first * stride);
        for group in 0..num_groups {
            fetch_ahead(block, header + 16 * WIDTH);
            let mut dot = [_mm512_setzero_si512(); ROWS];
            for (row, dot) in dot.iter_mut().enumerate() {
                let half = ((first + row) * x.num_inputs + group * WIDTH) / 16;
                let mut x_sum = *x.sums.get_unchecked(half);
                if WIDTH == 32 {
                    x_sum += *x.sums.get_unchecked(half + 1);
                }
                *dot = _mm512_set1_epi32(-offset * x_sum);
            }
            for part in 0..WIDTH / 4 {
                let codes = _mm512_loadu_si512(block.add(header + 64 * part).cast());
                for row in 0..ROWS {
                    dot[row] = add_products(dot[row], codes, bytes.add(row * stride + 4 * part));
                }
            }
            let scale = halves(block);
            for row in 0..ROWS {
                let index = ((first + row) * x.num_inputs + group * WIDTH) / GROUP;
                let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scales.get_unchecked(index)));
                acc[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[row]), scaled, acc[row]);
                if HAS_MIN {
                    let x_total = _mm512_set1_ps(*x.totals.get_unchecked(index));
                    acc[row] = _mm512_fmadd_ps(halves(block.add(32)), x_total, acc[row]);
                }
            }
            block = block.add(header + 16 * WIDTH);
            bytes = bytes.add(WIDTH);
        }
    }
    acc
}

/// As `portable::tile`, of `W4`.
pub(super) fn tile_avx2(blocks: &[u8], x: &QuantizedRows, rows: Range<usize>, sums: &mut TileSums) {
    assert!(rows.len() <= sums.len() && rows.end * x.num_inputs <= x.bytes_for_w4.len());
    assert!(blocks.len() >= x.num_inputs / GROUP * Format::W4.group_bytes());
    let mut row = 0;
    while row < rows.len() {
        let step = match rows.len() - row {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        for half in 0..2 {
            let (first, sums) = (rows.start + row, &mut sums[row..]);
            // SAFETY: this function runs only where `Isa::available` found AVX2, FMA and F16C, and
            // the assertions above cover every address that the kernel reads.
            unsafe {
                match step {
                    4 => half_tile::<4>(blocks, x, first, half, sums),
                    2 => half_tile::<2>(blocks, x, first, half, sums),
                    _ => half_tile::<1>(blocks, x, first, half, sums),
                }
            }
        }
        row += step;
    }
}

/// Sums of outputs `8 * half..` of a tile of `W4`.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `blocks` holds a whole tile; rows `first..first + ROWS`
/// exist.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_tile<const ROWS: usize>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    half: usize,
    sums: &mut [[f32; TILE]],
) {
    let (num_groups, stride) = (x.num_inputs / GROUP, x.num_inputs);
    let mask = _mm256_set1_epi8(0x0f);
    let mut acc: [__m256; ROWS] = [_mm256_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over the tile's blocks, of which half `half` of each 64-byte line and
    // 32-byte row of scales is read; `bytes` over the rows' codes; scales and totals have one entry
    // a group; a tile's sums are sixteen floats.
    unsafe {
        let mut bytes = x.bytes_for_w4.as_ptr().add(first * stride);
        for group in 0..num_groups {
            let mut dot = [_mm256_setzero_si256(); ROWS];
            for part in 0..4 {
                let packed = _mm256_loadu_si256(block.add(64 + 32 * half + 64 * part).cast());
                let low = _mm256_and_si256(packed, mask);
                let high = _mm256_and_si256(_mm256_srli_epi32::<4>(packed), mask);
                for row in 0..ROWS {
                    let x = bytes.add(row * stride + 8 * part).cast::<i32>();
                    let (x_low, x_high) = (x.read_unaligned(), x.add(1).read_unaligned());
                    let low = _mm256_maddubs_epi16(low, _mm256_set1_epi32(x_low));
                    let high = _mm256_maddubs_epi16(high, _mm256_set1_epi32(x_high));
                    dot[row] = _mm256_add_epi16(dot[row], _mm256_add_epi16(low, high));
                }
            }
            let (scale, min) =
                (halves_8(block.add(16 * half)), halves_8(block.add(32 + 16 * half)));
            for row in 0..ROWS {
                let index = (first + row) * num_groups + group;
                let dot = _mm256_madd_epi16(dot[row], _mm256_set1_epi16(1));
                let scaled = _mm256_mul_ps(scale, _mm256_set1_ps(*x.scales.get_unchecked(index)));
                acc[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scaled, acc[row]);
                let x_total = _mm256_set1_ps(*x.totals.get_unchecked(index));
                acc[row] = _mm256_fmadd_ps(min, x_total, acc[row]);
            }
            block = block.add(Format::W4.group_bytes());
            bytes = bytes.add(GROUP);
        }
        for (acc, sums) in acc.iter().zip(sums) {
            _mm256_storeu_ps(sums[8 * half..].as_mut_ptr(), *acc);
        }
    }
}
