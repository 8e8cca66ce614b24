//! Rows of activations in device memory.

use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu};

/// `[T, width]`; the memory has a fixed place and room, only T changes.
#[derive(Debug)]
pub struct CudaTensor {
    memory: Option<Buffer<u8>>,
    /// Where row 0 lies: elsewhere for a view of another tensor.
    start: DevicePtr,
    max_rows: usize,
    num_rows: usize,
    width: usize,
    element_bytes: usize,
}

impl CudaTensor {
    /// Room for `max_rows` of `width` elements of so many bytes.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn new(
        gpu: &Gpu,
        max_rows: usize,
        width: usize,
        element_bytes: usize,
    ) -> Result<Self, DriverError> {
        let memory = gpu.alloc(max_rows * width * element_bytes)?;
        let start = memory.ptr();
        Ok(Self { memory: Some(memory), start, max_rows, num_rows: 0, width, element_bytes })
    }

    /// What stands for a tensor that there was no memory for: it holds no row.
    #[must_use]
    pub fn without_memory(width: usize, element_bytes: usize) -> Self {
        let start = DevicePtr::NULL;
        Self { memory: None, start, max_rows: 0, num_rows: 0, width, element_bytes }
    }

    /// T
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Values of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether values are f32, not 16 bits.
    #[must_use]
    pub fn is_f32(&self) -> bool {
        self.element_bytes == 4
    }

    /// Row 0.
    #[must_use]
    pub fn ptr(&self) -> DevicePtr {
        self.start
    }

    /// Makes room for T rows, of which nothing is known yet.
    ///
    /// # Panics
    /// Beyond the room.
    pub fn set_rows(&mut self, num_rows: usize) -> DevicePtr {
        assert!(num_rows <= self.max_rows, "{num_rows} rows, room for {}", self.max_rows);
        self.num_rows = num_rows;
        self.start = self.own_start();
        self.start
    }

    fn own_start(&self) -> DevicePtr {
        self.memory.as_ref().map_or(DevicePtr::NULL, Buffer::ptr)
    }

    /// From here on the rows are `num_rows` of another tensor from `first` on, which must outlive
    /// their use.
    ///
    /// # Panics
    /// When that has fewer, or other elements.
    pub fn view(&mut self, of: &Self, first: usize, num_rows: usize) {
        assert!(first + num_rows <= of.num_rows, "rows {first} .. + {num_rows} of {}", of.num_rows);
        assert_eq!((self.width, self.element_bytes), (of.width, of.element_bytes));
        self.start = of.start.add(first * of.width * of.element_bytes);
        self.num_rows = num_rows;
    }

    /// Waits for the device, and reads all rows of an f32 tensor.
    ///
    /// # Errors
    /// When the driver fails, or what the device did before.
    ///
    /// # Panics
    /// When it is a view or not f32.
    pub fn read_f32(&self, values: &mut Vec<f32>) -> Result<(), DriverError> {
        assert!(self.is_f32() && self.start == self.own_start(), "an own f32 tensor");
        values.resize(self.num_rows * self.width, 0.0);
        let Some(memory) = &self.memory else { return Ok(()) };
        memory.read_into(0, bytemuck::cast_slice_mut(values))
    }
}
