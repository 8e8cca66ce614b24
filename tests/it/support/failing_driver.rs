//! A driver whose launches fail when a test says so, and an executor that tries such steps again.

#![expect(unsafe_code, reason = "a driver's methods")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use weft_cuda::driver::{DeviceFacts, Event, Graph, Shape};
use weft_cuda::{DevicePtr, Driver, DriverError, EmulatedDriver, Stream};
use weft_types::{
    AdapterId, AdapterLoad, ExecuteError, Executor, ExecutorLimits, PackedAdapter, SeqId,
    SequenceSpec, StepOutput, StepPlan,
};

/// Every so-many-th launch fails, whether it would run or be recorded.
#[derive(Debug)]
pub(crate) struct FailingDriver {
    inner: EmulatedDriver,
    period: u64,
    num_launches: AtomicU64,
    is_recording: AtomicBool,
    failed: Arc<Failed>,
}

/// Launches that failed.
#[derive(Debug, Default)]
pub(crate) struct Failed {
    pub(crate) num_run: AtomicU64,
    pub(crate) num_recorded: AtomicU64,
}

impl FailingDriver {
    pub(crate) fn new(inner: EmulatedDriver, period: u64, failed: &Arc<Failed>) -> Self {
        let (num_launches, is_recording) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { inner, period, num_launches, is_recording, failed: Arc::clone(failed) }
    }
}

impl Driver for FailingDriver {
    fn facts(&self) -> &DeviceFacts {
        self.inner.facts()
    }

    fn free_memory(&self) -> Result<u64, DriverError> {
        self.inner.free_memory()
    }

    fn alloc(&self, num_bytes: usize) -> Result<DevicePtr, DriverError> {
        self.inner.alloc(num_bytes)
    }

    unsafe fn free(&self, memory: DevicePtr) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free(memory) };
    }

    unsafe fn upload(&self, stream: Stream, to: DevicePtr, from: &[u8]) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload(stream, to, from) }
    }

    unsafe fn enqueue_upload(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.enqueue_upload(stream, to, from) }
    }

    fn alloc_pinned(&self, num_bytes: usize) -> Result<NonNull<u8>, DriverError> {
        self.inner.alloc_pinned(num_bytes)
    }

    unsafe fn free_pinned(&self, start: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free_pinned(start) };
    }

    unsafe fn download(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.download(stream, from, to) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &[u8],
    ) -> Result<(), DriverError> {
        let index = self.num_launches.fetch_add(1, Ordering::Relaxed);
        if index % self.period == self.period - 1 {
            let is_recording = self.is_recording.load(Ordering::Relaxed);
            let Failed { num_run, num_recorded } = &*self.failed;
            if is_recording { num_recorded } else { num_run }.fetch_add(1, Ordering::Relaxed);
            return Err(DriverError("a launch was made to fail".into()));
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(kernel, shape, params) }
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        self.inner.synchronize(stream)
    }

    fn record(&self, stream: Stream) -> Result<Event, DriverError> {
        self.inner.record(stream)
    }

    fn has_passed(&self, event: Event) -> Result<bool, DriverError> {
        self.inner.has_passed(event)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        self.inner.wait(stream, event)
    }

    fn has_clock(&self) -> bool {
        self.inner.has_clock()
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, DriverError> {
        self.inner.elapsed_ms(from, to)
    }

    fn begin_recording(&self) -> Result<(), DriverError> {
        self.is_recording.store(true, Ordering::Relaxed);
        self.inner.begin_recording()
    }

    fn end_recording(&self) -> Result<Graph, DriverError> {
        self.is_recording.store(false, Ordering::Relaxed);
        self.inner.end_recording()
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }
}

/// Computes a step that failed once more, as if it had been planned again.
pub(crate) struct Retrying<E>(pub(crate) E);

impl<E: Executor> Executor for Retrying<E> {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }

    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>) {
        self.0.load_adapter(load, adapter);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        self.0.finished_loads(finished);
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        self.0.unload_adapter(adapter);
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        self.0.add_sequence(seq, spec);
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.0.remove_sequence(seq);
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        loop {
            let begun = self.0.begin(plan);
            match begun.and_then(|()| self.0.execute(plan, output)) {
                Ok(()) => return Ok(()),
                Err(error) => assert!(error.message.contains("made to fail"), "{error}"),
            }
        }
    }
}
