//! Tiles of integer weights with AVX-512 VNNI: sixteen outputs per register, `vpdpwssd` for two
//! inputs of each, the inputs broadcast by the instruction itself; with activations of 8 bits `vpdpbusd` for
//! four (`bytes.rs`).

use super::{MAX_ROWS, TileSums, bytes};
use crate::quantize::{Activations, QuantizedRows};
use crate::weight::{Format, GROUP, TILE};
use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi32,
    _mm512_storeu_ps,
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
    let num_rows = rows.len();
    assert!(num_rows <= MAX_ROWS && rows.end * x.num_inputs <= x.codes.len());
    if x.activations == Activations::Int8 {
        let num_bytes = [x.bytes_for_w4.len(), x.bytes_for_w8.len()];
        assert_eq!(num_bytes, [x.codes.len(); 2], "codes as bytes");
    }
    assert!(blocks.len() >= x.num_inputs / format.group() * format.group_bytes());
    let mut row = 0;
    while row < num_rows {
        let step = match num_rows - row {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (first, sums) = (rows.start + row, &mut sums[row..]);
        // SAFETY: this module runs only where `Isa::available` found AVX-512 VNNI, and the
        // assertions above cover every address that the kernel reads.
        unsafe {
            match step {
                8 => rows_at::<8>(format, blocks, x, first, sums),
                4 => rows_at::<4>(format, blocks, x, first, sums),
                2 => rows_at::<2>(format, blocks, x, first, sums),
                _ => rows_at::<1>(format, blocks, x, first, sums),
            }
        }
        row += step;
    }
}

/// # Safety
/// The machine has AVX-512 F, BW and VNNI; `blocks` holds a whole tile; rows
/// `first..first + ROWS` exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows_at<const ROWS: usize>(
    format: Format,
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    sums: &mut [[f32; TILE]],
) {
    // SAFETY: as promised by the caller.
    let acc = unsafe {
        macro_rules! w8 {
            ($width:literal, $has_min:literal, $offset:ident) => {
                match x.activations {
                    Activations::Int8 => {
                        bytes::w8::<ROWS, $width, $has_min>(blocks, x, first, $offset)
                    }
                    _ => w8::<ROWS, $width, $has_min>(blocks, x, first, $offset),
                }
            };
        }
        match format {
            Format::W8 { group: 16, offset, .. } => w8!(16, false, offset),
            Format::W8 { offset, has_min: false, .. } => w8!(32, false, offset),
            Format::W8 { offset, .. } => w8!(32, true, offset),
            _ if x.activations == Activations::Int8 => bytes::w4::<ROWS>(blocks, x, first),
            _ => w4::<ROWS>(blocks, x, first),
        }
    };
    for (acc, sums) in acc.iter().zip(sums) {
        // SAFETY: a tile's sums are sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
    }
}

/// Sixteen halves as floats.
///
/// # Safety
/// 32 bytes are readable at `source`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn halves(source: *const u8) -> __m512 {
    // SAFETY: as promised by the caller.
    let bits: __m256i = unsafe { _mm256_loadu_si256(source.cast()) };
    _mm512_cvtph_ps(bits)
}

/// `dot + w[0] · x[0] + w[1] · x[1]`, each a product of two 16-bit integers per lane, summed.
///
/// In assembly because the compiler splits the intrinsic into a broadcast, a multiplication and an
/// addition, which is three times the work where throughput counts.
///
/// # Safety
/// As [`rows_at`]; eight bytes are readable at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_products_2(mut dot: __m512i, w: [__m512i; 2], x: *const i32) -> __m512i {
    // SAFETY: reads eight bytes at `x`, as promised; touches nothing else.
    unsafe {
        asm!(
            "vpdpwssd {dot}, {w0}, dword ptr [{x}]{{1to16}}",
            "vpdpwssd {dot}, {w1}, dword ptr [{x} + 4]{{1to16}}",
            dot = inout(zmm_reg) dot,
            w0 = in(zmm_reg) w[0],
            w1 = in(zmm_reg) w[1],
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    dot
}

/// Asks memory for `num_bytes` that come a while after those at `block`, which may be beyond the weight: one
/// row multiplies faster than the processor fetches by itself.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fetch_ahead(block: *const u8, num_bytes: usize) {
    const AHEAD: usize = 2048;
    for line in (0..num_bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + line).cast());
    }
}

/// # Safety
/// As [`rows_at`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn w4<const ROWS: usize>(blocks: &[u8], x: &QuantizedRows, first: usize) -> [__m512; ROWS] {
    let (num_groups, stride) = (x.num_inputs / GROUP, x.num_inputs / 2);
    let mask = _mm512_set1_epi32(0x000f_000f);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over `num_groups` blocks of 320 bytes; `pairs` over the
    // rows' codes, two to a 32-bit word; scales and totals have one entry a group.
    unsafe {
        let mut pairs = x.codes.as_ptr().add(first * x.num_inputs).cast::<i32>();
        for group in 0..num_groups {
            fetch_ahead(block, 320);
            let mut dot = [_mm512_setzero_si512(); ROWS];
            for part in 0..4 {
                let packed = _mm512_loadu_si512(block.add(64 + 64 * part).cast());
                let w: [__m512i; 4] = [
                    _mm512_and_si512(packed, mask),
                    _mm512_and_si512(_mm512_srli_epi32::<4>(packed), mask),
                    _mm512_and_si512(_mm512_srli_epi32::<8>(packed), mask),
                    _mm512_and_si512(_mm512_srli_epi32::<12>(packed), mask),
                ];
                for row in 0..ROWS {
                    let x = pairs.add(row * stride + 4 * part);
                    dot[row] = add_products_2(dot[row], [w[0], w[1]], x);
                    dot[row] = add_products_2(dot[row], [w[2], w[3]], x.add(2));
                }
            }
            let (scale, min) = (halves(block), halves(block.add(32)));
            for row in 0..ROWS {
                let index = (first + row) * num_groups + group;
                let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scales.get_unchecked(index)));
                acc[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[row]), scaled, acc[row]);
                let x_total = _mm512_set1_ps(*x.totals.get_unchecked(index));
                acc[row] = _mm512_fmadd_ps(min, x_total, acc[row]);
            }
            block = block.add(320);
            pairs = pairs.add(GROUP / 2);
        }
    }
    acc
}

/// # Safety
/// As [`rows_at`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn w8<const ROWS: usize, const WIDTH: usize, const HAS_MIN: bool>(
    blocks: &[u8],
    x: &QuantizedRows,
    first: usize,
    offset: u8,
) -> [__m512; ROWS] {
    let (num_groups, stride) = (x.num_inputs / WIDTH, x.num_inputs / 2);
    let mask = _mm512_set1_epi32(0x00ff_00ff);
    let header = if HAS_MIN { 64 } else { 32 };
    let offset = i32::from(offset);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    let mut block = blocks.as_ptr();
    // SAFETY: `block` walks over `num_groups` blocks of `header + 16 * WIDTH` bytes;
    // the rest as in `w4`.
    unsafe {
        let mut pairs = x.codes.as_ptr().add(first * x.num_inputs).cast::<i32>();
        for group in 0..num_groups {
            fetch_ahead(block, header + 16 * WIDTH);
            let mut x_sums = [0i32; ROWS];
            for (row, x_sum) in x_sums.iter_mut().enumerate() {
                let half = ((first + row) * x.num_inputs + group * WIDTH) / 16;
                *x_sum = *x.sums.get_unchecked(half);
                if WIDTH == 32 {
                    *x_sum += *x.sums.get_unchecked(half + 1);
                }
            }
            let mut dot = [_mm512_setzero_si512(); ROWS];
            for (dot, x_sum) in dot.iter_mut().zip(&x_sums) {
                *dot = _mm512_set1_epi32(-offset * x_sum);
            }
            for part in 0..WIDTH / 4 {
                let packed = _mm512_loadu_si512(block.add(header + 64 * part).cast());
                let low = _mm512_and_si512(packed, mask);
                let high = _mm512_and_si512(_mm512_srli_epi32::<8>(packed), mask);
                for row in 0..ROWS {
                    let x = pairs.add(row * stride + 2 * part);
                    dot[row] = add_products_2(dot[row], [low, high], x);
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
            pairs = pairs.add(WIDTH / 2);
        }
    }
    acc
}
