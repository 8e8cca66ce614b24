//! The compiled kernels inside this program, and their functions on a device. A fatbin is loaded when
//! one of its kernels is first asked for.

use super::api::Context;
use crate::driver::DriverError;
use cudarc::driver::sys::{self, CUfunction_attribute};
use rustc_hash::FxHashMap;
use std::ffi::{CString, c_int};

/// Dynamic shared memory that every launch may have without asking, less what is static.
const UNASKED_SHARED_BYTES: u32 = 48 << 10;

/// A file of kernels, for all architectures.
pub(super) struct Fatbin {
    /// Folder and file.
    file: &'static str,
    image: &'static Aligned<[u8]>,
    kernels: &'static [&'static str],
}

/// The driver reads headers of the image in place.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

// TOOLKIT_MAJOR, FATBINS: by the build script.
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// A kernel on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) raw: sys::CUfunction,
    /// Of the struct that it takes.
    pub(super) params_bytes: usize,
    /// Dynamic shared memory that it may have by now.
    allowed_shared_bytes: u32,
}

/// All kernels on a device.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    modules: Vec<sys::CUmodule>,
    functions: FxHashMap<&'static str, Function>,
}

impl Kernels {
    /// A kernel, allowed so much dynamic shared memory.
    pub(super) fn get(
        &mut self,
        context: &Context,
        kernel: &'static str,
        shared_bytes: u32,
    ) -> Result<Function, DriverError> {
        if !self.functions.contains_key(kernel) {
            let fatbin = FATBINS.iter().find(|fatbin| fatbin.kernels.contains(&kernel));
            let fatbin =
                fatbin.ok_or_else(|| DriverError(format!("there is no kernel {kernel}")))?;
            context.apart_from_recording(|| self.load(context, fatbin))?;
        }
        let function = self.functions.get_mut(kernel);
        let function =
            function.ok_or_else(|| DriverError(format!("there is no kernel {kernel}")))?;
        if shared_bytes > function.allowed_shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let result = context.apart_from_recording(|| unsafe {
                sys::cuFuncSetAttribute(function.raw, attribute, shared_bytes as c_int)
            });
            let doing = format!("giving {kernel} {shared_bytes} bytes of shared memory a block");
            context.check(result, &doing)?;
            function.allowed_shared_bytes = shared_bytes;
        }
        Ok(*function)
    }

    fn load(&mut self, context: &Context, fatbin: &Fatbin) -> Result<(), DriverError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: an image by nvcc, aligned, for all time.
        let result =
            unsafe { sys::cuModuleLoadData(&raw mut module, fatbin.image.0.as_ptr().cast()) };
        context.check(result, &format!("loading the kernels of {}", fatbin.file))?;
        self.modules.push(module);
        for &kernel in fatbin.kernels {
            let function = find(context, module, kernel)?;
            self.functions.insert(kernel, function);
        }
        Ok(())
    }

    /// Unloads all.
    ///
    /// # Safety
    /// Nothing runs any more.
    pub(super) unsafe fn unload(&mut self) {
        self.functions.clear();
        for module in self.modules.drain(..) {
            // SAFETY: loaded above; the caller's promise.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

fn find(
    context: &Context,
    module: sys::CUmodule,
    kernel: &'static str,
) -> Result<Function, DriverError> {
    let doing = format!("looking up {kernel}");
    let name = CString::new(kernel).map_err(|_| DriverError(format!("{kernel} has a NUL")))?;
    let (mut raw, mut static_bytes) = (std::ptr::null_mut(), 0);
    let (mut offset, mut params_bytes) = (0, 0);
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: a loaded module and a string that ends; each call writes one value or two.
    unsafe {
        let result = sys::cuModuleGetFunction(&raw mut raw, module, name.as_ptr());
        context.check(result, &doing)?;
        let result = sys::cuFuncGetAttribute(&raw mut static_bytes, attribute, raw);
        context.check(result, &doing)?;
        let result = sys::cuFuncGetParamInfo(raw, 0, &raw mut offset, &raw mut params_bytes);
        context.check(result, &doing)?;
    }
    let allowed_shared_bytes = UNASKED_SHARED_BYTES.saturating_sub(static_bytes as u32);
    Ok(Function { raw, params_bytes, allowed_shared_bytes })
}
