//! What a GPU's driver does for us, as a trait: the real one, or the emulated one, which runs the
//! same kernels on the host. Knows no kernel by name.

use std::fmt;
use std::ptr::NonNull;

/// An address in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address: an operand that is not there.
    pub const NULL: Self = Self(0);

    /// So many bytes further on.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "as the methods of pointers are called")]
    pub fn add(self, num_bytes: usize) -> Self {
        Self(self.0 + num_bytes as u64)
    }
}

/// Work within a stream runs in order; two streams run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Steps.
    Compute,
    /// Adapters on their way to the device.
    Copy,
}

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// Recorded launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// Which device, and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// As the driver spells it.
    pub name: String,
    /// Compute capability: (9, 0) is an H100.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// All device memory.
    pub memory_bytes: u64,
}

/// A grid of blocks of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Shape {
    /// A row of blocks.
    #[must_use]
    pub fn of(num_blocks: usize, threads: u32) -> Self {
        Self { grid: [num_blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }
}

/// Why the driver did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DriverError(pub String);

/// See the module. All methods may be called from any thread.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Which device this is.
    fn facts(&self) -> &DeviceFacts;

    /// Bytes of device memory that nobody has yet.
    ///
    /// # Errors
    /// When the driver fails.
    fn free_memory(&self) -> Result<u64, DriverError>;

    /// Memory aligned to 256 bytes. Its contents are whatever was there.
    ///
    /// # Errors
    /// When there is not as much.
    fn alloc(&self, num_bytes: usize) -> Result<DevicePtr, DriverError>;

    /// Gives back what [`Self::alloc`] gave, after all work so far.
    ///
    /// # Safety
    /// Nobody uses it any more.
    unsafe fn free(&self, memory: DevicePtr);

    /// Copies to the device, in the order of the stream. `from` was read when this returns.
    ///
    /// # Safety
    /// The target is as long, and no other stream touches it meanwhile.
    ///
    /// # Errors
    /// When the driver fails, or while launches are recorded.
    unsafe fn upload(&self, stream: Stream, to: DevicePtr, from: &[u8]) -> Result<(), DriverError>;

    /// As [`Self::upload`], but what lies in pinned memory may be read later: nobody copies it twice,
    /// and nobody waits.
    ///
    /// # Safety
    /// As there; and `from` stays as it is until the stream was waited for, even after an error.
    ///
    /// # Errors
    /// As there.
    unsafe fn enqueue_upload(
        &self,
        stream: Stream,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), DriverError>;

    /// Host memory that the device reads by itself, aligned to 64 bytes, full of zeros.
    ///
    /// # Errors
    /// When the system has no such memory, or the driver fails.
    fn alloc_pinned(&self, num_bytes: usize) -> Result<NonNull<u8>, DriverError>;

    /// Gives back what [`Self::alloc_pinned`] gave.
    ///
    /// # Safety
    /// Nobody uses it any more, nor does a copy.
    unsafe fn free_pinned(&self, start: NonNull<u8>);

    /// Copies from the device, after all that is in the stream, and waits for that.
    ///
    /// # Safety
    /// The source is as long, and no other stream writes it meanwhile.
    ///
    /// # Errors
    /// When the driver fails, or something in the stream did.
    unsafe fn download(
        &self,
        stream: Stream,
        from: DevicePtr,
        to: &mut [u8],
    ) -> Result<(), DriverError>;

    /// Runs a kernel in [`Stream::Compute`]; its one parameter is a struct of these bytes.
    ///
    /// # Safety
    /// The kernel takes such a struct, and all memory that it touches is there and nobody else's.
    ///
    /// # Errors
    /// When there is no such kernel or the driver fails.
    unsafe fn launch(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &[u8],
    ) -> Result<(), DriverError>;

    /// Waits for all that is in the stream.
    ///
    /// # Errors
    /// When something in the stream failed.
    fn synchronize(&self, stream: Stream) -> Result<(), DriverError>;

    /// A point in the stream: all work so far lies before it.
    ///
    /// # Errors
    /// When the driver fails.
    fn record(&self, stream: Stream) -> Result<Event, DriverError>;

    /// Whether the stream has come past a point. Forgets it if so.
    ///
    /// # Errors
    /// When something in the stream failed.
    fn has_passed(&self, event: Event) -> Result<bool, DriverError>;

    /// Work of `stream` from here on waits for a point of another.
    ///
    /// # Errors
    /// When the driver fails.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError>;

    /// Whether it can tell the time between two points: an emulated one cannot.
    fn has_clock(&self) -> bool {
        true
    }

    /// Milliseconds between two points that have passed; forgets both.
    ///
    /// # Errors
    /// When the driver fails.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, DriverError>;

    /// From here on launches are not run but recorded.
    ///
    /// # Errors
    /// When the driver fails.
    fn begin_recording(&self) -> Result<(), DriverError>;

    /// What was recorded since.
    ///
    /// # Errors
    /// When one of the launches could not be recorded.
    fn end_recording(&self) -> Result<Graph, DriverError>;

    /// Runs what was recorded.
    ///
    /// # Safety
    /// As for each [`Self::launch`].
    ///
    /// # Errors
    /// When the driver fails.
    unsafe fn replay(&self, graph: Graph) -> Result<(), DriverError>;
}
