//! Gains and shifts of adapters: vectors as wide as a linear's input or output.
//!
//! `out[t,:] = g ⊙ x[t,:]` before the base, `y[t,:] = g ⊙ y[t,:] + s` after it.   g, s:[N] f32

use super::PlacedAdapter;
use crate::Isa;
use crate::isa::multiversion;
use crate::lanes::fma;
use crate::pool::{DisjointMut, ThreadPool};
use weft_types::{PackedMatrix, PackedVectors, Site};

/// Numbers of a work item.
const NUMBERS_PER_ITEM: usize = 16 * 1024;

/// `[N]` f32 in an adapter's pages, little-endian.
pub type PlacedVector<'a> = &'a [[u8; 4]];

/// [`PackedVectors`] on the device.
#[derive(Clone, Copy, Debug)]
pub struct PlacedVectors<'a> {
    packed: &'a PackedVectors,
    adapter: &'a PlacedAdapter,
}

impl PlacedAdapter {
    /// The vectors at `site`, if the adapter has any.
    #[must_use]
    pub fn vectors_at(&self, site: Site) -> Option<PlacedVectors<'_>> {
        Some(PlacedVectors { packed: self.layout().vectors_at(site)?, adapter: self })
    }

    /// A matrix of one row of f32.
    pub(super) fn vector<'a>(&'a self, packed: &'a PackedMatrix) -> PlacedVector<'a> {
        self.matrix(packed).row(0).as_chunks().0
    }
}

impl<'a> PlacedVectors<'a> {
    /// `[K]`: what the base's input is multiplied with.
    #[must_use]
    pub fn input(&self) -> Option<PlacedVector<'a>> {
        self.packed.input.as_ref().map(|packed| self.adapter.vector(packed))
    }

    /// `[N]`: what the output is multiplied with.
    #[must_use]
    pub fn output(&self) -> Option<PlacedVector<'a>> {
        self.packed.output.as_ref().map(|packed| self.adapter.vector(packed))
    }

    /// `[N]`: what is added at last.
    #[must_use]
    pub fn shift(&self) -> Option<PlacedVector<'a>> {
        self.packed.shift.as_ref().map(|packed| self.adapter.vector(packed))
    }

    /// Whether the output is other than that of base and low-rank update.
    #[must_use]
    pub fn changes_output(&self) -> bool {
        self.packed.output.is_some() || self.packed.shift.is_some()
    }
}

/// `out[t,:] = gain ⊙ x[t,:]` of rows as wide as the gain.
///
/// # Panics
/// When widths do not agree.
pub fn scale_rows_into(
    pool: &ThreadPool,
    isa: Isa,
    gain: PlacedVector<'_>,
    x: &[f32],
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "rows of x and out");
    each_row(pool, gain.len(), out, |start, out| {
        scale_row(isa, gain, &x[start..start + out.len()], out);
    });
}

/// `y[t,:] = gain ⊙ y[t,:] + shift`; what is not there is 1, or 0.
///
/// # Panics
/// When widths do not agree.
pub fn gain_and_shift(pool: &ThreadPool, isa: Isa, vectors: &PlacedVectors<'_>, y: &mut [f32]) {
    let (gain, shift) = (vectors.output(), vectors.shift());
    let Some(width) = gain.or(shift).map(<[_]>::len) else { return };
    assert!(shift.is_none_or(|shift| shift.len() == width), "gain and shift of one width");
    each_row(pool, width, y, |_, y| match (gain, shift) {
        (Some(gain), Some(shift)) => gain_shift_row(isa, gain, shift, y),
        (Some(gain), None) => gain_row(isa, gain, y),
        (None, Some(shift)) => shift_row(isa, shift, y),
        (None, None) => {}
    });
}

/// `y += x`, each number rounded once: as if the base had added to y.
///
/// # Panics
/// When lengths differ.
pub fn add_rows(pool: &ThreadPool, isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let y = DisjointMut::new(y);
    pool.run(x.len(), NUMBERS_PER_ITEM, |range| {
        // SAFETY: claimed ranges are disjoint.
        add(isa, &x[range.clone()], unsafe { y.slice(range) });
    });
}

/// Calls `body(index of its first number, row)` for each row of `width`.
fn each_row(
    pool: &ThreadPool,
    width: usize,
    rows: &mut [f32],
    body: impl Fn(usize, &mut [f32]) + Sync,
) {
    let num_rows = rows.len() / width.max(1);
    assert_eq!(rows.len(), num_rows * width, "whole rows");
    let out = DisjointMut::new(rows);
    pool.run(num_rows, NUMBERS_PER_ITEM.div_ceil(width.max(1)), |range| {
        for row in range {
            // SAFETY: each row is claimed once.
            body(row * width, unsafe { out.slice(row * width..(row + 1) * width) });
        }
    });
}

multiversion! {
    fn scale_row(gain: PlacedVector<'_>, x: &[f32], out: &mut [f32]) = scale_row_body
}

#[inline(always)]
fn scale_row_body<const FMA: bool>(gain: PlacedVector<'_>, x: &[f32], out: &mut [f32]) {
    for ((out, &x), gain) in out.iter_mut().zip(x).zip(gain) {
        *out = x * f32::from_le_bytes(*gain);
    }
}

multiversion! {
    fn gain_row(gain: PlacedVector<'_>, y: &mut [f32]) = gain_row_body
}

#[inline(always)]
fn gain_row_body<const FMA: bool>(gain: PlacedVector<'_>, y: &mut [f32]) {
    for (y, gain) in y.iter_mut().zip(gain) {
        *y *= f32::from_le_bytes(*gain);
    }
}

multiversion! {
    /// `y += shift`
    pub(super) fn shift_row(shift: PlacedVector<'_>, y: &mut [f32]) = shift_row_body
}

#[inline(always)]
fn shift_row_body<const FMA: bool>(shift: PlacedVector<'_>, y: &mut [f32]) {
    for (y, shift) in y.iter_mut().zip(shift) {
        *y += f32::from_le_bytes(*shift);
    }
}

multiversion! {
    fn gain_shift_row(gain: PlacedVector<'_>, shift: PlacedVector<'_>, y: &mut [f32])
        = gain_shift_row_body
}

#[inline(always)]
fn gain_shift_row_body<const FMA: bool>(
    gain: PlacedVector<'_>,
    shift: PlacedVector<'_>,
    y: &mut [f32],
) {
    for ((y, gain), shift) in y.iter_mut().zip(gain).zip(shift) {
        *y = fma::<FMA>(*y, f32::from_le_bytes(*gain), f32::from_le_bytes(*shift));
    }
}

multiversion! {
    fn add(x: &[f32], y: &mut [f32]) = add_body
}

#[inline(always)]
fn add_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
