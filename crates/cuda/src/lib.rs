//! The CUDA kernels of `/kernels` behind safe-to-read wrappers.
//!
//! * [`driver`]: what a GPU's driver does for us; [`emulated`]: the same without a GPU.
//! * [`gpu`]: a device and buffers in its memory.
//! * [`ops`]: one file for each family of kernels.
//! * [`adapter_table`], [`work_list`]: what the LoRA kernels read of an adapter, and of a step.
//!
//! In: device addresses and shapes. Knows nothing of requests, sequences or files.

#![expect(unsafe_code, reason = "drivers, and kernels that read and write raw device memory")]

pub mod adapter_table;
pub mod driver;
pub mod emulated;
pub mod gpu;
pub mod ops;
pub mod work_list;

pub use driver::{DevicePtr, Driver, DriverError, Stream};
pub use emulated::{EmulatedDriver, Order};
pub use gpu::{Buffer, Gpu, HalfType};
