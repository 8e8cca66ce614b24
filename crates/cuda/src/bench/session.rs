//! One kernel after the other: launch, compare, record, replay, time. Knows no kernel.

use super::{KernelBench, KernelRow, Work};
use crate::driver::{DriverError, Stream};
use crate::gpu::{Gpu, HalfType};
use weft_types::BaseModelSpec;

/// Inputs of all sets together: several times the second level cache of any GPU.
const COLD_BYTES: usize = 256 << 20;
/// Small inputs are in the cache in a step, too: just written.
const MAX_SETS: usize = 256;
/// Without a clock, two show that sets are told apart.
const UNTIMED_SETS: usize = 2;
/// Launches between two events, at least: their own time is then no matter.
const MIN_LAUNCHES: usize = 64;
/// Rows of batches that decode.
const DECODE_ROWS: [usize; 4] = [1, 8, 32, 64];
/// Rows of a prompt's chunk.
const PREFILL_ROWS: usize = 512;
/// Positions that rows see.
const CONTEXTS: [usize; 2] = [512, 4096];

/// A kernel at a shape, before it is known how it does.
pub(super) struct Case {
    pub(super) op: String,
    pub(super) shape: String,
    pub(super) tolerance: f64,
    pub(super) work: Work,
    pub(super) num_sets: usize,
}

/// See the module.
pub(super) struct Session<'a> {
    pub(super) gpu: Gpu,
    pub(super) half: HalfType,
    pub(super) spec: BaseModelSpec,
    filter: Option<String>,
    repeats: usize,
    on_row: &'a mut dyn FnMut(&KernelRow),
}

impl<'a> Session<'a> {
    pub(super) fn new(
        gpu: &Gpu,
        half: HalfType,
        bench: &KernelBench,
        on_row: &'a mut dyn FnMut(&KernelRow),
    ) -> Self {
        let (spec, filter) = (bench.spec.clone(), bench.filter.clone());
        let repeats = if gpu.driver().has_clock() { bench.repeats } else { 0 };
        Self { gpu: gpu.clone(), half, spec, filter, repeats, on_row }
    }

    pub(super) fn has_clock(&self) -> bool {
        self.repeats > 0
    }

    /// Whether the filter lets this through: else not even inputs are made.
    pub(super) fn wants(&self, op: &str, shape: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| format!("{op} {shape}").contains(filter.as_str()))
    }

    /// Rows of batches that decode.
    pub(super) fn decode_rows(&self) -> [usize; 4] {
        DECODE_ROWS
    }

    /// Rows of a prompt's chunk: more than the decode kernels take, and no more than the model.
    pub(super) fn prefill_rows(&self) -> usize {
        PREFILL_ROWS.min(self.spec.max_context / 2).max(65)
    }

    /// Both.
    pub(super) fn all_rows(&self) -> impl Iterator<Item = usize> + use<> {
        DECODE_ROWS.into_iter().chain([self.prefill_rows()])
    }

    /// A usual context and a long one.
    pub(super) fn contexts(&self) -> [usize; 2] {
        [CONTEXTS[0].min(self.spec.max_context / 2), CONTEXTS[1].min(self.spec.max_context)]
    }

    /// Sets of inputs of so many bytes each.
    pub(super) fn num_sets(&self, set_bytes: usize) -> usize {
        if self.has_clock() {
            COLD_BYTES.div_ceil(set_bytes.max(1)).min(MAX_SETS)
        } else {
            UNTIMED_SETS
        }
    }

    /// Launches once on the first set, asks for the `error` of that, and then takes the time.
    pub(super) fn measure(
        &mut self,
        case: Case,
        launch: impl Fn(usize) -> Result<(), DriverError>,
        error: impl FnOnce() -> Result<f64, DriverError>,
    ) -> Result<(), DriverError> {
        let Case { op, shape, tolerance, work, num_sets } = case;
        launch(0)?;
        let error = error()?;
        let ms = self.has_clock().then(|| self.time(num_sets, launch)).transpose()?;
        (self.on_row)(&KernelRow { op, shape, error, tolerance, work, ms });
        Ok(())
    }

    /// Median milliseconds of a launch, of launches that take the sets in turn. `launch` must not wait for
    /// the device or copy: it is recorded.
    pub(super) fn time(
        &self,
        num_sets: usize,
        launch: impl Fn(usize) -> Result<(), DriverError>,
    ) -> Result<f64, DriverError> {
        let driver = self.gpu.driver();
        let num_launches = num_sets * MIN_LAUNCHES.div_ceil(num_sets);
        // What is loaded at the first launch is not to be recorded.
        launch(0)?;
        driver.begin_recording()?;
        let launched = (0..num_launches).try_for_each(|index| launch(index % num_sets));
        // Also after a failure: nobody else could launch any more.
        let graph = driver.end_recording();
        launched?;
        let graph = graph?;
        // SAFETY: what the launches use is there until the caller gives it up; the first replay
        // warms up.
        unsafe { driver.replay(graph)? };
        let mut times = Vec::with_capacity(self.repeats);
        for _ in 0..self.repeats {
            let from = driver.record(Stream::Compute)?;
            // SAFETY: as above.
            unsafe { driver.replay(graph)? };
            let to = driver.record(Stream::Compute)?;
            driver.synchronize(Stream::Compute)?;
            times.push(f64::from(driver.elapsed_ms(from, to)?) / num_launches as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}
