//! Linears that share their input. Where a weight takes inputs in an order of its own (GPTQ's
//! act-order), the input's columns are put into that order first.

use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu};
use crate::ops::matmul::{Linear, linear};
use crate::ops::rows;
use crate::step_ops::StepOpsConfig;

/// Memory for an input in another order.
#[derive(Debug)]
pub(crate) struct OrderedLinears {
    /// Made for the first weight that has an order.
    rows: Buffer<u16>,
    max_values: usize,
}

impl OrderedLinears {
    pub(crate) fn new(gpu: &Gpu, config: &StepOpsConfig) -> Result<Self, DriverError> {
        let limits = config.limits;
        let max_rows = limits.max_rows.max(limits.max_logit_rows);
        Ok(Self { rows: gpu.alloc(0)?, max_values: max_rows * config.max_inputs })
    }

    /// `x:[T,K]`, `shape` is `[T, K]`.
    ///
    /// # Safety
    /// x and outputs have the linears' shapes.
    pub(crate) unsafe fn run(
        &mut self,
        gpu: &Gpu,
        x: DevicePtr,
        shape: [usize; 2],
        linears: &[Linear<'_>],
    ) -> Result<(), DriverError> {
        for same in linears.chunk_by(|a, b| a.weight.order() == b.weight.order()) {
            let x = match same[0].weight.order_ptr() {
                None => x,
                Some(order) => {
                    if self.rows.is_empty() {
                        // Kinds of steps are recorded when they come again: it has its place by then.
                        self.rows = gpu.alloc(self.max_values)?;
                    }
                    assert!(shape[0] * shape[1] <= self.rows.len(), "within the limits");
                    // SAFETY: the caller's promise; the copy has room, an order as many inputs as x.
                    unsafe { rows::gather_columns(gpu, (x, order, self.rows.ptr()), shape)? };
                    self.rows.ptr()
                }
            };
            // SAFETY: the caller's promise.
            unsafe { linear(gpu, x, shape[0], same)? };
        }
        Ok(())
    }
}
