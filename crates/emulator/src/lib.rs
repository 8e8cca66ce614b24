//! The CUDA kernels as shared libraries for the host. `weft-cuda` loads one in place of the driver.
//! Built by this crate's build script from `/kernels`.

/// Fast enough to serve a tiny model.
pub const LIBRARY: &str = concat!(env!("OUT_DIR"), "/libweft_plain.so");

/// Checks each access to memory. Loads only into a process that was started with
/// `LD_PRELOAD=`[`SANITIZER`].
pub const SANITIZED_LIBRARY: &str = concat!(env!("OUT_DIR"), "/libweft_sanitized.so");

/// The run time of AddressSanitizer.
pub const SANITIZER: &str = env!("WEFT_ASAN");
