//! The real driver: NVIDIA's library, loaded while running, behind the trait [`Driver`]. In: calls from
//! any thread. Out: work on a GPU, and errors as sentences.

mod api;
mod events;
mod fatbins;
mod pinned;
mod queue;
mod staging;

use crate::devices::{Absence, Found, refusal};
use crate::driver::{DeviceFacts, DevicePtr, Driver, DriverError, Event, Graph, Shape, Stream};
use api::{Context, attribute, check};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use events::Events;
use fatbins::Kernels;
use parking_lot::Mutex;
use pinned::{Lent, Pinned};
use queue::Queue;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

/// A GPU. All threads may use it; launches are in the order in which they were made.
#[derive(Debug)]
pub struct RealDriver {
    facts: DeviceFacts,
    compute: Queue,
    copy: Queue,
    kernels: Mutex<Kernels>,
    events: Mutex<Events>,
    graphs: Mutex<Vec<sys::CUgraphExec>>,
    /// While launches are recorded: what to free afterwards.
    recording: Mutex<Option<Vec<DevicePtr>>>,
    /// After the queues, which end the copies from it.
    lent: Mutex<Lent>,
    /// Last: all of the above belongs to it.
    context: Arc<Context>,
}

// SAFETY: the library's handles may be used by all threads.
unsafe impl Send for RealDriver {}
// SAFETY: as above; what we keep of them is behind locks.
unsafe impl Sync for RealDriver {}

/// All devices of the library.
pub(crate) fn devices() -> Result<Vec<Found>, Absence> {
    api::start()?;
    let ask = |ordinal: usize| -> Result<Found, DriverError> {
        let (device, facts) = find(ordinal)?;
        let found =
            |free_bytes, refusal| Found { ordinal, facts: facts.clone(), free_bytes, refusal };
        // Its memory is known to contexts only, which others may have forbidden.
        match Context::retain(device).and_then(|context| context.memory()) {
            Ok((free, _)) => Ok(found(free, refusal(&facts, free))),
            Err(error) => Ok(found(0, Some(error.to_string()))),
        }
    };
    let explain = |error: DriverError| Absence::DoesNotStart(error.to_string());
    let devices = (0..num_devices().map_err(explain)?).map(ask);
    let devices: Vec<Found> = devices.collect::<Result<_, _>>().map_err(explain)?;
    if devices.is_empty() { Err(Absence::NoDevice) } else { Ok(devices) }
}

fn num_devices() -> Result<usize, DriverError> {
    let mut count: c_int = 0;
    // SAFETY: writes one number.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "counting GPUs")?;
    Ok(count as usize)
}

fn find(ordinal: usize) -> Result<(sys::CUdevice, DeviceFacts), DriverError> {
    let (mut device, mut memory_bytes) = (0, 0);
    let mut name = [0 as c_char; 256];
    // SAFETY: each call writes one value, or at most as many letters as there is room for.
    let name = unsafe {
        check(sys::cuDeviceGet(&raw mut device, ordinal as c_int), "being looked up")?;
        let result = sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device);
        check(result, "telling its name")?;
        check(sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, device), "counting its memory")?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let ask = |which| attribute(device, which);
    let facts = DeviceFacts {
        name,
        capability: (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory_bytes as u64,
    };
    Ok((device, facts))
}

impl RealDriver {
    /// Opens a device, by the library's number.
    ///
    /// # Errors
    /// When there is no driver, no such device, or it does not answer.
    pub fn open(ordinal: usize) -> Result<Self, DriverError> {
        api::start().map_err(|absence| DriverError(absence.to_string()))?;
        let count = num_devices()?;
        if ordinal >= count {
            return Err(DriverError(format!(
                "there is no GPU {ordinal}: the driver sees {count}, counted from 0"
            )));
        }
        let (device, facts) = find(ordinal)?;
        let context = Arc::new(Context::retain(device)?);
        Ok(Self {
            facts,
            compute: Queue::new(&context)?,
            copy: Queue::new(&context)?,
            kernels: Mutex::default(),
            events: Mutex::new(Events::new()),
            graphs: Mutex::default(),
            recording: Mutex::default(),
            lent: Mutex::default(),
            context,
        })
    }

    fn queue(&self, stream: Stream) -> &Queue {
        match stream {
            Stream::Compute => &self.compute,
            Stream::Copy => &self.copy,
        }
    }

    /// Enters the context; fails where a call would spoil what is being recorded.
    fn enter(&self, stream: Stream, what: &str) -> Result<&Queue, DriverError> {
        if stream == Stream::Compute && self.recording.lock().is_some() {
            return Err(DriverError(format!("{what} cannot be recorded")));
        }
        self.context.enter()?;
        Ok(self.queue(stream))
    }

    fn free_now(&self, memory: DevicePtr) {
        // SAFETY: nobody uses it, as the caller of `free` promised, once both streams have ended. A
        // device that fails here has failed others before, who were told.
        unsafe {
            sys::cuStreamSynchronize(self.compute.stream.raw);
            sys::cuStreamSynchronize(self.copy.stream.raw);
            sys::cuMemFree_v2(memory.0);
        }
    }

    /// Ends the recording in the library, whatever came of it.
    fn end_capture(&self) -> Result<sys::CUgraphExec, DriverError> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: writes one handle.
        let result = unsafe { sys::cuStreamEndCapture(self.compute.stream.raw, &raw mut graph) };
        self.context.check(result, "recording launches")?;
        // SAFETY: the graph is there until it is destroyed; what runs is a copy.
        let result = unsafe {
            let result = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            result
        };
        self.context.check(result, "preparing recorded launches")?;
        // So that the first replay is as fast as the others.
        // SAFETY: just made.
        let result = unsafe { sys::cuGraphUpload(executable, self.compute.stream.raw) };
        self.context.check(result, "uploading recorded launches")?;
        Ok(executable)
    }
}

impl Driver for RealDriver {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_memory(&self) -> Result<u64, DriverError> {
        Ok(self.context.memory()?.0)
    }

    fn alloc(&self, num_bytes: usize) -> Result<DevicePtr, DriverError> {
        self.context.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        let result = self.context.apart_from_recording(|| unsafe {
            sys::cuMemAlloc_v2(&raw mut address, num_bytes.max(1))
        });
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.context.memory()?;
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(DriverError(format!(
                "the GPU is out of memory: {} MiB are wanted, {} MiB of {} MiB are free",
                mib(num_bytes as u64),
                free >> 20,
                mib(total)
            )));
        }
        self.context.check(result, &format!("allocating {num_bytes} bytes"))?;
        Ok(DevicePtr(address))
    }

    unsafe fn free(&self, memory: DevicePtr) {
        let mut recording = self.recording.lock();
        match &mut *recording {
            Some(later) => later.push(memory),
            None if self.context.enter().is_ok() => self.free_now(memory),
            None => {}
        }
    }

    unsafe fn upload(&self, stream: Stream, to: DevicePtr, from: &[u8]) -> Result<(), DriverError> {
        let queue = self.enter(stream, "a copy")?;
        // SAFETY: the caller's promise.
        unsafe { queue.ring.lock().upload(&self.context, queue.stream.raw, to, from) }
    }

    unsafe fn enqueue_upload(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError> {
        if !self.lent.lock().holds(from) {
            // SAFETY: the caller promises more.
            return unsafe { self.upload(stream, to, from) };
        }
        let queue = self.enter(stream, "a copy")?;
        // SAFETY: pinned; the rest is the caller's promise.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.0, from.as_ptr().cast(), from.len(), queue.stream.raw)
        };
        self.context.check_with(result, || format!("copying {} bytes to it", from.len()))
    }

    fn alloc_pinned(&self, num_bytes: usize) -> Result<NonNull<u8>, DriverError> {
        self.context.enter()?;
        let block = Pinned::new(&self.context, num_bytes.max(1))?;
        let start = block.start();
        // SAFETY: as long as it was allocated, and nobody has it yet.
        unsafe { start.write_bytes(0, num_bytes) };
        self.lent.lock().insert(block);
        Ok(start)
    }

    unsafe fn free_pinned(&self, start: NonNull<u8>) {
        let block = self.lent.lock().remove(start);
        drop(block);
    }

    unsafe fn download(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        let queue = self.enter(stream, "a copy to the host")?;
        // SAFETY: the caller's promise.
        unsafe { queue.landing.lock().download(&self.context, queue.stream.raw, from, to) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &[u8],
    ) -> Result<(), DriverError> {
        self.context.enter()?;
        let function = self.kernels.lock().get(&self.context, kernel, shape.shared_bytes)?;
        if params.len() != function.params_bytes {
            return Err(DriverError(format!(
                "{kernel} takes {} bytes of parameters, not {}",
                function.params_bytes,
                params.len()
            )));
        }
        self.context.note_launch(kernel);
        let [x, y, z] = shape.grid;
        // The one parameter. The library copies it before it returns.
        let mut arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the struct is as long as the kernel's; the rest is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.raw,
                x,
                y,
                z,
                shape.threads,
                1,
                1,
                shape.shared_bytes,
                self.compute.stream.raw,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check_with(result, || format!("launching {kernel} with {shape:?}"))
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        let queue = self.enter(stream, "waiting")?;
        // SAFETY: a stream of ours.
        let result = unsafe { sys::cuStreamSynchronize(queue.stream.raw) };
        self.context.check(result, "finishing what was asked of it")
    }

    fn record(&self, stream: Stream) -> Result<Event, DriverError> {
        let queue = self.enter(stream, "an event")?;
        self.events.lock().record(&self.context, queue.stream.raw)
    }

    fn has_passed(&self, event: Event) -> Result<bool, DriverError> {
        self.context.enter()?;
        self.events.lock().has_passed(&self.context, event)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        let queue = self.enter(stream, "waiting for another stream")?;
        let events = self.events.lock();
        let Some(raw) = events.get(event) else { return Ok(()) };
        // SAFETY: both are there, and the event is recorded.
        let result = unsafe { sys::cuStreamWaitEvent(queue.stream.raw, raw, 0) };
        self.context.check(result, "ordering two streams")
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, DriverError> {
        self.context.enter()?;
        let mut events = self.events.lock();
        let (Some(start), Some(end)) = (events.get(from), events.get(to)) else {
            return Err(DriverError("an event was forgotten before its time was asked for".into()));
        };
        let mut milliseconds = 0.0;
        // SAFETY: writes one number; both are recorded.
        let result = unsafe { sys::cuEventElapsedTime(&raw mut milliseconds, start, end) };
        self.context.check(result, "timing")?;
        events.forget(from);
        events.forget(to);
        Ok(milliseconds)
    }

    fn begin_recording(&self) -> Result<(), DriverError> {
        self.context.enter()?;
        let mut recording = self.recording.lock();
        if recording.is_some() {
            return Err(DriverError("launches are recorded already".into()));
        }
        // Other threads go on copying and allocating meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of ours.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.compute.stream.raw, mode) };
        self.context.check(result, "beginning to record launches")?;
        *recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph, DriverError> {
        self.context.enter()?;
        let mut recording = self.recording.lock();
        let freed = recording.take();
        let freed = freed.ok_or_else(|| DriverError("no launches are recorded".into()))?;
        let executable = self.end_capture();
        freed.into_iter().for_each(|memory| self.free_now(memory));
        let mut graphs = self.graphs.lock();
        graphs.push(executable?);
        Ok(Graph(graphs.len() as u64 - 1))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DriverError> {
        let queue = self.enter(Stream::Compute, "a replay")?;
        let executable = self.graphs.lock().get(graph.0 as usize).copied();
        let executable = executable.ok_or_else(|| DriverError("there is no such graph".into()))?;
        // SAFETY: made by `end_recording`; the rest is the caller's promise.
        let result = unsafe { sys::cuGraphLaunch(executable, queue.stream.raw) };
        self.context.check(result, "replaying launches")
    }
}

impl Drop for RealDriver {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: buffers keep their driver alive, so nobody is left to use any of it; both streams
        // are waited for first. The rest goes by itself.
        unsafe {
            sys::cuStreamSynchronize(self.compute.stream.raw);
            sys::cuStreamSynchronize(self.copy.stream.raw);
            for graph in self.graphs.get_mut().drain(..) {
                sys::cuGraphExecDestroy(graph);
            }
            self.events.get_mut().clear();
            self.kernels.get_mut().unload();
        }
    }
}
