//! Activations as integers of 12 or 8 bits, for multiplication with integer weight codes.
//!
//! Groups of 32 inputs of a row share one scale: `x[k] ≈ scale * q[k]`. With 12 bits the error is at
//! most 2^-12 of the group's largest value, about that of half precision, so what the weights lost
//! stays the only loss. Twelve bits are what AMX multiplies with 4-bit weights in one instruction. With
//! 8 bits it is 2^-8, and instructions multiply twice as many. A row is quantized from itself alone.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::Isa;
use crate::isa::multiversion;
use crate::pool::{DisjointMut, ThreadPool};
use crate::weight::{CacheLine, GROUP};
use std::fmt;

/// What activations are when they meet weights of integer codes (`W4`, `W8`). Other weights are always
/// multiplied in single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// 12-bit integers.
    #[default]
    Int12,
    /// 8-bit integers.
    Int8,
    /// Single precision, as weights become then: the reference.
    F32,
}

impl Activations {
    /// The largest code. Of 12 bits `16 * 127 + 7`, so that both halves of a code are signed bytes.
    fn limit(self) -> f32 {
        if self == Self::Int8 { 127.0 } else { 2039.0 }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int12 => "int12",
            Self::Int8 => "int8",
            Self::F32 => "f32",
        })
    }
}

/// Rows that AMX multiplies at once.
pub(crate) const ROWS_PER_BLOCK: usize = 16;
/// With fewer rows than this AVX-512 is as fast as AMX, and nothing is prepared for it.
pub(crate) const MIN_AMX_ROWS: usize = 5;

/// Of a group of sixteen rows: their scales, then their totals.
pub(crate) const BLOCK_SCALES: usize = 2 * ROWS_PER_BLOCK;

/// Quantized rows. The buffers are reused from call to call. Those of single precision hold nothing: then
/// the rows themselves are multiplied.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    pub(crate) activations: Activations,
    /// `[num_rows, num_inputs]`
    pub(crate) codes: Vec<i16>,
    /// `[num_rows, num_inputs / 32]`
    pub(crate) scales: Vec<f32>,
    /// Sums of codes over 16 inputs: `[num_rows, num_inputs / 16]`
    pub(crate) sums: Vec<i32>,
    /// `scale * sum` of each group, what a weight's min is multiplied with:
    /// `[num_rows, num_inputs / 32]`
    pub(crate) totals: Vec<f32>,
    /// Codes of 8 bits as bytes, where the instruction set multiplies those: `[num_rows, num_inputs]`,
    /// each eight in the order of 4-bit weights.
    pub(crate) bytes_for_w4: Vec<i8>,
    /// The same in the order of 8-bit weights.
    pub(crate) bytes_for_w8: Vec<i8>,
    /// The codes as AMX reads them, if it does: of sixteen rows a line each, then what follows in the
    /// rows. A line is one group of 12 bits, `[num_rows / 16, num_inputs / 32, 16]`, or two of 8 bits.
    /// Or as NEON's dot products do, without blocks of rows: `[num_rows, num_inputs / 32]`
    pub(crate) planes: Vec<CacheLine>,
    /// Scales and totals once more, those of sixteen rows together, for AMX:
    /// `[num_rows / 16, num_inputs / 32, 2, 16]`
    pub(crate) block_scales: Vec<f32>,
    pub(crate) num_inputs: usize,
}

impl QuantizedRows {
    /// Rows that will be these.
    #[must_use]
    pub fn new(activations: Activations) -> Self {
        Self { activations, ..Self::default() }
    }

    /// Whether weights of integer codes are multiplied with these, not with the rows themselves.
    pub(crate) fn is_integer(&self) -> bool {
        self.activations != Activations::F32
    }

    /// Quantizes `x:[num_rows, num_inputs]`.
    ///
    /// # Panics
    /// When `num_inputs` is not a multiple of 32 or does not divide the length of `x`.
    pub fn quantize(&mut self, pool: &ThreadPool, isa: Isa, x: &[f32], num_inputs: usize) {
        assert!(num_inputs.is_multiple_of(GROUP) && x.len().is_multiple_of(num_inputs));
        let num_rows = x.len() / num_inputs;
        self.num_inputs = num_inputs;
        if !self.is_integer() {
            return;
        }
        let limit = self.activations.limit();
        self.codes.resize(x.len(), 0);
        self.scales.resize(x.len() / GROUP, 0.0);
        self.sums.resize(x.len() / 16, 0);
        self.totals.resize(x.len() / GROUP, 0.0);
        // AMX reads whole blocks of rows, and what it makes of those beyond the last is dropped.
        let for_amx = isa == Isa::Amx && num_rows >= MIN_AMX_ROWS;
        let num_blocks = if for_amx { num_rows.div_ceil(ROWS_PER_BLOCK) } else { 0 };
        self.block_scales.resize(num_blocks * num_inputs / GROUP * BLOCK_SCALES, 0.0);
        let for_dot = isa == Isa::NeonDot;
        let num_lines = match for_dot {
            true => x.len() / GROUP,
            false => num_blocks * self.lines_per_row() * ROWS_PER_BLOCK,
        };
        self.planes.resize(num_lines, CacheLine([0; 64]));
        let are_bytes = self.activations == Activations::Int8
            && !matches!(isa, Isa::Portable)
            && cfg!(target_arch = "x86_64");
        let num_bytes = if are_bytes { x.len() } else { 0 };
        self.bytes_for_w4.resize(num_bytes, 0);
        self.bytes_for_w8.resize(num_bytes, 0);
        let bytes_for_w4 = DisjointMut::new(&mut self.bytes_for_w4);
        let bytes_for_w8 = DisjointMut::new(&mut self.bytes_for_w8);
        let codes = DisjointMut::new(&mut self.codes);
        let scales = DisjointMut::new(&mut self.scales);
        let sums = DisjointMut::new(&mut self.sums);
        let totals = DisjointMut::new(&mut self.totals);
        let planes = DisjointMut::new(&mut self.planes);
        let block_scales = DisjointMut::new(&mut self.block_scales);
        pool.run(num_rows, 8, |rows| {
            let range = rows.start * num_inputs..rows.end * num_inputs;
            let groups = range.start / GROUP..range.end / GROUP;
            let halves = range.start / 16..range.end / 16;
            // SAFETY: each row is in one claimed range.
            let (codes, scales, sums, totals) = unsafe {
                (
                    codes.slice(range.clone()),
                    scales.slice(groups.clone()),
                    sums.slice(halves),
                    totals.slice(groups.clone()),
                )
            };
            let x = &x[range.clone()];
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these are only made where the machine has AVX-512.
                Isa::Avx512 | Isa::Amx => unsafe {
                    avx512::quantize_groups(limit, x, codes, scales, sums, totals);
                },
                _ => quantize_groups(isa, limit, x, codes, scales, sums, totals),
            }
            #[cfg(target_arch = "x86_64")]
            if are_bytes {
                // SAFETY: as above; the machine has AVX2.
                unsafe {
                    let (w4, w8) = (bytes_for_w4.slice(range.clone()), bytes_for_w8.slice(range));
                    crate::matmul::bytes::narrow(codes, w4, w8);
                    if for_amx {
                        for (row, bytes) in rows.clone().zip(w4.chunks_exact(num_inputs)) {
                            crate::matmul::amx::place_row(bytes, row, planes);
                        }
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            if for_amx {
                let codes = codes.chunks_exact(num_inputs);
                let groups_per_row = num_inputs / GROUP;
                let (scales, totals) =
                    (scales.chunks_exact(groups_per_row), totals.chunks_exact(groups_per_row));
                for (((row, codes), scales), totals) in rows.zip(codes).zip(scales).zip(totals) {
                    let block = row / ROWS_PER_BLOCK * groups_per_row;
                    // SAFETY: as above: each line and each element is one row's.
                    unsafe {
                        if !are_bytes {
                            crate::matmul::amx::split_row(codes, row, planes);
                        }
                        for (group, (&scale, &total)) in scales.iter().zip(totals).enumerate() {
                            let index = (block + group) * BLOCK_SCALES + row % ROWS_PER_BLOCK;
                            block_scales.write(index, scale);
                            block_scales.write(index + ROWS_PER_BLOCK, total);
                        }
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            if for_dot {
                // SAFETY: as above, and dot products come with NEON.
                unsafe { crate::matmul::neon::split(codes, planes.slice(groups)) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (planes, block_scales, bytes_for_w4, bytes_for_w8);
        });
    }

    /// Lines of a row in `planes`.
    pub(crate) fn lines_per_row(&self) -> usize {
        self.num_inputs.div_ceil(if self.activations == Activations::Int8 { 64 } else { GROUP })
    }
}

multiversion! {
    fn quantize_groups(limit: f32, x: &[f32], codes: &mut [i16], scales: &mut [f32], sums: &mut [i32], totals: &mut [f32])
        = quantize_groups_body
}

#[inline(always)]
fn quantize_groups_body<const FMA: bool>(
    limit: f32,
    x: &[f32],
    codes: &mut [i16],
    scales: &mut [f32],
    sums: &mut [i32],
    totals: &mut [f32],
) {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
    for (index, (x, codes)) in groups.enumerate() {
        let (low, high) = x.split_at(GROUP / 2);
        let mut lanes = [0.0f32; GROUP / 2];
        for lane in 0..GROUP / 2 {
            let (low, high) = (low[lane].abs(), high[lane].abs());
            lanes[lane] = if low > high { low } else { high };
        }
        let largest = crate::lanes::max_lanes(lanes);
        let scale = largest / limit;
        let inverse = if largest > 0.0 { limit / largest } else { 0.0 };
        scales[index] = scale;
        let mut wide = [0i32; GROUP];
        for k in 0..GROUP {
            let code = (x[k] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
            wide[k] = i32::from(code as i16);
        }
        for k in 0..GROUP {
            codes[k] = wide[k] as i16;
        }
        let (low, high) = wide.split_at(GROUP / 2);
        sums[2 * index] = low.iter().sum();
        sums[2 * index + 1] = high.iter().sum();
        totals[index] = scale * (sums[2 * index] + sums[2 * index + 1]) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_within_half_a_step_and_sums_are_exact() {
        let x: Vec<f32> = (0..5 * 96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let integers = [Activations::Int12, Activations::Int8];
        for (isa, activations) in
            Isa::available().into_iter().flat_map(|isa| integers.map(|one| (isa, one)))
        {
            let mut rows = QuantizedRows::new(activations);
            rows.quantize(&ThreadPool::new(2), isa, &x, 96);
            assert!(rows.codes.iter().all(|code| f32::from(code.abs()) <= activations.limit()));
            for (i, &value) in x.iter().enumerate() {
                let scale = rows.scales[i / GROUP];
                assert!((f32::from(rows.codes[i]) * scale - value).abs() <= scale * 0.501);
            }
            for (index, &sum) in rows.sums.iter().enumerate() {
                let codes = &rows.codes[index * 16..index * 16 + 16];
                assert_eq!(sum, codes.iter().map(|&code| i32::from(code)).sum::<i32>());
            }
        }
    }

    #[test]
    fn every_set_makes_the_same_numbers() {
        let x: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.71).sin() * (i % 7) as f32).collect();
        for activations in [Activations::Int12, Activations::Int8] {
            let of = |isa| {
                let mut rows = QuantizedRows::new(activations);
                rows.quantize(&ThreadPool::new(1), isa, &x, 64);
                let bits =
                    |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
                (rows.codes, rows.sums, bits(&rows.scales), bits(&rows.totals))
            };
            for isa in Isa::available() {
                assert_eq!(of(isa), of(Isa::Portable), "{isa}, {activations}");
            }
        }
    }

    #[test]
    fn zeros_and_infinities_stay_in_their_row() {
        let mut x = vec![1.0; 64];
        x[3] = f32::INFINITY;
        x[5] = f32::NAN;
        x[32..].fill(0.0);
        for isa in Isa::available() {
            let mut rows = QuantizedRows::default();
            rows.quantize(&ThreadPool::new(1), isa, &x, 32);
            assert_eq!(rows.scales[1], 0.0);
            assert!(rows.codes[32..].iter().all(|&code| code == 0));
        }
    }
}
