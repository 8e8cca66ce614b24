//! Norms, the gated activation, gather and the embedding, which work on rows one by one.

use super::Work;
use super::inputs::{Deviation, Rng, Sets, from_halves, precision, to_f64};
use super::session::{Case, Session};
use crate::driver::DriverError;
use crate::gpu::{Gpu, HalfType};
use crate::ops::{embedding as embed_op, norm, rows};
use crate::weights::{CudaLinear, WeightFormat};
use weft_kernels::pack::Packer;
use weft_kernels::weight::Format;

/// Rows of the table against which the embedding is checked: all would take the host too long.
const CHECKED_TOKENS: usize = 256;
const EPS: f32 = 1e-5;

/// RMSNorm of the residual stream, and of heads.
pub(super) fn norms(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, width) = (session.gpu.clone(), session.half, session.spec.hidden_size);
    for num_rows in session.all_rows() {
        let (op, shape) = ("RMSNorm", format!("[{num_rows}, {width}]"));
        if !session.wants(op, &shape) {
            continue;
        }
        let num_bytes = num_rows * width * (size_of::<f32>() + size_of::<u16>());
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(1);
        let (x, weight) = (rng.floats(num_rows * width), rng.floats(width));
        let device_weight = gpu.upload(&weight)?;
        let device_x = Sets::new(&gpu, num_sets, &x)?;
        let out = Sets::<u16>::empty(&gpu, num_sets, x.len())?;
        let tolerance = 2.0 * precision(half);
        let work = Work::bytes(num_bytes);
        session.measure(
            Case { op: op.into(), shape, tolerance, work, num_sets },
            |set| {
                let operands = (device_x.ptr(set), device_weight.ptr(), out.ptr(set));
                // SAFETY: the buffers are as long as the shapes say.
                unsafe { norm::rms_norm(&gpu, half, operands, [num_rows, width], EPS) }
            },
            || {
                let want = norm::reference(&to_f64(&x), &weight, EPS);
                Ok(Deviation::of(&from_halves(half, &out.read()?), &want))
            },
        )?;
    }
    head_norms(session)
}

fn head_norms(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    for num_rows in session.all_rows() {
        let (num_heads, width) = (num_rows * spec.num_heads, spec.head_dim);
        let (op, shape) =
            ("RMSNorm of heads", format!("[{num_rows}, {}, {width}]", spec.num_heads));
        if !session.wants(op, &shape) {
            continue;
        }
        let num_bytes = 2 * num_heads * width * size_of::<u16>();
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(2);
        let (x, weight) = (rng.halves(half, num_heads * width), rng.floats(width));
        let device_weight = gpu.upload(&weight)?;
        let device_x = Sets::new(&gpu, num_sets, &x)?;
        let tolerance = 2.0 * precision(half);
        let work = Work::bytes(num_bytes);
        session.measure(
            Case { op: op.into(), shape, tolerance, work, num_sets },
            |set| {
                let operands = (device_x.ptr(set), device_weight.ptr());
                // SAFETY: the buffers are as long as the shapes say.
                unsafe { norm::head_norm(&gpu, half, operands, [num_heads, width], EPS) }
            },
            || {
                let want = norm::reference(&from_halves(half, &x), &weight, EPS);
                Ok(Deviation::of(&from_halves(half, &device_x.read()?), &want))
            },
        )?;
    }
    Ok(())
}

/// The gated activation.
pub(super) fn silu_mul(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, width) = (session.gpu.clone(), session.half, session.spec.intermediate_size);
    for num_rows in session.all_rows() {
        let (op, shape) = ("gated activation", format!("[{num_rows}, {width}]"));
        if !session.wants(op, &shape) {
            continue;
        }
        let num = num_rows * width;
        let num_bytes = 3 * num * size_of::<u16>();
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(3);
        let (gate, up) = (rng.halves(half, num), rng.halves(half, num));
        let device_gate = Sets::new(&gpu, num_sets, &gate)?;
        let device_up = Sets::new(&gpu, num_sets, &up)?;
        let tolerance = 2.0 * precision(half);
        let work = Work::bytes(num_bytes);
        session.measure(
            Case { op: op.into(), shape, tolerance, work, num_sets },
            |set| {
                let operands = (device_gate.ptr(set), device_up.ptr(set));
                // SAFETY: the buffers are as long as this says.
                unsafe { rows::silu_mul(&gpu, half, operands, num) }
            },
            || {
                let (gate, up) = (from_halves(half, &gate), from_halves(half, &up));
                let want = rows::silu_mul_reference(&gate, &up);
                Ok(Deviation::of(&from_halves(half, &device_gate.read()?), &want))
            },
        )?;
    }
    Ok(())
}

/// The choice of rows that get logits, of a step with prompts.
pub(super) fn gather(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, width, num_x) =
        (session.gpu.clone(), session.spec.hidden_size, session.prefill_rows());
    for num_rows in session.decode_rows() {
        let (op, shape) = ("gather", format!("[{num_x}, {width}] → [{num_rows}, {width}]"));
        if !session.wants(op, &shape) {
            continue;
        }
        let num_bytes = 2 * num_rows * width * size_of::<f32>();
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(4);
        let x = rng.floats(num_x * width);
        let chosen: Vec<u32> = rng.permutation(num_x).into_iter().take(num_rows).collect();
        let device_rows = gpu.upload(&chosen)?;
        let device_x = Sets::new(&gpu, num_sets, &x)?;
        let out = Sets::<f32>::empty(&gpu, num_sets, num_rows * width)?;
        let work = Work::bytes(num_bytes);
        session.measure(
            Case { op: op.into(), shape, tolerance: 0.0, work, num_sets },
            |set| {
                let operands = (device_x.ptr(set), device_rows.ptr(), out.ptr(set));
                // SAFETY: the buffers are as long as the shapes say, and so many rows are there.
                unsafe { rows::gather(&gpu, operands, [num_rows, width]) }
            },
            || {
                let row = |&row: &u32| &x[row as usize * width..][..width];
                let want: Vec<f32> = chosen.iter().flat_map(row).copied().collect();
                Ok(Deviation::of(&to_f64(&out.read()?), &to_f64(&want)))
            },
        )?;
    }
    Ok(())
}

/// Rows of the embedding, dense as `--load-format dummy` makes it.
pub(super) fn embedding(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let (width, vocab) = (spec.hidden_size, spec.vocab_size);
    let op = "embedding";
    let shape_of = |num_rows: usize| format!("[{vocab}, {width}] → [{num_rows}, {width}]");
    let wanted: Vec<usize> =
        session.all_rows().filter(|&num_rows| session.wants(op, &shape_of(num_rows))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let table = CudaLinear::random(&gpu, half, WeightFormat::Dense, [vocab, width], 5)?;
    for num_rows in wanted {
        let num_bytes = num_rows * width * (size_of::<u16>() + size_of::<f32>());
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(5);
        let tokens: Vec<u32> = (0..num_sets * num_rows).map(|_| rng.below(vocab) as u32).collect();
        let device_tokens = gpu.upload(&tokens)?;
        let out = gpu.alloc::<f32>(num_rows * width)?;
        let work = Work::bytes(num_bytes);
        session.measure(
            Case { op: op.into(), shape: shape_of(num_rows), tolerance: 1e-6, work, num_sets },
            |set| {
                let operands = (device_tokens.at(set * num_rows), out.ptr());
                // SAFETY: the buffers are as long as the shapes say.
                unsafe { embed_op::embed(&gpu, &table, operands, num_rows) }
            },
            || embedding_error(&gpu, half, num_rows, width),
        )?;
    }
    Ok(())
}

/// Of a table that the host knows.
fn embedding_error(
    gpu: &Gpu,
    half: HalfType,
    num_rows: usize,
    width: usize,
) -> Result<f64, DriverError> {
    let mut rng = Rng::new(6);
    let bits = rng.halves(half, CHECKED_TOKENS * width);
    let values = from_halves(half, &bits);
    let mut packer = Packer::new(Format::F16, CHECKED_TOKENS, width);
    for (row, values) in values.chunks_exact(width).enumerate() {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        packer.set_float(row, &values);
    }
    let table = CudaLinear::from_packed(gpu, half, &packer.finish())?;
    let tokens: Vec<u32> = (0..num_rows).map(|_| rng.below(CHECKED_TOKENS) as u32).collect();
    let device_tokens = gpu.upload(&tokens)?;
    let out = gpu.alloc::<f32>(num_rows * width)?;
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { embed_op::embed(gpu, &table, (device_tokens.ptr(), out.ptr()), num_rows)? };
    let want = embed_op::reference(&values, width, &tokens);
    Ok(Deviation::of(&to_f64(&out.read(0..out.len())?), &want))
}
