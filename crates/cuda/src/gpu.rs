//! A device and buffers in its memory: what the wrappers of kernels work with.

use crate::driver::{DevicePtr, Driver, DriverError, Shape, Stream};
use bytemuck::{NoUninit, Pod};
use std::ops::Range;
use std::sync::Arc;

/// 16-bit floats of activations and of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HalfType {
    /// IEEE half precision.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
}

/// A device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
}

impl Gpu {
    /// Behind this driver.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver }
    }

    /// Its driver.
    #[must_use]
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Memory for `len` values of `T`.
    ///
    /// # Errors
    /// When there is not as much.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>, DriverError> {
        let memory = self.driver.alloc(len * size_of::<T>())?;
        Ok(Buffer { gpu: self.clone(), memory, len, of: std::marker::PhantomData })
    }

    /// Memory with these values.
    ///
    /// # Errors
    /// When there is not as much, or the driver fails.
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>, DriverError> {
        let mut buffer = self.alloc(values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// The kernel takes `P`, and all memory that it touches is there and nobody else's.
    ///
    /// # Errors
    /// When there is no such kernel or the driver fails.
    pub unsafe fn launch<P: NoUninit>(
        &self,
        kernel: &'static str,
        shape: Shape,
        params: &P,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(kernel, shape, bytemuck::bytes_of(params)) }
    }
}

/// `len` values of `T` in device memory.
#[derive(Debug)]
pub struct Buffer<T> {
    gpu: Gpu,
    memory: DevicePtr,
    len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Where it begins.
    #[must_use]
    pub fn ptr(&self) -> DevicePtr {
        self.memory
    }

    /// Where value `index` lies.
    ///
    /// # Panics
    /// Beyond the end.
    #[must_use]
    pub fn at(&self, index: usize) -> DevicePtr {
        assert!(index <= self.len, "value {index} of {}", self.len);
        self.memory.add(index * size_of::<T>())
    }

    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites values from `index` on, after what the device does now.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn write(&mut self, index: usize, values: &[T]) -> Result<(), DriverError> {
        assert!(
            index + values.len() <= self.len,
            "{} values at {index} of {}",
            values.len(),
            self.len
        );
        // SAFETY: in bounds; the buffer is borrowed exclusively, and its stream keeps the order.
        unsafe {
            self.gpu.driver.upload(Stream::Compute, self.at(index), bytemuck::cast_slice(values))
        }
    }

    /// Waits for the device, and reads values.
    ///
    /// # Errors
    /// When the driver fails, or what the device did before.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<T>, DriverError> {
        let mut values = vec![T::zeroed(); range.len()];
        self.read_into(range.start, &mut values)?;
        Ok(values)
    }

    /// As [`Self::read`], into the caller's memory.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn read_into(&self, index: usize, values: &mut [T]) -> Result<(), DriverError> {
        assert!(
            index + values.len() <= self.len,
            "{} values at {index} of {}",
            values.len(),
            self.len
        );
        let bytes = bytemuck::cast_slice_mut(values);
        // SAFETY: in bounds; writes of kernels come before in the same stream.
        unsafe { self.gpu.driver.download(Stream::Compute, self.at(index), bytes) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: this owner was the last.
        unsafe { self.gpu.driver.free(self.memory) };
    }
}
