//! The emulated driver: device memory is host memory, a launch runs on the host and has ended when
//! it returns. In: a shared library of kernels compiled for the host (`kernels/emulated`).

use crate::driver::{DeviceFacts, DevicePtr, Driver, DriverError, Event, Graph, Shape, Stream};
use libloading::{Library, Symbol};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint};
use std::path::Path;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::Arc;

/// As cudaMalloc aligns.
const ALIGNMENT: usize = 256;
/// Of pinned memory.
const PINNED_ALIGNMENT: usize = 64;
/// What the device pretends to have.
const MEMORY_BYTES: u64 = 4 << 30;
/// Bytes for a sentence of the library.
const MESSAGE_BYTES: usize = 512;

/// In which order threads run between barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By their index.
    #[default]
    Fixed,
    /// Each launch thrice, by index and twice shuffled: fails if any byte of the device differs.
    Compared,
}

impl FromStr for Order {
    type Err = DriverError;

    fn from_str(name: &str) -> Result<Self, DriverError> {
        match name {
            "fixed" => Ok(Self::Fixed),
            "compared" => Ok(Self::Compared),
            other => Err(failure(format!(
                "there is no order `{other}` of threads; write fixed or compared"
            ))),
        }
    }
}

type Find = unsafe extern "C" fn(*const c_char) -> c_int;
type Launch = unsafe extern "C" fn(
    c_int,
    *const c_uint,
    *const c_uint,
    usize,
    *const u8,
    usize,
    u64,
    *mut c_char,
    usize,
) -> c_int;

/// See the module.
#[derive(Debug)]
pub struct EmulatedDriver {
    find: Find,
    launch: Launch,
    facts: DeviceFacts,
    order: Order,
    state: Mutex<State>,
    /// Last: the functions above are in it.
    _library: Library,
}

#[derive(Debug, Default)]
struct State {
    /// By address.
    allocations: BTreeMap<u64, Layout>,
    allocated_bytes: u64,
    kernels: FxHashMap<&'static str, c_int>,
    recording: Option<Vec<Recorded>>,
    graphs: Vec<Arc<[Recorded]>>,
    num_events: u64,
    /// By address.
    pinned: BTreeMap<usize, Layout>,
    /// Of the copy stream: not yet made, as late as a GPU may be.
    copies: Vec<PendingCopy>,
}

/// To the device.
#[derive(Debug)]
struct PendingCopy {
    to: DevicePtr,
    from: usize,
    num_bytes: usize,
}

impl State {
    /// What is under way arrives.
    fn make_copies(&mut self) {
        for PendingCopy { to, from, num_bytes } in self.copies.drain(..) {
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to.0 as usize);
            // SAFETY: promised to `enqueue_upload`, up to here.
            unsafe { to.copy_from(std::ptr::with_exposed_provenance(from), num_bytes) };
        }
    }
}

#[derive(Debug)]
struct Recorded {
    kernel: &'static str,
    shape: Shape,
    params: Vec<u8>,
}

fn failure(message: impl Into<String>) -> DriverError {
    DriverError(message.into())
}

impl EmulatedDriver {
    /// Loads a library of kernels.
    ///
    /// # Errors
    /// When it cannot be loaded or is something else.
    pub fn load(library: &Path, order: Order) -> Result<Self, DriverError> {
        let explain = |error: libloading::Error| {
            failure(format!("cannot load the emulated kernels {}: {error}", library.display()))
        };
        // SAFETY: a library of ours, whose constructors only fill a table.
        let library = unsafe { Library::new(library) }.map_err(explain)?;
        // SAFETY: the functions have these types there.
        let (find, launch) = unsafe {
            let find: Symbol<'_, Find> = library.get(b"weft_emulated_find").map_err(explain)?;
            let launch: Symbol<'_, Launch> =
                library.get(b"weft_emulated_launch").map_err(explain)?;
            (*find, *launch)
        };
        let facts = DeviceFacts {
            name: "emulated GPU".into(),
            capability: (8, 0),
            num_multiprocessors: 4,
            memory_bytes: MEMORY_BYTES,
        };
        Ok(Self { find, launch, facts, order, state: Mutex::default(), _library: library })
    }

    fn index(&self, state: &mut State, kernel: &'static str) -> Result<c_int, DriverError> {
        if let Some(&index) = state.kernels.get(kernel) {
            return Ok(index);
        }
        let name = CString::new(kernel).map_err(|_| failure("a kernel's name has a NUL"))?;
        // SAFETY: a string that ends.
        let index = unsafe { (self.find)(name.as_ptr()) };
        if index < 0 {
            return Err(failure(format!("there is no kernel {kernel}")));
        }
        state.kernels.insert(kernel, index);
        Ok(index)
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(
        &self,
        index: c_int,
        shape: Shape,
        params: &[u8],
        seed: u64,
    ) -> Result<(), DriverError> {
        let mut message = [0 as c_char; MESSAGE_BYTES];
        let block = [shape.threads, 1, 1];
        // SAFETY: the arrays are as long as the library takes them; the rest the caller promises.
        let code = unsafe {
            (self.launch)(
                index,
                shape.grid.as_ptr(),
                block.as_ptr(),
                shape.shared_bytes as usize,
                params.as_ptr(),
                params.len(),
                seed,
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let bytes = message.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
        Err(failure(String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()))
    }

    /// Runs a kernel in several orders of its threads and compares all memory.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn compare(
        &self,
        state: &State,
        index: c_int,
        (kernel, shape, params): (&str, Shape, &[u8]),
    ) -> Result<(), DriverError> {
        let snapshot = || -> Vec<Vec<u8>> {
            let copy = |(&start, layout): (&u64, &Layout)| {
                // SAFETY: an allocation of this driver, filled when it was made.
                unsafe { std::slice::from_raw_parts(start as *const u8, layout.size()) }.to_vec()
            };
            state.allocations.iter().map(copy).collect()
        };
        let before = snapshot();
        let mut first: Option<Vec<Vec<u8>>> = None;
        for seed in 0..3 {
            for ((&start, layout), bytes) in state.allocations.iter().zip(&before) {
                // SAFETY: as above; the state's lock keeps others away.
                unsafe { (start as *mut u8).copy_from(bytes.as_ptr(), layout.size()) };
            }
            // SAFETY: the caller's promise.
            unsafe { self.run(index, shape, params, seed)? };
            let after = snapshot();
            match &first {
                None => first = Some(after),
                Some(first) if *first != after => {
                    return Err(failure(format!(
                        "{kernel} depends on the order of its threads: a race"
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

impl Driver for EmulatedDriver {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_memory(&self) -> Result<u64, DriverError> {
        Ok(MEMORY_BYTES - self.state.lock().allocated_bytes)
    }

    fn alloc(&self, num_bytes: usize) -> Result<DevicePtr, DriverError> {
        let layout = Layout::from_size_align(num_bytes.max(1), ALIGNMENT)
            .map_err(|_| failure("an allocation is too large"))?;
        let mut state = self.state.lock();
        if state.allocated_bytes + layout.size() as u64 > MEMORY_BYTES {
            return Err(failure("out of device memory"));
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(failure("out of memory"));
        }
        // NaNs, whatever the type of float: what is read before it is written shows.
        // SAFETY: just allocated.
        unsafe { start.write_bytes(0xff, layout.size()) };
        let address = start.expose_provenance() as u64;
        state.allocations.insert(address, layout);
        state.allocated_bytes += layout.size() as u64;
        Ok(DevicePtr(address))
    }

    unsafe fn free(&self, memory: DevicePtr) {
        let mut state = self.state.lock();
        state.make_copies();
        if let Some(layout) = state.allocations.remove(&memory.0) {
            state.allocated_bytes -= layout.size() as u64;
            let start = std::ptr::with_exposed_provenance_mut(memory.0 as usize);
            // SAFETY: allocated with this layout; the caller promises that nobody uses it.
            unsafe { dealloc(start, layout) };
        }
    }

    unsafe fn upload(&self, stream: Stream, to: DevicePtr, from: &[u8]) -> Result<(), DriverError> {
        let mut state = self.state.lock();
        if state.recording.is_some() && stream == Stream::Compute {
            return Err(failure("a copy cannot be recorded"));
        }
        if stream == Stream::Copy {
            state.make_copies();
        }
        let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to.0 as usize);
        // SAFETY: the caller's promise.
        unsafe { to.copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    unsafe fn enqueue_upload(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError> {
        if stream == Stream::Compute {
            // SAFETY: the caller promises more.
            return unsafe { self.upload(stream, to, from) };
        }
        let copy =
            PendingCopy { to, from: from.as_ptr().expose_provenance(), num_bytes: from.len() };
        self.state.lock().copies.push(copy);
        Ok(())
    }

    fn alloc_pinned(&self, num_bytes: usize) -> Result<NonNull<u8>, DriverError> {
        let layout = Layout::from_size_align(num_bytes.max(1), PINNED_ALIGNMENT)
            .map_err(|_| failure("an allocation is too large"))?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.ok_or_else(|| failure("out of memory"))?;
        self.state.lock().pinned.insert(start.as_ptr().expose_provenance(), layout);
        Ok(start)
    }

    unsafe fn free_pinned(&self, start: NonNull<u8>) {
        let layout = self.state.lock().pinned.remove(&start.as_ptr().expose_provenance());
        if let Some(layout) = layout {
            // SAFETY: allocated with this layout; the caller promises that nobody uses it.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
    }

    unsafe fn download(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError> {
        if stream == Stream::Copy {
            self.state.lock().make_copies();
        }
        let from: *const u8 = std::ptr::with_exposed_provenance(from.0 as usize);
        // SAFETY: the caller's promise.
        unsafe { to.as_mut_ptr().copy_from(from, to.len()) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &[u8],
    ) -> Result<(), DriverError> {
        let mut state = self.state.lock();
        let index = self.index(&mut state, kernel)?;
        if let Some(recording) = &mut state.recording {
            recording.push(Recorded { kernel, shape, params: params.to_vec() });
            return Ok(());
        }
        if self.order == Order::Compared {
            // SAFETY: the caller's promise.
            return unsafe { self.compare(&state, index, (kernel, shape, params)) };
        }
        drop(state);
        // SAFETY: the caller's promise.
        unsafe { self.run(index, shape, params, 0) }
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        if stream == Stream::Copy {
            self.state.lock().make_copies();
        }
        Ok(())
    }

    fn record(&self, _: Stream) -> Result<Event, DriverError> {
        let mut state = self.state.lock();
        state.num_events += 1;
        Ok(Event(state.num_events))
    }

    fn has_passed(&self, _: Event) -> Result<bool, DriverError> {
        self.state.lock().make_copies();
        Ok(true)
    }

    fn wait(&self, _: Stream, _: Event) -> Result<(), DriverError> {
        self.state.lock().make_copies();
        Ok(())
    }

    fn has_clock(&self) -> bool {
        false
    }

    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f32, DriverError> {
        Err(failure("an emulated GPU has no clock"))
    }

    fn begin_recording(&self) -> Result<(), DriverError> {
        let mut state = self.state.lock();
        match state.recording.replace(Vec::new()) {
            None => Ok(()),
            Some(_) => Err(failure("launches are recorded already")),
        }
    }

    fn end_recording(&self) -> Result<Graph, DriverError> {
        let mut state = self.state.lock();
        let recorded = state.recording.take().ok_or_else(|| failure("no launches are recorded"))?;
        state.graphs.push(recorded.into());
        Ok(Graph(state.graphs.len() as u64 - 1))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), DriverError> {
        let recorded = self.state.lock().graphs.get(graph.0 as usize).cloned();
        let recorded = recorded.ok_or_else(|| failure("there is no such graph"))?;
        for Recorded { kernel, shape, params } in &*recorded {
            // SAFETY: the caller's promise.
            unsafe { self.launch(kernel, *shape, params)? };
        }
        Ok(())
    }
}

impl Drop for EmulatedDriver {
    fn drop(&mut self) {
        for (&start, &layout) in &self.state.get_mut().allocations {
            let start = std::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: allocated with this layout; buffers keep their driver alive.
            unsafe { dealloc(start, layout) };
        }
    }
}
