//! Tiles of integer weights with AMX: sixteen rows by sixteen outputs by thirty-two inputs in one
//! instruction; or eight rows, where there are no more.
//!
//! AMX multiplies 8-bit integers. A 12-bit code is `16 * high + low`, and the sums of products are
//! exact, so they are the sums that AVX-512 computes, and the floating-point operations after them
//! are the same: equal bits. Sixteen times a 4-bit weight is 8 bits, too: one instruction multiplies
//! the high halves with that, the low halves with the weight, and adds. Wider weights need two.
//!
//! Codes of 8 bits are bytes already: one instruction for any weights.
//!
//! A weight tile is unpacked once for all rows, into the order that the instructions want: four
//! inputs of an output side by side. Which four is set by the packing (see `weight.rs`): shifting
//! the 4-bit codes of inputs 0..8 apart leaves [`ORDER`], and all else follows that.

mod registers;

pub(super) use registers::TileRegisters;
use registers::{BYTES, HALVES, TWICE};
pub(crate) use registers::{is_available, multiply_tiles};

use super::avx512::halves;
use super::bytes::shuffle;
use crate::pool::DisjointMut;
use crate::quantize::{self, Activations, BLOCK_SCALES, QuantizedRows};
use crate::weight::{CacheLine, Format, GROUP, TILE};
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm256_shuffle_epi8, _mm256_storeu_si256,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_andnot_si512,
    _mm512_cvtepi16_epi8, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_load_si512, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi16,
    _mm512_slli_epi32, _mm512_srai_epi16, _mm512_srli_epi32, _mm512_store_si512, _mm512_storeu_ps,
    _mm512_sub_epi8, _mm512_sub_epi16,
};
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a block.
const ROWS: usize = quantize::ROWS_PER_BLOCK;
/// Groups of which the products are made before those of the first are scaled, so that tiles and
/// vectors work at once: a multiplication takes fifty cycles, and then its sums go through memory.
const AHEAD: usize = 2;
/// Of a weight tile that is unpacked at once: together with the rows' codes it stays in the first-level cache.
const MAX_UNPACKED_LINES: usize = 16 * 24;
/// Fewer rows than this are faster without AMX. With 8-bit activations AVX-512 is faster up to ten rows
/// where weights are in the cache, but in a model they are not, and nothing fetches the next tile there.
fn min_rows(format: Format) -> usize {
    // Groups of sixteen fill half a tile.
    if format.group() == 16 { 10 } else { quantize::MIN_AMX_ROWS }
}

/// Order in which the codes of eight inputs lie in a line: those of the first four bytes of each
/// output, then those of the second four.
pub(super) const ORDER: [i8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// High and low halves of each group of a row's codes, in [`ORDER`]: one line a group, in the block of
/// sixteen rows that `row` belongs to.
///
/// # Safety
/// The machine has AMX; no other thread accesses the lines of this row.
///
/// # Panics
/// When the row is not whole groups or has no room in `planes`.
pub(crate) unsafe fn split_row(codes: &[i16], row: usize, planes: DisjointMut<'_, CacheLine>) {
    let (groups, rest) = codes.as_chunks::<GROUP>();
    assert!(rest.is_empty(), "a row is whole groups");
    for (group, codes) in groups.iter().enumerate() {
        let line = (row / ROWS * groups.len() + group) * ROWS + row % ROWS;
        // SAFETY: as promised by the caller; AVX-512 comes with AMX.
        unsafe { split_group(codes, &mut planes.slice(line..line + 1)[0]) };
    }
}

/// Each 64 of a row's 8-bit codes, in [`ORDER`] already: one line each, in the block of sixteen rows that
/// `row` belongs to.
///
/// # Safety
/// No other thread accesses the lines of this row.
///
/// # Panics
/// When the row has no room in `planes`.
pub(crate) unsafe fn place_row(bytes: &[i8], row: usize, planes: DisjointMut<'_, CacheLine>) {
    let first = row / ROWS * bytes.len().div_ceil(64);
    for (index, bytes) in bytes.chunks(64).enumerate() {
        let line = (first + index) * ROWS + row % ROWS;
        // SAFETY: as promised by the caller.
        let line = unsafe { &mut planes.slice(line..line + 1)[0].0 };
        for (to, from) in line.iter_mut().zip(bytes) {
            *to = from.cast_unsigned();
        }
    }
}

/// # Safety
/// The machine has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn split_group(codes: &[i16; GROUP], plane: &mut CacheLine) {
    let order = shuffle(ORDER);
    let out = plane.0.as_mut_ptr();
    // SAFETY: a group is 64 bytes to read, and a line 64 bytes to write.
    unsafe {
        let codes = _mm512_loadu_si512(codes.as_ptr().cast());
        // From -8 to 7, so that both halves are signed.
        let high = _mm512_srai_epi16::<4>(_mm512_add_epi16(codes, _mm512_set1_epi16(8)));
        let low = _mm512_cvtepi16_epi8(_mm512_sub_epi16(codes, _mm512_slli_epi16::<4>(high)));
        let high = _mm512_cvtepi16_epi8(high);
        _mm256_storeu_si256(out.cast(), _mm256_shuffle_epi8(high, order));
        _mm256_storeu_si256(out.add(32).cast(), _mm256_shuffle_epi8(low, order));
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            unpacked: Vec::new(),
            products: Products::ZERO,
            sums: Vec::new(),
        })
    };
}

/// What a thread reuses.
struct Scratch {
    /// Some groups of a weight tile.
    unpacked: Vec<CacheLine>,
    products: Products,
    /// Of each block of rows.
    sums: Vec<[[f32; TILE]; ROWS]>,
}

impl TileRegisters {
    /// Sums of a weight tile for the leading rows, as many as this is faster for; returns their
    /// number and calls `store` for each. `next` is the tile after it, empty if there is none:
    /// it is fetched also where another thread may take it, which measured 4 % faster.
    pub(super) fn tile(
        &self,
        format: Format,
        blocks: &[u8],
        next: &[u8],
        x: &QuantizedRows,
        num_rows: usize,
        store: impl Fn(usize, &[f32; TILE]),
    ) -> usize {
        let min_rows = min_rows(format);
        if num_rows < min_rows {
            return 0;
        }
        let lines_per_group = lines_per_group(format, x.activations);
        assert!(blocks.len() >= x.num_inputs / format.group() * format.group_bytes());
        let num_blocks = num_rows.div_ceil(ROWS);
        assert!(
            x.block_scales.len() >= num_blocks * x.num_inputs / GROUP * BLOCK_SCALES
                && x.planes.len() >= num_blocks * x.lines_per_row() * ROWS
        );
        let num_groups = x.num_inputs / format.group();
        let num_parts = (num_groups * lines_per_group).div_ceil(MAX_UNPACKED_LINES);
        let groups_per_part = num_groups.div_ceil(num_parts.max(1)).max(1);
        SCRATCH.with_borrow_mut(|Scratch { unpacked, products, sums }| {
            unpacked.resize(groups_per_part * lines_per_group, CacheLine([0; 64]));
            sums.resize(sums.len().max(num_blocks), [[0.0; TILE]; ROWS]);
            let mut first = 0;
            for start in (0..num_groups).step_by(groups_per_part) {
                let groups = start..(start + groups_per_part).min(num_groups);
                let unpacked = &mut unpacked[..groups.len() * lines_per_group];
                let part = &blocks[start * format.group_bytes()..];
                // SAFETY: AVX-512 comes with AMX; the assertion above covers what is read.
                unsafe { unpack_into(format, part, lines_per_group, unpacked) };
                let is_last = groups.end == num_groups;
                let mut work =
                    Work { format, blocks, next, unpacked, groups, x, first: 0, products };
                first = 0;
                while num_rows - first >= min_rows {
                    let is_half = num_rows - first <= ROWS / 2;
                    self.configure(if is_half { ROWS / 2 } else { ROWS }, 4 * lines_per_group);
                    let sums = &mut sums[first / ROWS];
                    work.first = first;
                    // SAFETY: this thread's registers are configured for the format and the rows; by
                    // the assertions there are sixteen rows from `first`.
                    unsafe {
                        if is_half {
                            block::<{ ROWS / 2 }>(&mut work, sums);
                        } else {
                            block::<ROWS>(&mut work, sums);
                        }
                    }
                    work.next = &[];
                    let end = num_rows.min(first + ROWS);
                    if is_last {
                        for (row, sums) in (first..end).zip(&*sums) {
                            store(row, sums);
                        }
                    }
                    first = end;
                }
            }
            first
        })
    }
}

/// Groups of a weight tile, and the rows that they meet.
struct Work<'a> {
    format: Format,
    /// The whole tile.
    blocks: &'a [u8],
    /// The whole next one, or nothing.
    next: &'a [u8],
    /// The groups alone.
    unpacked: &'a [CacheLine],
    groups: Range<usize>,
    x: &'a QuantizedRows,
    /// The first of the rows.
    first: usize,
    products: &'a mut Products,
}

/// Lines of a group of an unpacked tile, each of four codes of sixteen outputs: of 4-bit weights for
/// 12-bit activations once times sixteen and once as they are.
fn lines_per_group(format: Format, activations: Activations) -> usize {
    match (format, activations) {
        (Format::W4, Activations::Int12) => 2 * GROUP / 4,
        _ => format.group() / 4,
    }
}

/// # Safety
/// The machine has AVX-512 F and BW; `blocks` has a whole tile of as many inputs as `out` has room for.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_into(
    format: Format,
    blocks: &[u8],
    lines_per_group: usize,
    out: &mut [CacheLine],
) {
    let low_nibbles = _mm512_set1_epi8(0x0f);
    let even = _mm512_set1_epi32(0x00ff_00ff);
    let header = format.group_bytes() - code_bytes(format);
    let offset = match format {
        Format::W8 { offset, .. } => _mm512_set1_epi8(offset.cast_signed()),
        _ => _mm512_setzero_si512(),
    };
    let is_twice = format == Format::W4 && lines_per_group == 2 * GROUP / 4;
    for (group, lines) in out.chunks_exact_mut(lines_per_group).enumerate() {
        // SAFETY: within the tile, as promised, and within `lines`, which are aligned.
        unsafe {
            let codes = blocks.as_ptr().add(group * format.group_bytes() + header);
            let lines = lines.as_mut_ptr().cast::<__m512i>();
            if format == Format::W4 {
                let times_sixteen = lines;
                let lines = lines.add(if is_twice { GROUP / 4 } else { 0 });
                for pair in 0..GROUP / 8 {
                    let packed = _mm512_loadu_si512(codes.add(64 * pair).cast());
                    let first = _mm512_and_si512(packed, low_nibbles);
                    let second = _mm512_andnot_si512(low_nibbles, packed);
                    _mm512_store_si512(lines.add(2 * pair), first);
                    _mm512_store_si512(lines.add(2 * pair + 1), _mm512_srli_epi32::<4>(second));
                    if is_twice {
                        let first = _mm512_slli_epi32::<4>(first);
                        _mm512_store_si512(times_sixteen.add(2 * pair), first);
                        _mm512_store_si512(times_sixteen.add(2 * pair + 1), second);
                    }
                }
                continue;
            }
            for pair in 0..lines_per_group / 2 {
                // Inputs 0 2 1 3 and 4 6 5 7 become 0 4 1 5 and 2 6 3 7.
                let low = _mm512_loadu_si512(codes.add(128 * pair).cast());
                let high = _mm512_loadu_si512(codes.add(128 * pair + 64).cast());
                let odd_of_low = _mm512_srli_epi32::<8>(_mm512_andnot_si512(even, low));
                let even_of_high = _mm512_slli_epi32::<8>(_mm512_and_si512(high, even));
                let first = _mm512_or_si512(_mm512_and_si512(low, even), even_of_high);
                let second = _mm512_or_si512(odd_of_low, _mm512_andnot_si512(even, high));
                _mm512_store_si512(lines.add(2 * pair), _mm512_sub_epi8(first, offset));
                _mm512_store_si512(lines.add(2 * pair + 1), _mm512_sub_epi8(second, offset));
            }
        }
    }
}

/// Bytes of the codes of a group of a tile.
fn code_bytes(format: Format) -> usize {
    if format == Format::W4 { TILE * GROUP / 2 } else { TILE * format.group() }
}

/// Adds the groups' products to `sums`, or begins with them if they are the tile's first.
///
/// # Safety
/// The machine has AVX-512 F; [`TileRegisters`] are configured; `unpacked` holds the groups and `blocks` the
/// tile; `x` has room for sixteen rows from `first`.
unsafe fn block<const NUM_ROWS: usize>(work: &mut Work<'_>, sums: &mut [[f32; TILE]; ROWS]) {
    macro_rules! block_of {
        ($width:expr, $has_min:literal, $kind:expr) => {
            block_of::<{ $width }, $has_min, { $kind }, NUM_ROWS>(work, sums)
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        match (work.format, work.x.activations == Activations::Int8) {
            (Format::W4, false) => block_of!(GROUP, true, TWICE),
            (Format::W4, true) => block_of!(GROUP, true, BYTES),
            (Format::W8 { group: 16, .. }, false) => block_of!(16, false, HALVES),
            (Format::W8 { group: 16, .. }, true) => block_of!(16, false, BYTES),
            (Format::W8 { has_min: false, .. }, false) => block_of!(GROUP, false, HALVES),
            (Format::W8 { has_min: false, .. }, true) => block_of!(GROUP, false, BYTES),
            (_, false) => block_of!(GROUP, true, HALVES),
            (_, true) => block_of!(GROUP, true, BYTES),
        }
    }
}

/// Runs a block of code once for each of so many rows, as a constant: so that all sums stay in
/// registers.
macro_rules! for_each_row {
    ($row:ident, $num_rows:ident, $body:block) => {
        for_each_row!($row, $num_rows, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($row:ident, $num_rows:ident, $body:block, $($index:literal)*) => {
        $({
            const $row: usize = $index;
            if $row < $num_rows {
                $body
            }
        })*
    };
}

/// # Safety
/// As [`block`].
#[target_feature(enable = "avx512f")]
unsafe fn block_of<
    const WIDTH: usize,
    const HAS_MIN: bool,
    const KIND: u8,
    const NUM_ROWS: usize,
>(
    work: &mut Work<'_>,
    sums: &mut [[f32; TILE]; ROWS],
) {
    let Work { format, blocks, next, unpacked, ref groups, x, first, ref mut products } = *work;
    let (group_bytes, num_groups) = (format.group_bytes(), groups.len());
    // Activations have a scale for 32 inputs, whatever the weights have.
    let start = first / ROWS * (x.num_inputs / GROUP);
    let first_line = first / ROWS * x.lines_per_row();
    let codes_per_line = if KIND == BYTES { 64 } else { GROUP };
    let lines = if KIND == TWICE { WIDTH / 2 } else { WIDTH / 4 };
    let mut acc = [_mm512_setzero_ps(); ROWS];
    if groups.start > 0 {
        for (acc, sums) in acc.iter_mut().zip(&*sums).take(NUM_ROWS) {
            // SAFETY: a tile's sums are sixteen floats.
            *acc = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
        }
    }
    // SAFETY: `blocks`, `unpacked` and `x` hold all groups of the tile and of sixteen rows.
    unsafe {
        for ahead in 0..num_groups + AHEAD {
            if ahead < num_groups {
                let group = groups.start + ahead;
                let line = first_line + group * WIDTH / codes_per_line;
                let planes = x.planes.as_ptr().add(line * ROWS).cast::<u8>();
                let planes = planes.add(group * WIDTH % codes_per_line);
                let weights = unpacked.as_ptr().add(ahead * lines);
                registers::multiply::<KIND>(ahead % 2 == 0, planes, weights);
                // Memory works while we multiply, a few lines at a time: it takes no more.
                let next = next.get(group * group_bytes..).unwrap_or_default();
                for line in next.chunks(64).take(group_bytes.div_ceil(64)) {
                    _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
                }
            }
            if (1..=num_groups).contains(&ahead) {
                let group = ahead - 1;
                registers::store::<KIND>(group % 2 == 0, &mut products.0[group % 2]);
            }
            let Some(group) = ahead.checked_sub(AHEAD) else { continue };
            let products = products.0[group % 2].as_ptr().cast::<__m512i>();
            let group = groups.start + group;
            let block = blocks.as_ptr().add(group * group_bytes);
            let scale: __m512 = halves(block);
            let min = if HAS_MIN { halves(block.add(32)) } else { _mm512_setzero_ps() };
            let scales = start + group * WIDTH / GROUP;
            let scales = x.block_scales.as_ptr().add(scales * BLOCK_SCALES);
            for_each_row!(ROW, NUM_ROWS, {
                let mut dot = _mm512_load_si512(products.add(ROW));
                if KIND == HALVES {
                    let low = _mm512_load_si512(products.add(ROWS + ROW));
                    dot = _mm512_add_epi32(_mm512_slli_epi32::<4>(dot), low);
                }
                let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(*scales.add(ROW)));
                acc[ROW] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scaled, acc[ROW]);
                if HAS_MIN {
                    let x_total = _mm512_set1_ps(*scales.add(ROWS + ROW));
                    acc[ROW] = _mm512_fmadd_ps(min, x_total, acc[ROW]);
                }
            });
        }
    }
    for (acc, sums) in acc.iter().zip(sums).take(NUM_ROWS) {
        // SAFETY: a tile's sums are sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
    }
}

/// Products of the last two groups: of each, sixteen rows of whole codes, or of high and then of
/// low halves.
///
/// One page, so that no two lines have the same place in their pages: a load waits for an earlier
/// store to such a line, as if it were the same.
#[repr(C, align(4096))]
struct Products([[CacheLine; 2 * ROWS]; 2]);

impl Products {
    const ZERO: Self = Self([[CacheLine([0; 64]); 2 * ROWS]; 2]);
}
