//! Bounds and errors; and the clockwork, on an emulated driver with a clock that always says the same.

use super::*;
use crate::driver::{DeviceFacts, DevicePtr, Driver, Event, Graph, Shape, Stream};
use crate::emulated::{EmulatedDriver, Order};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// Milliseconds of whatever is replayed.
const REPLAY_MS: f32 = 512.0;

/// Runs kernels, records launches, and replays nothing.
#[derive(Debug)]
struct Clocked(EmulatedDriver);

impl Driver for Clocked {
    fn facts(&self) -> &DeviceFacts {
        self.0.facts()
    }

    // Little, so that copies are small.
    fn free_memory(&self) -> Result<u64, DriverError> {
        Ok(8 << 20)
    }

    fn alloc(&self, num_bytes: usize) -> Result<DevicePtr, DriverError> {
        self.0.alloc(num_bytes)
    }

    unsafe fn free(&self, memory: DevicePtr) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free(memory) }
    }

    unsafe fn upload(&self, stream: Stream, to: DevicePtr, from: &[u8]) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.upload(stream, to, from) }
    }

    unsafe fn enqueue_upload(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.enqueue_upload(stream, to, from) }
    }

    fn alloc_pinned(&self, num_bytes: usize) -> Result<NonNull<u8>, DriverError> {
        self.0.alloc_pinned(num_bytes)
    }

    unsafe fn free_pinned(&self, start: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_pinned(start) };
    }

    unsafe fn download(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.download(stream, from, to) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &[u8],
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(kernel, shape, params) }
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        self.0.synchronize(stream)
    }

    fn record(&self, stream: Stream) -> Result<Event, DriverError> {
        self.0.record(stream)
    }

    fn has_passed(&self, event: Event) -> Result<bool, DriverError> {
        self.0.has_passed(event)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        self.0.wait(stream, event)
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, DriverError> {
        assert!(to.0 > from.0);
        Ok(REPLAY_MS)
    }

    fn begin_recording(&self) -> Result<(), DriverError> {
        self.0.begin_recording()
    }

    fn end_recording(&self) -> Result<Graph, DriverError> {
        self.0.end_recording()
    }

    unsafe fn replay(&self, _: Graph) -> Result<(), DriverError> {
        Ok(())
    }
}

fn clocked(filter: &str, repeats: usize) -> (KernelSummary, Vec<KernelRow>) {
    let driver = EmulatedDriver::load(Path::new(weft_emulator::LIBRARY), Order::Fixed).unwrap();
    let gpu = Gpu::new(Arc::new(Clocked(driver)));
    let spec = BaseModelSpec {
        num_layers: 1,
        hidden_size: 64,
        intermediate_size: 128,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 256,
        max_context: 256,
        tied_embeddings: false,
    };
    let bench = KernelBench { spec, filter: Some(filter.into()), repeats };
    let mut rows = Vec::new();
    let summary = run(&gpu, &bench, |_| {}, |row| rows.push(row.clone())).unwrap();
    (summary, rows)
}

#[test]
fn a_time_is_that_of_a_replay_over_its_launches() {
    for (filter, op) in [("linear W4 o [8,", "linear W4 o"), ("gains [32,", "gains")] {
        let (summary, rows) = clocked(filter, 3);
        let rates = summary.rates.unwrap();
        // 4096 rows of the doubled intermediate size; 64 launches a replay.
        let flops = 2.0 * 4096.0 * 256.0 * 64.0 * 64.0;
        assert!((rates.flops_per_s - flops / 0.512).abs() < 1.0, "{rates:?}");
        // A row of the copy has 4 KiB: 256 rows are an eighth of the memory, and the better copy is it.
        assert!((rates.bytes_per_s - 64.0 * 2.0 * 1048576.0 / 0.512).abs() < 1.0, "{rates:?}");
        // All sets, once: they are small.
        assert_eq!((rows.len(), rows[0].op.as_str(), rows[0].ms), (1, op, Some(2.0)));
        assert!(
            rows[0].is_right() && rates.share_of_bound(&rows[0]).is_some_and(|part| part > 0.0)
        );
    }
}

#[test]
fn without_repeats_only_errors_are_looked_at() {
    let (summary, rows) = clocked("BGMV down distinct r16 [8,", 0);
    assert_eq!((summary.rates, summary.num_rows, summary.num_wrong), (None, 1, 0));
    assert!(rows[0].ms.is_none() && rows[0].error > 0.0);
}

#[test]
fn a_bound_is_the_slower_of_bytes_and_operations() {
    let rates = Rates { bytes_per_s: 1e12, flops_per_s: 1e14 };
    let work = |bytes, flops| Work { bytes, flops };
    assert_eq!(rates.bound_ms(work(2e9, 1e9)), 2.0);
    assert_eq!(rates.bound_ms(work(1e9, 4e11)), 4.0);
    assert!(!rates.is_compute_bound(work(2e9, 1e9)) && rates.is_compute_bound(work(1e9, 4e11)));
    let mut row = KernelRow {
        op: "copy".into(),
        shape: "[1]".into(),
        error: 0.0,
        tolerance: 0.0,
        work: work(2e9, 1e9),
        ms: None,
    };
    assert_eq!(rates.share_of_bound(&row), None);
    row.ms = Some(4.0);
    assert_eq!(rates.share_of_bound(&row), Some(0.5));
}

#[test]
fn what_is_no_number_is_never_right() {
    let row = |error| KernelRow {
        op: String::new(),
        shape: String::new(),
        error,
        tolerance: 1.0,
        work: Work::default(),
        ms: None,
    };
    assert!(row(1.0).is_right());
    for error in [1.1, f64::NAN, f64::INFINITY] {
        assert!(!row(error).is_right(), "{error}");
    }
    let nan = inputs::Deviation::of(&[f64::NAN, 1.0], &[1.0, 1.0]);
    assert_eq!(nan, f64::INFINITY);
}
