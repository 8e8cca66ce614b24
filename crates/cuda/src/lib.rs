//! The CUDA kernels of `/kernels` behind safe-to-read wrappers.
//!
//! * [`driver`]: what a GPU's driver does for us; [`emulated`]: the same without a GPU; with the
//!   feature `cuda` also `real`, and the kernels compiled by nvcc.
//! * [`devices`]: which GPUs there are.
//! * [`gpu`]: a device and buffers in its memory.
//! * [`weights`]: a linear's weights on the device, repacked for its tensor cores.
//! * [`arena`], [`adapter`], [`tensor`], [`step_tables`]: what is in its memory.
//! * [`ops`]: one file for each family of kernels.
//! * [`step_ops`]: the decoder's operations, each a launch or two, checked and recorded.
//! * [`adapter_table`], [`work_list`]: what the LoRA kernels read of an adapter, and of a step.
//!
//! In: device addresses and shapes. Knows nothing of requests, sequences or files.

#![expect(unsafe_code, reason = "drivers, and kernels that read and write raw device memory")]

pub mod adapter;
pub mod adapter_table;
pub mod arena;
pub mod devices;
pub mod driver;
pub mod emulated;
pub mod gpu;
pub mod ops;
#[cfg(feature = "cuda")]
pub mod real;
mod step_given;
mod step_lora;
pub mod step_ops;
mod step_parts;
pub mod step_tables;
pub mod tensor;
pub mod weights;
pub mod work_list;

pub use adapter::CudaAdapter;
pub use arena::{CudaArena, CudaChunks};
pub use devices::{Survey, open, survey};
pub use driver::{DevicePtr, Driver, DriverError, Stream};
pub use emulated::{EmulatedDriver, Order};
pub use gpu::{Buffer, Gpu, HalfType};
pub use weights::{CudaLinear, WeightFormat};
