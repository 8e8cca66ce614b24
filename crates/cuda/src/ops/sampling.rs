//! Logits → tokens, on the device: bias, penalties, bans, mask, temperature, top-k, top-p, min-p, the
//! draw, log probabilities. Kernels: `kernels/sampling/sample_scan.cu`, `sample_draw.cu`.
//!
//! In: logits [R, vocab] f32, which are changed, and a [`SamplingPlan`]: what a step's rows want, in one
//! array and one upload. Out: a [`Drawn`] a row. A row depends on itself and its `u` alone.

mod plan;
mod reference;

pub use plan::{RowRequest, SamplingPlan};
pub use reference::{ReferenceRow, reference};

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Buffer, Gpu};
use plan::{ROW_WORDS, SamplingRow};
use weft_types::TokenId;

/// Logits that one block of the first kernel reads. A slice depends on the vocabulary alone, so that
/// a row's sums do not change with the number of rows.
const SLICE: usize = 4096;
const MAX_SLICES: usize = 64;
const SCAN_THREADS: u32 = 256;
/// Most likely tokens that can be asked for.
pub const MAX_TOP: usize = 20;

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct SamplingParams {
    logits: DevicePtr,
    rows: DevicePtr,
    lists: DevicePtr,
    raw: DevicePtr,
    partials: DevicePtr,
    slice_tops: DevicePtr,
    drawn: DevicePtr,
    tops: DevicePtr,
    vocab: u32,
    stride: u32,
    num_slices: u32,
    pad: u32,
}

/// Bytes of the kernels' `SlicePartial`.
const PARTIAL_BYTES: usize = 32;

/// As in the kernel.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DrawnRow {
    token: TokenId,
    status: u32,
    logprob: f32,
    num_top: u32,
}

/// A token and ln of its probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TopToken {
    /// Which.
    pub token: TokenId,
    /// From the logits as the model gave them.
    pub logprob: f32,
}

/// Whether a row has a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawStatus {
    /// It has.
    Drawn,
    /// The model's logits hold a NaN or an infinity.
    NotFinite,
    /// Bans and mask leave nothing.
    NothingAllowed,
}

/// What a row got.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// 0 if there is none.
    pub token: TokenId,
    /// Whether there is one.
    pub status: DrawStatus,
    /// ln of the token's probability, if asked for, else 0.
    pub logprob: f32,
    /// The most likely tokens, as many as asked for.
    pub top: Vec<TopToken>,
}

/// Device memory of the sampler, at addresses that stay while a plan fits.
#[derive(Debug)]
pub struct SamplingBuffers {
    vocab: usize,
    max_rows: usize,
    /// Rows, then lists, as a plan lays them out.
    words: Buffer<u32>,
    raw: Buffer<f32>,
    partials: Buffer<u64>,
    slice_tops: Buffer<u64>,
    drawn: Buffer<DrawnRow>,
    tops: Buffer<TopToken>,
}

impl SamplingBuffers {
    /// For up to `max_rows` rows, and at first so many words of lists: two for a bias or a penalty,
    /// one for a ban, a bit for each token of a mask.
    ///
    /// # Errors
    /// When there is not enough memory.
    ///
    /// # Panics
    /// When the vocabulary has more than 262144 tokens.
    pub fn new(
        gpu: &Gpu,
        max_rows: usize,
        vocab: usize,
        list_words: usize,
    ) -> Result<Self, DriverError> {
        let num_slices = vocab.div_ceil(SLICE);
        assert!(
            (1..=MAX_SLICES).contains(&num_slices),
            "a vocabulary of {vocab} tokens is not between 1 and {}",
            MAX_SLICES * SLICE
        );
        let mut buffers = Self {
            vocab,
            max_rows,
            words: gpu.alloc(max_rows * ROW_WORDS + list_words.max(1))?,
            raw: gpu.alloc(list_words.max(1))?,
            partials: gpu.alloc(max_rows * num_slices * PARTIAL_BYTES / size_of::<u64>())?,
            slice_tops: gpu.alloc(max_rows * num_slices * MAX_TOP)?,
            drawn: gpu.alloc(max_rows)?,
            tops: gpu.alloc(max_rows * MAX_TOP)?,
        };
        // All rows are padding until a plan comes.
        buffers.words.write(0, &vec![0; max_rows * ROW_WORDS])?;
        Ok(buffers)
    }

    /// Brings a plan to the device. `true` if its lists needed more memory: what was recorded with
    /// [`sample`] then has old addresses and must be recorded anew.
    ///
    /// # Errors
    /// When there is not enough memory or the driver fails.
    ///
    /// # Panics
    /// When the plan is for another number of rows or another vocabulary.
    pub fn upload(&mut self, gpu: &Gpu, plan: &SamplingPlan) -> Result<bool, DriverError> {
        assert_eq!(
            (plan.max_rows(), plan.vocab()),
            (self.max_rows, self.vocab),
            "a plan for other buffers"
        );
        let words = plan.words();
        let moves = words.len() > self.words.len();
        if moves {
            let list_words = (words.len() - self.max_rows * ROW_WORDS).next_power_of_two();
            self.words = gpu.alloc(self.max_rows * ROW_WORDS + list_words)?;
            self.raw = gpu.alloc(list_words)?;
        }
        self.words.write(0, words)?;
        Ok(moves)
    }

    /// Where row `row` has its token (u32): for a next step that does not wait for the host.
    #[must_use]
    pub fn token(&self, row: usize) -> DevicePtr {
        self.drawn.at(row)
    }

    /// Waits for the device; what the first rows got.
    ///
    /// # Errors
    /// When the driver fails, or what the device did before.
    ///
    /// # Panics
    /// Beyond the last row, or at a row that no [`sample`] has drawn.
    pub fn read(&self, num_rows: usize) -> Result<Vec<Drawn>, DriverError> {
        let mut drawn = DrawnRows::default();
        self.read_into(num_rows, &mut drawn)?;
        Ok(drawn.iter().collect())
    }

    /// As [`Self::read`], into memory that is used again.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn read_into(&self, num_rows: usize, drawn: &mut DrawnRows) -> Result<(), DriverError> {
        let DrawnRows { rows, tops } = drawn;
        rows.resize(num_rows, DrawnRow::default());
        self.drawn.read_into(0, rows)?;
        tops.clear();
        if rows.iter().any(|row| row.num_top != 0) {
            tops.resize(num_rows * MAX_TOP, TopToken::default());
            self.tops.read_into(0, tops)?;
        }
        Ok(())
    }
}

/// What rows got, as it came from the device.
#[derive(Debug, Default)]
pub struct DrawnRows {
    rows: Vec<DrawnRow>,
    tops: Vec<TopToken>,
}

impl DrawnRows {
    /// Row by row.
    ///
    /// # Panics
    /// At a row that no [`sample`] has drawn.
    pub fn iter(&self) -> impl Iterator<Item = Drawn> {
        self.rows.iter().enumerate().map(|(index, row)| {
            let top = self.tops.iter().skip(index * MAX_TOP).take(row.num_top as usize);
            Drawn {
                token: row.token,
                status: match row.status {
                    0 => DrawStatus::Drawn,
                    1 => DrawStatus::NotFinite,
                    2 => DrawStatus::NothingAllowed,
                    other => unreachable!("the sampler has no status {other}"),
                },
                logprob: row.logprob,
                top: top.copied().collect(),
            }
        })
    }
}

/// Draws a token for each of `num_rows` rows of the plan that was uploaded; padding stays as it is.
/// `logits:[R, vocab]` f32, `stride` from row to row, changed in place.
///
/// # Safety
/// The logits are there, and each row's lists are those of its plan.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When there are more rows than the buffers have, or rows overlap.
pub unsafe fn sample(
    gpu: &Gpu,
    (logits, stride): (DevicePtr, usize),
    num_rows: usize,
    buffers: &SamplingBuffers,
) -> Result<(), DriverError> {
    let SamplingBuffers { vocab, max_rows, .. } = *buffers;
    assert!(num_rows <= max_rows, "{num_rows} rows of at most {max_rows}");
    assert!(stride >= vocab, "rows of {vocab} logits every {stride}");
    if num_rows == 0 {
        return Ok(());
    }
    let num_slices = vocab.div_ceil(SLICE);
    let params = SamplingParams {
        logits,
        rows: buffers.words.ptr(),
        lists: buffers.words.at(max_rows * ROW_WORDS),
        raw: buffers.raw.ptr(),
        partials: buffers.partials.ptr(),
        slice_tops: buffers.slice_tops.ptr(),
        drawn: buffers.drawn.ptr(),
        tops: buffers.tops.ptr(),
        vocab: vocab as u32,
        stride: stride as u32,
        num_slices: num_slices as u32,
        pad: 0,
    };
    const { assert!(size_of::<SamplingRow>() == ROW_WORDS * size_of::<u32>()) };
    let scan = Shape {
        grid: [num_slices as u32, num_rows as u32, 1],
        threads: SCAN_THREADS,
        shared_bytes: 0,
    };
    // One block has to read a whole row.
    let threads = if num_slices > 1 { 1024 } else { 256 };
    // SAFETY: the caller's promise; both kernels take this struct.
    unsafe {
        gpu.launch("sample_scan", scan, &params)?;
        gpu.launch("sample_draw", Shape::of(num_rows, threads), &params)
    }
}
