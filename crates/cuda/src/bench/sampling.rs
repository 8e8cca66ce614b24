//! Logits to tokens, as requests ask for them: greedy, a plain draw, a truncated one. The error is the
//! part of the rows that got another token than the reference draws.

use super::Work;
use super::inputs::{Rng, Sets, sample};
use super::session::{Case, Session};
use crate::driver::DriverError;
use crate::ops::sampling::{
    self as op_sampling, RowRequest, SamplingBuffers, SamplingPlan, reference,
};
use weft_types::SamplingParams;

/// Rows that are compared: the reference sorts the vocabulary.
const CHECKED_ROWS: usize = 3;
/// Logits are uniform up to this: few tokens have most of the mass, and rounding decides no draw.
const LARGEST: f32 = 16.0;

fn requests() -> [(&'static str, SamplingParams); 3] {
    let truncated =
        SamplingParams { temperature: 0.8, top_k: 40, top_p: 0.95, ..SamplingParams::default() };
    let plain = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    [
        ("sampling, greedy", SamplingParams::greedy()),
        ("sampling, temperature 1", plain),
        ("sampling, top-k 40, top-p 0.95", truncated),
    ]
}

/// See the module.
pub(super) fn sampling(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, vocab) = (session.gpu.clone(), session.spec.vocab_size);
    for (op, params) in requests() {
        for num_rows in session.decode_rows() {
            let shape = format!("[{num_rows}, {vocab}]");
            if !session.wants(op, &shape) {
                continue;
            }
            let num_bytes = num_rows * vocab * size_of::<f32>();
            let num_sets = session.num_sets(num_bytes);
            let mut rng = Rng::new(15);
            let logits: Vec<f32> =
                rng.floats(num_rows * vocab).iter().map(|x| LARGEST * x).collect();
            let device_logits = Sets::new(&gpu, num_sets, &logits)?;
            let request = |row: usize| RowRequest {
                sampling: &params,
                u: (row as f64 + 0.37) / num_rows as f64,
                banned: &[],
                mask: None,
            };
            let mut plan = SamplingPlan::new(num_rows, vocab);
            (0..num_rows).for_each(|row| plan.push(request(row), []));
            let mut buffers = SamplingBuffers::new(&gpu, num_rows, vocab, 1)?;
            buffers.upload(&gpu, &plan)?;
            let launch = |set| {
                let operand = (device_logits.ptr(set), vocab);
                // SAFETY: the logits are there, the plan was uploaded and has no lists.
                unsafe { op_sampling::sample(&gpu, operand, num_rows, &buffers) }
            };
            let error = || {
                let drawn = buffers.read(num_rows)?;
                let rows = sample(num_rows, CHECKED_ROWS);
                let is_wrong = |&&row: &&usize| {
                    let want = reference(&logits[row * vocab..][..vocab], &request(row), &[]);
                    (drawn[row].token, drawn[row].status) != (want.token, want.status)
                };
                let num_wrong = rows.iter().filter(is_wrong).count();
                Ok(num_wrong as f64 / rows.len() as f64)
            };
            let work = Work::bytes(num_bytes);
            let case = Case { op: op.into(), shape, tolerance: 0.0, work, num_sets };
            session.measure(case, launch, error)?;
        }
    }
    Ok(())
}
