//! Low-rank updates of many adapters at once, each at its exact rank.
//!
//! `y_p[t,:] += sum_j scales[j] * (x[t,:] . A_p[j,:]) * B_p[j,:]`, `x:[T,K]`, `A:[rank,K]`,
//! `B:[rank,N]`, `y:[T,N]`, for up to three targets p that share x. Decode (BGMV):
//! `kernels/lora/bgmv_{shrink,expand}.cu`; prefill (SGMV): `kernels/lora/sgmv_{shrink,expand}.cu`; the embedding's
//! update beside them. What an adapter has where: [`crate::adapter_table`]; which rows:
//! [`crate::work_list`].

use crate::driver::{DevicePtr, DriverError, Shape};
use crate::gpu::{Gpu, HalfType};
use crate::work_list::MAX_PREFILL_ROWS;

/// Linears that may share their input.
pub const MAX_TARGETS: usize = 3;

/// Ranks of a block that shrinks, in decode and in prefill.
const DECODE_RANKS: usize = 4;
const PREFILL_RANKS: usize = 64;
/// Blocks of one piece and target that shrink: larger ranks are shared out among them.
const MAX_DECODE_BLOCKS: usize = 16;
/// Inputs of a block that shrinks in prefill, at least, and parts of K at most.
const MIN_SPLIT_INPUTS: usize = 1024;
const MAX_SPLITS: usize = 4;
/// Outputs of a block that expands.
const DECODE_OUTPUTS: usize = 128 * 8;
const PREFILL_OUTPUTS: usize = 2 * 128;
/// What the prefill kernels need in shared memory beside h.
const SHRINK_SHARED_BYTES: usize = 3 * 2 * 64 * 64 * 2;
const EXPAND_SHARED_BYTES: usize = 2 * 32 * 128 * 2 + 4 * 16 * 36 * 4 + 64 * 4;

/// The type of what is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutType {
    /// That of the activations.
    Half,
    /// The residual stream, logits.
    F32,
}

/// A linear to which updates are added.
#[derive(Clone, Copy, Debug)]
pub struct LoraTarget {
    /// Index of the site's record: see [`crate::adapter_table::site_index`].
    pub site: u32,
    /// N
    pub num_outputs: usize,
    /// `[T, N]`
    pub out: DevicePtr,
}

/// What targets share.
#[derive(Clone, Copy, Debug)]
pub struct LoraInput {
    /// `[num_pieces]` of [`crate::work_list::LoraPiece`].
    pub pieces: DevicePtr,
    /// With padding.
    pub num_pieces: usize,
    /// `[T, K]` of the activations' type; tokens, `[T]` u32, for the embedding.
    pub x: DevicePtr,
    /// K
    pub num_inputs: usize,
    /// T
    pub num_rows: usize,
    /// At least the rank of any adapter of the step.
    pub max_rank: usize,
    /// Scratch of [`scratch_len`] f32.
    pub h: DevicePtr,
}

/// f32 values of scratch for up to `num_rows`, `max_rank` and `max_inputs`.
#[must_use]
pub fn scratch_len(num_rows: usize, max_rank: usize, max_inputs: usize) -> usize {
    MAX_TARGETS * num_splits(max_inputs) * num_rows * h_width(max_rank)
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct BgmvShrinkParams {
    pieces: DevicePtr,
    x: DevicePtr,
    h: DevicePtr,
    sites: [u32; MAX_TARGETS],
    num_inputs: u32,
    num_rows: u32,
    h_width: u32,
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct BgmvExpandParams {
    pieces: DevicePtr,
    h: DevicePtr,
    out: [DevicePtr; MAX_TARGETS],
    sites: [u32; MAX_TARGETS],
    num_outputs: [u32; MAX_TARGETS],
    num_rows: u32,
    h_width: u32,
    out_dtype: u32,
    pad: u32,
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct SgmvShrinkParams {
    pieces: DevicePtr,
    x: DevicePtr,
    h: DevicePtr,
    sites: [u32; MAX_TARGETS],
    num_inputs: u32,
    num_rows: u32,
    h_width: u32,
    num_splits: u32,
    split_inputs: u32,
}

/// As in the kernels.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct SgmvExpandParams {
    pieces: DevicePtr,
    h: DevicePtr,
    out: [DevicePtr; MAX_TARGETS],
    sites: [u32; MAX_TARGETS],
    num_outputs: [u32; MAX_TARGETS],
    num_rows: u32,
    h_width: u32,
    num_splits: u32,
    h_bytes: u32,
    out_dtype: u32,
    pad: u32,
}

/// As in the kernel.
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
#[repr(C)]
struct LoraEmbeddingParams {
    pieces: DevicePtr,
    tokens: DevicePtr,
    h: DevicePtr,
    site: u32,
    h_width: u32,
}

/// Adds the updates of pieces of up to [`crate::work_list::MAX_DECODE_ROWS`].
///
/// # Safety
/// The memory is there, and so are the adapters of all pieces.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// With more than [`MAX_TARGETS`].
pub unsafe fn bgmv(
    gpu: &Gpu,
    (half, out): (HalfType, OutType),
    input: &LoraInput,
    targets: &[LoraTarget],
) -> Result<(), DriverError> {
    if input.num_pieces == 0 || targets.is_empty() || input.max_rank == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe {
        bgmv_shrink(gpu, half, input, targets)?;
        bgmv_expand(gpu, (half, out), input, targets)
    }
}

/// The first half of [`bgmv`]: `h[p,t,j]`.
pub(super) unsafe fn bgmv_shrink(
    gpu: &Gpu,
    half: HalfType,
    input: &LoraInput,
    targets: &[LoraTarget],
) -> Result<(), DriverError> {
    let params = BgmvShrinkParams {
        pieces: input.pieces,
        x: input.x,
        h: input.h,
        sites: sites(targets),
        num_inputs: input.num_inputs as u32,
        num_rows: input.num_rows as u32,
        h_width: h_width(input.max_rank) as u32,
    };
    let kernel = match half {
        HalfType::F16 => "bgmv_shrink_f16",
        HalfType::Bf16 => "bgmv_shrink_bf16",
    };
    let num_blocks = input.max_rank.div_ceil(DECODE_RANKS).min(MAX_DECODE_BLOCKS);
    let grid = [input.num_pieces, num_blocks, targets.len()].map(|n| n as u32);
    let shape = Shape { grid, threads: 256, shared_bytes: 0 };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, shape, &params) }
}

/// Adds the updates of pieces of up to [`MAX_PREFILL_ROWS`].
///
/// # Safety
/// The memory is there, and so are the adapters of all pieces.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// With more than [`MAX_TARGETS`].
pub unsafe fn sgmv(
    gpu: &Gpu,
    (half, out): (HalfType, OutType),
    input: &LoraInput,
    targets: &[LoraTarget],
) -> Result<(), DriverError> {
    if input.num_pieces == 0 || targets.is_empty() || input.max_rank == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe {
        sgmv_shrink(gpu, half, input, targets)?;
        sgmv_expand(gpu, (half, out), input, targets, num_splits(input.num_inputs))
    }
}

/// The first half of [`sgmv`]: `h[p,s,t,j]`, to be added up over parts s of K.
pub(super) unsafe fn sgmv_shrink(
    gpu: &Gpu,
    half: HalfType,
    input: &LoraInput,
    targets: &[LoraTarget],
) -> Result<(), DriverError> {
    let num_splits = num_splits(input.num_inputs);
    let params = SgmvShrinkParams {
        pieces: input.pieces,
        x: input.x,
        h: input.h,
        sites: sites(targets),
        num_inputs: input.num_inputs as u32,
        num_rows: input.num_rows as u32,
        h_width: h_width(input.max_rank) as u32,
        num_splits: num_splits as u32,
        split_inputs: split_inputs(input.num_inputs) as u32,
    };
    let kernel = match half {
        HalfType::F16 => "sgmv_shrink_f16",
        HalfType::Bf16 => "sgmv_shrink_bf16",
    };
    let num_blocks = input.max_rank.div_ceil(PREFILL_RANKS) * num_splits;
    let grid = [input.num_pieces, num_blocks, targets.len()].map(|n| n as u32);
    let shape = Shape { grid, threads: 128, shared_bytes: SHRINK_SHARED_BYTES as u32 };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, shape, &params) }
}

/// Which kernels a list of pieces is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Up to [`crate::work_list::MAX_DECODE_ROWS`] rows.
    Decode,
    /// Up to [`MAX_PREFILL_ROWS`] rows.
    Prefill,
}

/// `out[t,:] += scale * A[token[t],:] B`, `A:[vocab,rank]`, `B:[rank,hidden]`, out f32. The input's
/// `x` are tokens; `half` is the type in which tensor cores multiply.
///
/// # Safety
/// The memory is there, and so are the adapters of all pieces; tokens are in the vocabulary.
///
/// # Errors
/// When the driver fails.
pub unsafe fn embedding(
    gpu: &Gpu,
    (half, pieces): (HalfType, Pieces),
    input: &LoraInput,
    target: LoraTarget,
) -> Result<(), DriverError> {
    if input.num_pieces == 0 || input.max_rank == 0 {
        return Ok(());
    }
    let params = LoraEmbeddingParams {
        pieces: input.pieces,
        tokens: input.x,
        h: input.h,
        site: target.site,
        h_width: h_width(input.max_rank) as u32,
    };
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe {
        gpu.launch("lora_embedding", Shape::of(input.num_pieces, 256), &params)?;
        match pieces {
            Pieces::Decode => bgmv_expand(gpu, (half, OutType::F32), input, &[target]),
            Pieces::Prefill => sgmv_expand(gpu, (half, OutType::F32), input, &[target], 1),
        }
    }
}

/// The second half of [`bgmv`].
pub(super) unsafe fn bgmv_expand(
    gpu: &Gpu,
    (half, out): (HalfType, OutType),
    input: &LoraInput,
    targets: &[LoraTarget],
) -> Result<(), DriverError> {
    let params = BgmvExpandParams {
        pieces: input.pieces,
        h: input.h,
        out: outs(targets),
        sites: sites(targets),
        num_outputs: num_outputs(targets),
        num_rows: input.num_rows as u32,
        h_width: h_width(input.max_rank) as u32,
        out_dtype: out_dtype(half, out),
        pad: 0,
    };
    let shape = expand_shape(input, targets, DECODE_OUTPUTS);
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch("bgmv_expand", shape, &params) }
}

/// The second half of [`sgmv`], of h in so many parts.
pub(super) unsafe fn sgmv_expand(
    gpu: &Gpu,
    (half, out): (HalfType, OutType),
    input: &LoraInput,
    targets: &[LoraTarget],
    num_splits: usize,
) -> Result<(), DriverError> {
    let h_bytes = MAX_PREFILL_ROWS * (input.max_rank.next_multiple_of(16) + 8) * 2;
    let params = SgmvExpandParams {
        pieces: input.pieces,
        h: input.h,
        out: outs(targets),
        sites: sites(targets),
        num_outputs: num_outputs(targets),
        num_rows: input.num_rows as u32,
        h_width: h_width(input.max_rank) as u32,
        num_splits: num_splits as u32,
        h_bytes: h_bytes as u32,
        out_dtype: out_dtype(half, out),
        pad: 0,
    };
    let kernel = match half {
        HalfType::F16 => "sgmv_expand_f16",
        HalfType::Bf16 => "sgmv_expand_bf16",
    };
    let mut shape = expand_shape(input, targets, PREFILL_OUTPUTS);
    shape.shared_bytes = (h_bytes + EXPAND_SHARED_BYTES) as u32;
    // SAFETY: the caller's promise; the kernel takes this struct.
    unsafe { gpu.launch(kernel, shape, &params) }
}

/// As in the kernels.
fn out_dtype(half: HalfType, out: OutType) -> u32 {
    match (out, half) {
        (OutType::F32, _) => 0,
        (OutType::Half, HalfType::F16) => 1,
        (OutType::Half, HalfType::Bf16) => 2,
    }
}

fn expand_shape(input: &LoraInput, targets: &[LoraTarget], block_outputs: usize) -> Shape {
    let widest = targets.iter().map(|target| target.num_outputs).max().unwrap_or(0);
    let grid = [widest.div_ceil(block_outputs), input.num_pieces, targets.len()];
    Shape { grid: grid.map(|n| n as u32), threads: 128, shared_bytes: 0 }
}

/// Floats of a row of h: read four at a time.
pub(super) fn h_width(max_rank: usize) -> usize {
    max_rank.next_multiple_of(4)
}

/// Parts of K in prefill: of the width only, so that a row's sums are the same in any step.
pub(super) fn num_splits(num_inputs: usize) -> usize {
    num_inputs.div_ceil(split_inputs(num_inputs)).max(1)
}

fn split_inputs(num_inputs: usize) -> usize {
    num_inputs.div_ceil(MAX_SPLITS).next_multiple_of(64).max(MIN_SPLIT_INPUTS)
}

fn sites(targets: &[LoraTarget]) -> [u32; MAX_TARGETS] {
    each(targets, |target| target.site)
}

fn num_outputs(targets: &[LoraTarget]) -> [u32; MAX_TARGETS] {
    each(targets, |target| target.num_outputs as u32)
}

fn outs(targets: &[LoraTarget]) -> [DevicePtr; MAX_TARGETS] {
    each(targets, |target| target.out)
}

fn each<T: Copy + Default>(
    targets: &[LoraTarget],
    of: impl Fn(&LoraTarget) -> T,
) -> [T; MAX_TARGETS] {
    assert!(targets.len() <= MAX_TARGETS, "{} linears share an input", targets.len());
    let mut values = [T::default(); MAX_TARGETS];
    for (value, target) in values.iter_mut().zip(targets) {
        *value = of(target);
    }
    values
}

/// One row's update in f64: `a:[rank,K]`, `b:[rank,N]`, one scale for each rank.
#[must_use]
pub fn reference(x: &[f64], a: &[f64], b: &[f64], scales: &[f32]) -> Vec<f64> {
    let rank = scales.len();
    let num_outputs = b.len() / rank.max(1);
    let mut y = vec![0.0; num_outputs];
    for (j, (a, b)) in a.chunks(x.len()).zip(b.chunks(num_outputs)).enumerate() {
        let h = x.iter().zip(a).map(|(x, a)| x * a).sum::<f64>() * f64::from(scales[j]);
        y.iter_mut().zip(b).for_each(|(y, b)| *y += h * b);
    }
    y
}
