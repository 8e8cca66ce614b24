//! Tile registers: who has them, how they are configured, and the instructions on them.
//!
//! ```text
//! 0, 1  sums: of even groups; of high and of low halves, if not at once
//! 2, 3  sums of odd groups: one group's are stored while the next ones are made
//! 4, 5  codes of sixteen rows, or of eight
//! 6     weights
//! ```

use super::ROWS;
use crate::weight::CacheLine;
use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

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

/// This thread's tile registers; released when dropped.
pub(in super::super) struct TileRegisters {
    /// Rows, and codes of a row, that they are configured for; 0 before the first use.
    shape: Cell<(usize, usize)>,
    not_send: PhantomData<*const ()>,
}

/// The operand of `ldtilecfg` for so many rows of `width` codes: bytes of a row from 16 on, two each;
/// rows from 48 on.
const fn configuration(rows: usize, width: usize) -> CacheLine {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        let (row_bytes, num_rows) = match register {
            // Sums: rows of sixteen outputs.
            0..4 => (64, rows),
            // Codes: rows of bytes.
            4 | 5 => (width, rows),
            // Weights: four inputs a row.
            _ => (64, width / 4),
        };
        bytes[16 + 2 * register] = row_bytes as u8;
        bytes[48 + register] = num_rows as u8;
        register += 1;
    }
    CacheLine(bytes)
}

const fn configurations(rows: usize) -> [CacheLine; 3] {
    [configuration(rows, 16), configuration(rows, 32), configuration(rows, 64)]
}

/// For half a block of rows, and for a whole one.
static CONFIGURATIONS: [[CacheLine; 3]; 2] = [configurations(ROWS / 2), configurations(ROWS)];

impl TileRegisters {
    /// Only where [`is_available`]: `Isa::Amx` says so.
    pub(in super::super) fn of_this_thread() -> Self {
        assert!(is_available());
        Self { shape: Cell::new((0, 0)), not_send: PhantomData }
    }

    /// For half a block of rows or a whole one, of 16, 32 or 64 codes.
    pub(super) fn configure(&self, rows: usize, width: usize) {
        if self.shape.replace((rows, width)) != (rows, width) {
            let configuration = &CONFIGURATIONS[rows / ROWS][width / 32];
            // SAFETY: the instruction is there and permitted; it reads the 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) configuration, options(nostack)) };
        }
    }
}

impl Drop for TileRegisters {
    fn drop(&mut self) {
        if self.shape.get() == (0, 0) {
            return;
        }
        // SAFETY: gives up registers that nothing else in this program uses.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// As many multiplications as there can be, of numbers that nobody wants: to measure the processor.
pub(crate) fn multiply_tiles(rounds: usize) {
    let registers = TileRegisters::of_this_thread();
    registers.configure(ROWS, 64);
    for _ in 0..rounds {
        // SAFETY: this thread's registers are configured; no memory is touched.
        unsafe {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm6",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm6",
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Instructions on whole tiles. Only registers and what the operands point to are touched.
macro_rules! tiles {
    ([$($instruction:expr),* $(,)?] $($name:ident),*) => {
        asm!(
            $($instruction,)*
            $($name = in(reg) $name,)*
            line = in(reg) 64usize,
            options(nostack, preserves_flags),
        )
    };
}

/// How [`multiply`] multiplies: both halves of 12-bit codes at once, with 4-bit weights that are there
/// times sixteen, too.
pub(super) const TWICE: u8 = 0;
/// High and low halves of 12-bit codes on their own.
pub(super) const HALVES: u8 = 1;
/// 8-bit codes.
pub(super) const BYTES: u8 = 2;

/// [`multiply`] with one instruction, into register `$sum`.
macro_rules! multiply_at_once {
    ($instruction:literal, $sum:literal, $planes:ident, $weights:ident) => {
        tiles!([
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{planes} + {line}]",
            concat!("tilezero tmm", $sum),
            concat!($instruction, " tmm", $sum, ", tmm4, tmm6"),
        ] $planes, $weights)
    };
}

/// [`multiply`] of [`HALVES`], into registers `$high` and `$low`.
macro_rules! multiply_halves {
    ($high:literal, $low:literal, $planes:ident, $weights:ident) => {
        tiles!([
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{planes} + {line}]",
            concat!("tilezero tmm", $high),
            concat!("tdpbssd tmm", $high, ", tmm4, tmm6"),
            "tileloadd tmm5, [{planes} + {line} + 32]",
            concat!("tilezero tmm", $low),
            concat!("tdpbssd tmm", $low, ", tmm5, tmm6"),
        ] $planes, $weights)
    };
}

/// Products of the configured rows' codes with one group of a weight tile, into the registers of even or
/// odd groups: of [`HALVES`] two sums, else one.
///
/// # Safety
/// This thread's [`TileRegisters`] are configured; `weights` has a line for every four codes of a
/// row, and `planes` a line for every row, each from the group's first code on.
#[inline(always)]
pub(super) unsafe fn multiply<const KIND: u8>(
    is_even: bool,
    planes: *const u8,
    weights: *const CacheLine,
) {
    // SAFETY: as promised by the caller, the lines are there.
    unsafe {
        match (KIND, is_even) {
            (TWICE, true) => multiply_at_once!("tdpbsud", 0, planes, weights),
            (TWICE, false) => multiply_at_once!("tdpbsud", 2, planes, weights),
            (BYTES, true) => multiply_at_once!("tdpbssd", 0, planes, weights),
            (BYTES, false) => multiply_at_once!("tdpbssd", 2, planes, weights),
            (_, true) => multiply_halves!(0, 1, planes, weights),
            (_, false) => multiply_halves!(2, 3, planes, weights),
        }
    }
}

/// Writes what [`multiply`] made: but of [`HALVES`] only the first sixteen lines.
///
/// # Safety
/// This thread's [`TileRegisters`] are configured.
#[inline(always)]
pub(super) unsafe fn store<const KIND: u8>(is_even: bool, out: &mut [CacheLine; 2 * ROWS]) {
    let out = out.as_mut_ptr();
    // SAFETY: a register is sixteen lines, of which there are two times as many.
    unsafe {
        match (KIND != HALVES, is_even) {
            (true, true) => tiles!(["tilestored [{out} + {line}], tmm0"] out),
            (true, false) => tiles!(["tilestored [{out} + {line}], tmm2"] out),
            (false, true) => tiles!([
                "tilestored [{out} + {line}], tmm0",
                "tilestored [{out} + {line} + 1024], tmm1",
            ] out),
            (false, false) => tiles!([
                "tilestored [{out} + {line}], tmm2",
                "tilestored [{out} + {line} + 1024], tmm3",
            ] out),
        }
    }
}
