//! The driver's library: whether it is there, the context that calls are made in, and errors as
//! sentences. Nothing else may call into the library before [`start`] has said that it may.

use super::fatbins::TOOLKIT_MAJOR;
use crate::devices::Absence;
use crate::driver::DriverError;
use cudarc::driver::sys::{self, CUresult};
use parking_lot::Mutex;
use std::ffi::{CStr, c_int};

/// All that is called. The bindings panic at what a library lacks, so this is asked first.
const FUNCTIONS: [&str; 43] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Finds the library and initializes it.
pub(super) fn start() -> Result<(), Absence> {
    // SAFETY: loads the driver's library, as its users do.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absence::NoLibrary);
    }
    let needed_major = TOOLKIT_MAJOR as u32;
    let require = |missing: &'static str| {
        // SAFETY: the library is there; the symbol is only looked up.
        match unsafe { sys::culib().get::<unsafe extern "C" fn()>(missing.as_bytes()) } {
            Ok(_) => Ok(()),
            Err(_) => Err(Absence::LacksFunction { missing, needed_major }),
        }
    };
    require("cuDriverGetVersion")?;
    let mut version: c_int = 0;
    // SAFETY: writes one number. A driver runs what any compiler of its own major version made, and
    // of those before.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    let found = ((version / 1000) as u32, (version % 1000 / 10) as u32);
    if asked == CUresult::CUDA_SUCCESS && found.0 < needed_major {
        return Err(Absence::TooOld { found, needed_major });
    }
    FUNCTIONS.into_iter().try_for_each(require)?;
    // SAFETY: may be called again and again.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(Absence::NoDevice),
        other => return Err(Absence::DoesNotStart(describe(other))),
    }
    Ok(())
}

/// A sentence of the driver's, and its name.
fn describe(result: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: a constant string of the library, or null.
    let text = unsafe {
        match sys::cuGetErrorString(result, &raw mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy(),
            _ => "an error without a name".into(),
        }
    };
    format!("{text} ({result:?})")
}

/// Whether every later call will fail, too.
fn is_sticky(result: CUresult) -> bool {
    use CUresult::{
        CUDA_ERROR_ASSERT, CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_ECC_UNCORRECTABLE,
        CUDA_ERROR_HARDWARE_STACK_ERROR, CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_INVALID_ADDRESS_SPACE, CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_NVLINK_UNCORRECTABLE,
    };
    matches!(
        result,
        CUDA_ERROR_ASSERT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
    )
}

/// Fails with "the GPU failed while `doing`: …".
pub(super) fn check(result: CUresult, doing: &str) -> Result<(), DriverError> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(DriverError(format!("the GPU failed while {doing}: {}", describe(other)))),
    }
}

/// Number `attribute` of a device.
pub(super) fn attribute(
    device: sys::CUdevice,
    attribute: sys::CUdevice_attribute,
) -> Result<u32, DriverError> {
    let mut value: c_int = 0;
    // SAFETY: writes one number.
    let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
    check(result, "telling what it can do")?;
    Ok(value as u32)
}

/// A device's primary context: what is allocated and loaded on it belongs to that.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    last_kernel: Mutex<Option<&'static str>>,
}

// SAFETY: contexts may be used by all threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes it, or shares it with others in this process.
    pub(super) fn retain(device: sys::CUdevice) -> Result<Self, DriverError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle; the device exists.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device) };
        check(result, "making a context")?;
        let context = Self { device, raw, last_kernel: Mutex::default() };
        context.enter()?;
        Ok(context)
    }

    /// The calling thread's calls go to this context from here on.
    pub(super) fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: retained until this is dropped.
        check(unsafe { sys::cuCtxSetCurrent(self.raw) }, "entering its context")
    }

    /// As the function [`check`]; says what to do where no later call can work.
    pub(super) fn check(&self, result: CUresult, doing: &str) -> Result<(), DriverError> {
        if !is_sticky(result) {
            return check(result, doing);
        }
        let last = match *self.last_kernel.lock() {
            Some(kernel) => format!("the kernel launched last was {kernel}"),
            None => "no kernel was launched before".to_owned(),
        };
        Err(DriverError(format!(
            "the GPU failed while {doing}: {}; {last}, and the GPU is lost to this process until it \
             is restarted",
            describe(result)
        )))
    }

    /// The same where a sentence would cost more than the call.
    pub(super) fn check_with(
        &self,
        result: CUresult,
        doing: impl FnOnce() -> String,
    ) -> Result<(), DriverError> {
        match result {
            CUresult::CUDA_SUCCESS => Ok(()),
            result => self.check(result, &doing()),
        }
    }

    /// For [`Self::check`].
    pub(super) fn note_launch(&self, kernel: &'static str) {
        *self.last_kernel.lock() = Some(kernel);
    }

    /// Free and all bytes.
    pub(super) fn memory(&self) -> Result<(u64, u64), DriverError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.check(result, "counting its memory")?;
        Ok((free as u64, total as u64))
    }

    /// Runs what must not be called while this thread records launches, but has nothing to do with
    /// the recording: allocations, modules.
    pub(super) fn apart_from_recording<R>(&self, run: impl FnOnce() -> R) -> R {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the calling thread's mode with ours, and back.
        let exchange = |mode: &mut sys::CUstreamCaptureMode| unsafe {
            sys::cuThreadExchangeStreamCaptureMode(mode)
        };
        let before = exchange(&mut mode);
        let result = run();
        if before == CUresult::CUDA_SUCCESS {
            exchange(&mut mode);
        }
        result
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once; nothing uses it any more. What fails now fails for good.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::FUNCTIONS;
    use std::collections::BTreeSet;

    #[test]
    fn every_function_that_is_called_is_asked_for_first() {
        let sources = [
            include_str!("api.rs"),
            include_str!("fatbins.rs"),
            include_str!("mod.rs"),
            include_str!("events.rs"),
            include_str!("pinned.rs"),
            include_str!("queue.rs"),
            include_str!("staging.rs"),
        ];
        let calls = sources.iter().flat_map(|source| source.split(concat!("sys::", "cu")).skip(1));
        let name = |call: &str| {
            let end = call.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap();
            format!("cu{}", &call[..end])
        };
        let called: BTreeSet<String> = calls.map(name).filter(|name| name != "culib").collect();
        assert_eq!(called, FUNCTIONS.map(str::to_owned).into_iter().collect());
    }
}
