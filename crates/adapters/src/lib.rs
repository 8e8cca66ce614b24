//! From a PEFT directory to a pinned, validated adapter.
//!
//! * [`load_peft_dir`] turns `adapter_config.json` + `adapter_model.safetensors` into a
//!   [`weft_types::LoweredAdapter`], or says in one sentence why it will not. Nothing in the files
//!   is ignored: what cannot be computed exactly is refused.
//! * [`AdapterRegistry`] maps names to loaded generations: given at start, found in a directory when
//!   first asked for, or loaded at run time. A [`AdapterLease`] keeps its generation alive.
//!
//! Knows no device, no HTTP and no scheduler.

mod directory;
mod error;
mod json;
mod lease;
mod loads;
mod lower;
mod matrix;
mod modules;
mod names;
mod peft_config;
mod quoted;
mod read;
mod registry;
mod targets;
mod tensor_names;
mod tensors;

pub use error::{AdapterError, Refusal};
pub use lease::AdapterLease;
pub use lower::lower_peft_bytes;
pub use names::{MAX_NAME_BYTES, check_adapter_name};
pub use read::{LoadLimits, load_peft_dir};
pub use registry::{AdapterInfo, AdapterRegistry, AdapterState, RegistryConfig};
