//! Every kernel at the shapes of a model: is it right on this device, and how near to its bound?
//!
//! In: a device, shapes. Out: a [`KernelRow`] for each kernel and shape, told as it is known: the error
//! against the kernel's f64 reference on a sample of outputs, and the median time by the driver's
//! events. Launches are recorded and replayed, as steps are, and go round as many sets of inputs as
//! the second level cache cannot hold. Knows no model, no file and no table for people.

mod attention;
mod inputs;
mod linears;
mod lora;
mod rates;
mod rows;
mod sampling;
mod session;
mod workload;

pub use rates::Rates;
pub use workload::Workload;

use crate::driver::DriverError;
use crate::gpu::{Gpu, HalfType};
use session::Session;
use weft_types::BaseModelSpec;

/// What is measured.
#[derive(Clone, Debug)]
pub struct KernelBench {
    /// Whose shapes.
    pub spec: BaseModelSpec,
    /// Only lines of `op shape` that contain this.
    pub filter: Option<String>,
    /// Measurements, of which the median counts. 0: only errors are looked at.
    pub repeats: usize,
}

/// Bytes and operations that a launch cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Read or written in device memory.
    pub bytes: f64,
    /// Multiplications and additions of tensor cores.
    pub flops: f64,
}

/// A kernel at a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// As in `kernels/README.md`, with what distinguishes its variants.
    pub op: String,
    /// Of its operands.
    pub shape: String,
    /// The largest deviation from the reference, relative to the largest value of that. Infinite if a
    /// value was no number.
    pub error: f64,
    /// The largest error that rounding explains.
    pub tolerance: f64,
    /// What it has to do.
    pub work: Work,
    /// Median milliseconds of a launch (of the two, where there are two); none without a clock.
    pub ms: Option<f64>,
}

impl KernelRow {
    /// Whether rounding explains the error.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// All that there is to say beside the rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelSummary {
    /// What the device did at its best; none without a clock.
    pub rates: Option<Rates>,
    /// Rows.
    pub num_rows: usize,
    /// Rows with an error that rounding does not explain.
    pub num_wrong: usize,
}

/// Measures; calls `on_rates` once, if the device has a clock, and then `on_row` for each row.
///
/// # Errors
/// When the driver fails, which a wrong address in a kernel makes it do, or has too little memory.
pub fn run(
    gpu: &Gpu,
    bench: &KernelBench,
    on_rates: impl FnOnce(&Rates),
    mut on_row: impl FnMut(&KernelRow),
) -> Result<KernelSummary, DriverError> {
    let mut summary = KernelSummary { rates: None, num_rows: 0, num_wrong: 0 };
    let mut count = |row: &KernelRow| {
        summary.num_rows += 1;
        summary.num_wrong += usize::from(!row.is_right());
        on_row(row);
    };
    // As `--device cuda` computes.
    let mut session = Session::new(gpu, HalfType::F16, bench, &mut count);
    let rates = if session.has_clock() { Some(rates::measure(&session)?) } else { None };
    if let Some(rates) = &rates {
        on_rates(rates);
    }
    for family in [
        rows::norms,
        linears::linears,
        attention::rope_store,
        attention::decode,
        attention::prefill,
        lora::bgmv,
        lora::sgmv,
        lora::gains,
        rows::silu_mul,
        rows::gather,
        rows::embedding,
        sampling::sampling,
    ] {
        family(&mut session)?;
    }
    summary.rates = rates;
    Ok(summary)
}

#[cfg(test)]
mod tests;
