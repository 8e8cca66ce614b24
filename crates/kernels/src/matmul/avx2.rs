//! Tiles of integer weights with AVX2: a tile as two halves of eight outputs, `vpmaddwd` for two
//! inputs of each.

use super::TileSums;
use crate::quantize::QuantizedRows;
use crate::weight::{Format, GROUP};
use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_srli_epi32, _mm256_storeu_ps,
};
use std::ops::Range;

/// As `portable::tile`.
pub(super) fn tile(
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    rows: Range<usize>,
    sums: &mut TileSums,
) {
    assert!(rows.len() <= sums.len() && rows.end * x.num_inputs <= x.codes.len());
    assert!(blocks.len() >= x.num_inputs / format.group() * format.group_bytes());
    let mut row = 0;
    while row < rows.len() {
        let step = match rows.len() - row {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        for half in 0..2 {
            let first = rows.start + row;
            // SAFETY: this module runs only where `Isa::available` found AVX2, FMA and F16C, and
            // the assertions above cover every address that the kernel reads.
            unsafe {
                match step {
                    4 => store(half, rows_at::<4>(format, blocks, x, first, half), row, sums),
                    2 => store(half, rows_at::<2>(format, blocks, x, first, half), row, sums),
                    _ => store(half, rows_at::<1>(format, blocks, x, first, half), row, sums),
                }
            }
        }
        row += step;
    }
}

/// # Safety
/// The machine has AVX.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store<const ROWS: usize>(
    half: usize,
    acc: [__m256; ROWS],
    row: usize,
    sums: &mut TileSums,
) {
    for (acc, sums) in acc.iter().zip(&mut sums[row..]) {
        // SAFETY: each half of a tile's sums is eight floats.
        unsafe { _mm256_storeu_ps(sums[8 * half..].as_mut_ptr(), *acc) };
    }
}

/// Eight halves as floats.
///
/// # Safety
/// 16 bytes are readable at `source`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn halves(source: *const u8) -> __m256 {
    // SAFETY: as promised by the caller.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(source.cast()) })
}

/// Sums of outputs `8 * half..` of a tile.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `blocks` holds a whole tile; rows `first..first + ROWS`
/// exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows_at<const ROWS: usize>(
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    half: usize,
) -> [__m256; ROWS] {
    let (width, offset, has_min) = match format {
        Format::W8 { group, offset, has_min } => (group, i32::from(offset), has_min),
        _ => (GROUP, 0, true),
    };
    let header = if has_min { 64 } else { 32 };
    let (num_groups, stride) = (x.num_inputs / width, x.num_inputs / 2);
    let mut acc = [_mm256_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over the tile's blocks, of which half `half` of each
    // 64-byte line and 32-byte row of scales is read; `pairs` walks over the rows' codes, two to
    // a 32-bit word; scales and sums have one entry for 32 and 16 inputs.
    unsafe {
        let mut pairs = x.codes.as_ptr().add(first * x.num_inputs).cast::<i32>();
        for group in 0..num_groups {
            let mut x_sums = [0i32; ROWS];
            let mut dot = [_mm256_set1_epi32(0); ROWS];
            for row in 0..ROWS {
                let index = ((first + row) * x.num_inputs + group * width) / 16;
                x_sums[row] = *x.sums.get_unchecked(index);
                if width == GROUP {
                    x_sums[row] += *x.sums.get_unchecked(index + 1);
                }
                dot[row] = _mm256_set1_epi32(-offset * x_sums[row]);
            }
            let codes = block.add(header + 32 * half);
            if format == Format::W4 {
                let mask = _mm256_set1_epi32(0x000f_000f);
                for part in 0..4 {
                    let packed = _mm256_loadu_si256(codes.add(64 * part).cast());
                    let w = [
                        _mm256_and_si256(packed, mask),
                        _mm256_and_si256(_mm256_srli_epi32::<4>(packed), mask),
                        _mm256_and_si256(_mm256_srli_epi32::<8>(packed), mask),
                        _mm256_and_si256(_mm256_srli_epi32::<12>(packed), mask),
                    ];
                    add_products(&mut dot, &w, pairs.add(4 * part), stride);
                }
            } else {
                let mask = _mm256_set1_epi32(0x00ff_00ff);
                for part in 0..width / 4 {
                    let packed = _mm256_loadu_si256(codes.add(64 * part).cast());
                    let w = [
                        _mm256_and_si256(packed, mask),
                        _mm256_and_si256(_mm256_srli_epi32::<8>(packed), mask),
                    ];
                    add_products(&mut dot, &w, pairs.add(2 * part), stride);
                }
            }
            let scale = halves(block.add(16 * half));
            for row in 0..ROWS {
                let index = ((first + row) * x.num_inputs + group * width) / GROUP;
                let x_scale = *x.scales.get_unchecked(index);
                let scaled = _mm256_mul_ps(scale, _mm256_set1_ps(x_scale));
                acc[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[row]), scaled, acc[row]);
                if has_min {
                    let min = halves(block.add(32 + 16 * half));
                    let x_total = _mm256_set1_ps(*x.totals.get_unchecked(index));
                    acc[row] = _mm256_fmadd_ps(min, x_total, acc[row]);
                }
            }
            block = block.add(format.group_bytes());
            pairs = pairs.add(width / 2);
        }
    }
    acc
}

/// `dot[row] += w[i] * x[row][i]` over pairs of 16-bit integers.
///
/// # Safety
/// The machine has AVX2; `x` is readable for `PAIRS` words in each of `ROWS` rows of `stride`
/// words.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<const ROWS: usize, const PAIRS: usize>(
    dot: &mut [__m256i; ROWS],
    w: &[__m256i; PAIRS],
    x: *const i32,
    stride: usize,
) {
    for (row, dot) in dot.iter_mut().enumerate() {
        for (pair, w) in w.iter().enumerate() {
            // SAFETY: as promised by the caller.
            let x = unsafe { x.add(row * stride + pair).read_unaligned() };
            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(*w, _mm256_set1_epi32(x)));
        }
    }
}
