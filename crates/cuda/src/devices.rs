//! Which GPUs this machine has, which of them Weft would use, and why not the others. In: the system.
//! Out: a [`Survey`], or an open [`Gpu`].

use crate::driver::{DeviceFacts, Driver, DriverError};
use crate::emulated::{EmulatedDriver, Order};
use crate::gpu::Gpu;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

/// Names the library of emulated kernels that takes the place of a driver. For tests.
pub const EMULATOR_VARIABLE: &str = "WEFT_CUDA_EMULATOR";

/// In which order the emulated threads run: `fixed`, or `compared` to find races.
pub const ORDER_VARIABLE: &str = "WEFT_CUDA_EMULATOR_ORDER";

/// The kernels use asynchronous copies and bfloat16: Ampere.
const MIN_CAPABILITY: (u32, u32) = (8, 0);

/// Less holds no model that is worth a GPU.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// Why there is no GPU to talk to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The feature `cuda` is off.
    #[error("this weft was built without CUDA; build it with `--features cuda` to use a GPU")]
    NotBuilt,
    /// libcuda cannot be loaded.
    #[error("there is no NVIDIA driver on this machine (libcuda.so was not found)")]
    NoLibrary,
    /// It lacks a function.
    #[error(
        "the NVIDIA driver is too old: it has no {missing}; this weft needs a driver for CUDA {needed_major}"
    )]
    LacksFunction {
        /// By name.
        missing: &'static str,
        /// Of the compiler of the kernels.
        needed_major: u32,
    },
    /// It cannot load the kernels.
    #[error(
        "the NVIDIA driver is for CUDA {}.{}, and this weft needs one for CUDA {needed_major}; \
         update the driver, or build weft with an older nvcc", found.0, found.1
    )]
    TooOld {
        /// The driver's.
        found: (u32, u32),
        /// Of the compiler of the kernels.
        needed_major: u32,
    },
    /// A driver, and nothing to drive.
    #[error("the NVIDIA driver is here, but it sees no GPU")]
    NoDevice,
    /// Something else, in the driver's words.
    #[error("the NVIDIA driver does not start: {0}")]
    DoesNotStart(String),
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number for [`open`].
    pub ordinal: usize,
    /// Which it is.
    pub facts: DeviceFacts,
    /// Memory that nobody has.
    pub free_bytes: u64,
    /// Why Weft would not use it.
    pub refusal: Option<String>,
}

/// All devices, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// In the driver's order.
    pub devices: Result<Vec<Found>, Absence>,
}

impl Survey {
    /// The first device that Weft would use.
    #[must_use]
    pub fn usable(&self) -> Option<&Found> {
        self.devices.iter().flatten().find(|found| found.refusal.is_none())
    }
}

/// Why Weft would not use a device that answered.
pub(crate) fn refusal(facts: &DeviceFacts, free_bytes: u64) -> Option<String> {
    let (major, minor) = facts.capability;
    if facts.capability < MIN_CAPABILITY {
        let (needed_major, needed_minor) = MIN_CAPABILITY;
        return Some(format!(
            "its compute capability is {major}.{minor}, and Weft's kernels need \
             {needed_major}.{needed_minor} (Ampere) or later"
        ));
    }
    (free_bytes < MIN_FREE_BYTES).then(|| {
        let (free, needed) = (free_bytes >> 20, MIN_FREE_BYTES >> 20);
        format!("only {free} MiB of its memory are free, and Weft wants {needed} MiB at least")
    })
}

fn emulator() -> Option<Result<EmulatedDriver, DriverError>> {
    let library = std::env::var_os(EMULATOR_VARIABLE).filter(|path| !path.is_empty())?;
    Some(emulated(&library, std::env::var_os(ORDER_VARIABLE).as_deref()))
}

fn emulated(library: &OsStr, order: Option<&OsStr>) -> Result<EmulatedDriver, DriverError> {
    let order = match order.filter(|order| !order.is_empty()) {
        None => Order::Fixed,
        Some(order) => order
            .to_string_lossy()
            .parse::<Order>()
            .map_err(|error| DriverError(format!("{ORDER_VARIABLE}: {error}")))?,
    };
    EmulatedDriver::load(Path::new(library), order)
}

/// Looks at all devices. Takes a moment for each.
#[must_use]
pub fn survey() -> Survey {
    let devices = match emulator() {
        Some(Ok(driver)) => {
            let facts = driver.facts().clone();
            let free_bytes = driver.free_memory().unwrap_or(0);
            let refusal = refusal(&facts, free_bytes);
            Ok(vec![Found { ordinal: 0, facts, free_bytes, refusal }])
        }
        Some(Err(error)) => Err(Absence::DoesNotStart(error.to_string())),
        None => real_devices(),
    };
    Survey { devices }
}

/// Opens a device.
///
/// # Errors
/// Why there is none of this number, or why it would not do.
pub fn open(ordinal: usize) -> Result<Gpu, DriverError> {
    let driver: Arc<dyn Driver> = match emulator() {
        Some(driver) => Arc::new(driver?),
        None => real_driver(ordinal)?,
    };
    match refusal(driver.facts(), driver.free_memory()?) {
        None => Ok(Gpu::new(driver)),
        Some(reason) => {
            let name = &driver.facts().name;
            Err(DriverError(format!("GPU {ordinal}, {name}, cannot be used: {reason}")))
        }
    }
}

#[cfg(feature = "cuda")]
fn real_devices() -> Result<Vec<Found>, Absence> {
    crate::real::devices()
}

#[cfg(feature = "cuda")]
fn real_driver(ordinal: usize) -> Result<Arc<dyn Driver>, DriverError> {
    Ok(Arc::new(crate::real::RealDriver::open(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn real_devices() -> Result<Vec<Found>, Absence> {
    Err(Absence::NotBuilt)
}

#[cfg(not(feature = "cuda"))]
fn real_driver(_: usize) -> Result<Arc<dyn Driver>, DriverError> {
    Err(DriverError(Absence::NotBuilt.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(capability: (u32, u32)) -> DeviceFacts {
        let name = "a GPU".to_owned();
        DeviceFacts { name, capability, num_multiprocessors: 80, memory_bytes: 80 << 30 }
    }

    #[test]
    fn old_and_full_devices_are_refused_with_the_reason() {
        assert_eq!(refusal(&facts((8, 0)), 2 << 30), None);
        assert_eq!(refusal(&facts((12, 0)), 2 << 30), None);
        let old = refusal(&facts((7, 5)), 2 << 30).unwrap();
        assert!(old.contains("capability is 7.5") && old.contains("8.0"), "{old}");
        let full = refusal(&facts((9, 0)), 300 << 20).unwrap();
        assert!(full.contains("only 300 MiB"), "{full}");
    }

    #[test]
    fn the_first_device_without_a_refusal_is_usable() {
        let found = |ordinal, refusal: Option<&str>| Found {
            ordinal,
            facts: facts((9, 0)),
            free_bytes: 0,
            refusal: refusal.map(str::to_owned),
        };
        let devices = Ok(vec![found(0, Some("too old")), found(1, None), found(2, None)]);
        assert_eq!(Survey { devices }.usable().unwrap().ordinal, 1);
        assert_eq!(Survey { devices: Err(Absence::NoLibrary) }.usable(), None);
    }

    #[test]
    fn an_order_that_nobody_knows_is_told() {
        let load = |order: &str| emulated("/no/such".as_ref(), Some(order.as_ref()));
        let error = load("random").unwrap_err().to_string();
        assert!(error.contains("WEFT_CUDA_EMULATOR_ORDER: there is no order `random`"), "{error}");
        for order in ["", "fixed", "compared"] {
            let error = load(order).unwrap_err().to_string();
            assert!(error.contains("cannot load"), "{error}");
        }
    }

    /// Neither machines with a GPU nor ones without may panic.
    #[test]
    fn a_survey_and_an_open_device_agree() {
        let survey = survey();
        match open(0) {
            Ok(gpu) => {
                let found = &survey.devices.unwrap()[0];
                assert_eq!(*gpu.driver().facts(), found.facts);
            }
            Err(error) => match survey.devices {
                Ok(devices) => assert!(devices[0].refusal.is_some(), "{error}"),
                Err(absence) => assert!(error.0.contains(&absence.to_string()), "{error}"),
            },
        }
    }
}
