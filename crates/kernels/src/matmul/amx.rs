//! Tiles of integer weights with AMX: sixteen rows by sixteen outputs by thirty-two inputs in one
//! instruction, from ten rows up.
//!
//! AMX multiplies 8-bit integers. A 16-bit code is `256 * high + low`, so two products with the same
//! weights, of which the sums are exact, make the sums that AVX-512 computes, and the floating-point
//! operations after them are the same: equal bits.
//!
//! A weight tile is unpacked once for all rows, into the order that `tdpbssd` wants: four inputs of
//! an output side by side. Which four is set by the packing (see `weight.rs`): shifting the 4-bit
//! codes of inputs 0..8 apart leaves [`ORDER`], and all else follows that.

use super::avx512::halves;
use crate::pool::DisjointMut;
use crate::quantize::{self, QuantizedRows};
use crate::weight::{CacheLine, Format, GROUP, TILE};
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm256_setr_epi8, _mm256_shuffle_epi8,
    _mm256_storeu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_andnot_si512,
    _mm512_cvtepi16_epi8, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_load_si512,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srai_epi16,
    _mm512_srli_epi32, _mm512_store_si512, _mm512_storeu_ps, _mm512_sub_epi8,
};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

/// Rows of a block.
const ROWS: usize = quantize::ROWS_PER_BLOCK;
/// Groups of which the products are made before those of the first are scaled: stores of tile
/// registers are not forwarded to loads, so they need time to reach the cache.
const AHEAD: usize = 2;
/// Groups whose products are kept: more than `AHEAD`, and a power of two.
const RING: usize = 4;
const MIN_ROWS: usize = quantize::MIN_AMX_ROWS;

/// Whether this processor has AMX with 8-bit integers and the system lets us use it.
pub(crate) fn is_available() -> bool {
    use std::sync::OnceLock;
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Linux gives tile registers to processes that ask for them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission; passes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Order in which the codes of eight inputs lie in a line: those of the first four bytes of each
/// output, then those of the second four.
const ORDER: [i8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// High and low bytes of each group of a row's codes, in [`ORDER`]: one line a group, in the block of
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

/// # Safety
/// The machine has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn split_group(codes: &[i16; GROUP], plane: &mut CacheLine) {
    let [a, b, c, d, e, f, g, h] = ORDER;
    let [i, j, k, l, m, n, o, p] = ORDER.map(|index| index + 8);
    let order = _mm256_setr_epi8(
        a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, a, b, c, d, e, f, g, h, i, j, k, l, m, n,
        o, p,
    );
    let out = plane.0.as_mut_ptr();
    // SAFETY: a group is 64 bytes to read, and a line 64 bytes to write.
    unsafe {
        let codes = _mm512_loadu_si512(codes.as_ptr().cast());
        let high = _mm512_cvtepi16_epi8(_mm512_srai_epi16::<8>(codes));
        let low = _mm512_cvtepi16_epi8(codes);
        _mm256_storeu_si256(out.cast(), _mm256_shuffle_epi8(high, order));
        _mm256_storeu_si256(out.add(32).cast(), _mm256_shuffle_epi8(low, order));
    }
}

/// This thread's tile registers; released when dropped.
pub(super) struct TileRegisters {
    /// Inputs of a group that they are configured for; 0 before the first use.
    width: Cell<usize>,
    not_send: PhantomData<*const ()>,
}

/// The operand of `ldtilecfg` for groups of `width` inputs: bytes of a row from 16 on, two each;
/// rows from 48 on.
const fn configuration(width: usize) -> CacheLine {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        let (row_bytes, num_rows) = match register {
            // Sums: sixteen rows of sixteen outputs.
            0..4 => (64, ROWS),
            // Codes: sixteen rows of bytes.
            4 | 5 => (width, ROWS),
            // Weights: four inputs a row.
            _ => (64, width / 4),
        };
        bytes[16 + 2 * register] = row_bytes as u8;
        bytes[48 + register] = num_rows as u8;
        register += 1;
    }
    CacheLine(bytes)
}

static CONFIGURATIONS: [CacheLine; 2] = [configuration(16), configuration(32)];

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            unpacked: Vec::new(),
            products: [Products::ZERO; RING],
            sums: [[0.0; TILE]; ROWS],
        })
    };
}

/// What a thread reuses.
struct Scratch {
    /// A weight tile.
    unpacked: Vec<CacheLine>,
    products: [Products; RING],
    sums: [[f32; TILE]; ROWS],
}

impl TileRegisters {
    /// Only where [`is_available`]: `Isa::Amx` says so.
    pub(super) fn of_this_thread() -> Self {
        assert!(is_available());
        Self { width: Cell::new(0), not_send: PhantomData }
    }

    fn configure(&self, width: usize) {
        if self.width.replace(width) != width {
            let configuration = &CONFIGURATIONS[width / 32];
            // SAFETY: the instruction is there and permitted; it reads the 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) configuration, options(nostack)) };
        }
    }

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
        if !format.is_integer() || num_rows < MIN_ROWS {
            return 0;
        }
        self.configure(format.group());
        assert!(blocks.len() >= x.num_inputs / format.group() * format.group_bytes());
        let num_scales = num_rows.div_ceil(ROWS) * x.num_inputs / GROUP;
        assert!(x.blocks.len() >= num_scales && x.planes.len() >= num_scales * ROWS);
        SCRATCH.with_borrow_mut(|Scratch { unpacked, products, sums }| {
            unpacked.resize(x.num_inputs / 4, CacheLine([0; 64]));
            // SAFETY: AVX-512 comes with AMX; the assertion above covers what is read.
            unsafe { unpack_into(format, blocks, unpacked) };
            // Memory works while we multiply.
            for line in next.chunks(64) {
                // SAFETY: a hint, and the address is valid.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
            }
            let mut first = 0;
            while num_rows - first >= MIN_ROWS {
                // SAFETY: this thread's registers are configured for the format; by the
                // assertions there are sixteen rows from `first`.
                unsafe { block(format, blocks, unpacked, x, first, products, sums) };
                let end = num_rows.min(first + ROWS);
                for (row, sums) in (first..end).zip(&*sums) {
                    store(row, sums);
                }
                first = end;
            }
            first
        })
    }
}

impl Drop for TileRegisters {
    fn drop(&mut self) {
        if self.width.get() == 0 {
            return;
        }
        // SAFETY: gives up registers that nothing else in this program uses.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// # Safety
/// The machine has AVX-512 F and BW; `blocks` has a whole tile of as many inputs as `out` has room for.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_into(format: Format, blocks: &[u8], out: &mut [CacheLine]) {
    let nibbles = _mm512_set1_epi32(0x0f0f_0f0f);
    let even = _mm512_set1_epi32(0x00ff_00ff);
    let header = format.group_bytes() - code_bytes(format);
    let offset = match format {
        Format::W8 { offset, .. } => _mm512_set1_epi8(offset.cast_signed()),
        _ => _mm512_setzero_si512(),
    };
    let lines_per_group = format.group() / 4;
    for (group, lines) in out.chunks_exact_mut(lines_per_group).enumerate() {
        // SAFETY: within the tile, as promised, and within `lines`, which are aligned.
        unsafe {
            let codes = blocks.as_ptr().add(group * format.group_bytes() + header);
            let lines = lines.as_mut_ptr().cast::<__m512i>();
            for pair in 0..lines_per_group / 2 {
                let (first, second) = if format == Format::W4 {
                    let packed = _mm512_loadu_si512(codes.add(64 * pair).cast());
                    (
                        _mm512_and_si512(packed, nibbles),
                        _mm512_and_si512(_mm512_srli_epi32::<4>(packed), nibbles),
                    )
                } else {
                    // Inputs 0 2 1 3 and 4 6 5 7 become 0 4 1 5 and 2 6 3 7.
                    let low = _mm512_loadu_si512(codes.add(128 * pair).cast());
                    let high = _mm512_loadu_si512(codes.add(128 * pair + 64).cast());
                    let odd_of_low = _mm512_srli_epi32::<8>(_mm512_andnot_si512(even, low));
                    let even_of_high = _mm512_slli_epi32::<8>(_mm512_and_si512(high, even));
                    (
                        _mm512_sub_epi8(
                            _mm512_or_si512(_mm512_and_si512(low, even), even_of_high),
                            offset,
                        ),
                        _mm512_sub_epi8(
                            _mm512_or_si512(odd_of_low, _mm512_andnot_si512(even, high)),
                            offset,
                        ),
                    )
                };
                _mm512_store_si512(lines.add(2 * pair), first);
                _mm512_store_si512(lines.add(2 * pair + 1), second);
            }
        }
    }
}

/// Bytes of the codes of a group of a tile.
fn code_bytes(format: Format) -> usize {
    if format == Format::W4 { TILE * GROUP / 2 } else { TILE * format.group() }
}

/// # Safety
/// The machine has AVX-512 F; [`TileRegisters`] are configured; `unpacked` and `blocks` hold the
/// tile; `x` has room for sixteen rows from `first`.
unsafe fn block(
    format: Format,
    blocks: &[u8],
    unpacked: &[CacheLine],
    x: &QuantizedRows,
    first: usize,
    products: &mut [Products; RING],
    sums: &mut [[f32; TILE]; ROWS],
) {
    let bytes = format.group_bytes();
    // SAFETY: as promised by the caller.
    unsafe {
        match format {
            Format::W8 { group: 16, .. } => {
                block_of::<16, false>(blocks, bytes, unpacked, x, first, products, sums);
            }
            Format::W8 { has_min: false, .. } => {
                block_of::<GROUP, false>(blocks, bytes, unpacked, x, first, products, sums);
            }
            _ => block_of::<GROUP, true>(blocks, bytes, unpacked, x, first, products, sums),
        }
    }
}

/// Runs a block of code once for each row, as a constant: so that all sums stay in registers.
macro_rules! for_each_row {
    ($row:ident, $body:block) => {
        for_each_row!($row, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($row:ident, $body:block, $($index:literal)*) => {
        $({
            const $row: usize = $index;
            $body
        })*
    };
}

/// # Safety
/// As [`block`].
#[target_feature(enable = "avx512f")]
unsafe fn block_of<const WIDTH: usize, const HAS_MIN: bool>(
    blocks: &[u8],
    group_bytes: usize,
    unpacked: &[CacheLine],
    x: &QuantizedRows,
    first: usize,
    products: &mut [Products; RING],
    sums: &mut [[f32; TILE]; ROWS],
) {
    let num_groups = x.num_inputs / WIDTH;
    // Activations have a scale for 32 inputs, whatever the weights have.
    let start = first / ROWS * (x.num_inputs / GROUP);
    let mut acc = [_mm512_setzero_ps(); ROWS];
    // SAFETY: `blocks`, `unpacked` and `x` hold all groups of the tile and of sixteen rows.
    unsafe {
        for ahead in 0..num_groups + AHEAD {
            if ahead < num_groups {
                let planes = x.planes.as_ptr().add((start + ahead * WIDTH / GROUP) * ROWS);
                let planes = planes.cast::<u8>().add(ahead * WIDTH % GROUP);
                let weights = unpacked.as_ptr().add(ahead * WIDTH / 4);
                multiply(planes, weights, &mut products[ahead % RING]);
            }
            let Some(group) = ahead.checked_sub(AHEAD) else { continue };
            let products = products[group % RING].0.as_ptr().cast::<__m512i>();
            let block = blocks.as_ptr().add(group * group_bytes);
            let scale: __m512 = halves(block);
            let min = if HAS_MIN { halves(block.add(32)) } else { _mm512_setzero_ps() };
            let x = x.blocks.get_unchecked(start + group * WIDTH / GROUP);
            for_each_row!(ROW, {
                let high = _mm512_load_si512(products.add(ROW));
                let low = _mm512_load_si512(products.add(ROWS + ROW));
                let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[ROW]));
                acc[ROW] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scaled, acc[ROW]);
                if HAS_MIN {
                    let x_total = _mm512_set1_ps(x.totals[ROW]);
                    acc[ROW] = _mm512_fmadd_ps(min, x_total, acc[ROW]);
                }
            });
        }
    }
    for (acc, sums) in acc.iter().zip(sums) {
        // SAFETY: a tile's sums are sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
    }
}

/// Sixteen rows of high, then of low products.
#[repr(C)]
struct Products([CacheLine; 2 * ROWS]);

impl Products {
    const ZERO: Self = Self([CacheLine([0; 64]); 2 * ROWS]);
}

/// Products of sixteen rows and one group of a weight tile.
///
/// # Safety
/// [`TileRegisters`] are configured; `weights` has a line for four inputs, and `planes` sixteen
/// lines, each from the group's first input on.
#[inline(always)]
unsafe fn multiply(planes: *const u8, weights: *const CacheLine, out: &mut Products) {
    // SAFETY: registers 4 and 5 read a part of sixteen lines, 6 whole lines; 0 and 1 write sixteen
    // lines each, which is all of `out`.
    unsafe {
        asm!(
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{planes} + {line}]",
            "tilezero tmm0",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{planes} + {line} + 32]",
            "tilezero tmm1",
            "tdpbusd tmm1, tmm5, tmm6",
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + 1024], tmm1",
            planes = in(reg) planes,
            weights = in(reg) weights,
            line = in(reg) 64usize,
            out = in(reg) std::ptr::from_mut(out),
            options(nostack, preserves_flags),
        );
    }
}
