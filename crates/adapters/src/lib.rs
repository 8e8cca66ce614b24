//! From a PEFT directory to a pinned, validated adapter.
//!
//! * [`load_peft_dir`] turns `adapter_config.json` + `adapter_model.safetensors` of any method that fits
//!   into a [`weft_types::LoweredAdapter`], or says in one sentence why it will not. Nothing in the files
//!   is ignored: what cannot be computed exactly is refused.
//! * [`AdapterRegistry`] maps names to generations and keeps them packed in host memory, within a
//!   budget: given at start, found in a directory when first asked for, or loaded at run time. A
//!   [`AdapterLease`] keeps its generation alive; the rest may be evicted, and is read again.
//!
//! Knows no device, no HTTP and no scheduler.

mod adapter_hub;
mod all_refusals;
mod backoff;
mod base_weights;
mod buffers;
mod compose;
mod composing;
mod composition;
mod config;
mod directory;
mod dtype;
mod error;
mod host_cache;
mod in_dtype;
mod info;
mod integrity;
mod json;
mod lease;
mod listing;
mod loads;
mod locate;
mod lower;
mod matrix;
mod modules;
mod names;
mod pace;
mod peft_config;
mod polite;
mod quoted;
mod read;
mod registry;
mod remote;
mod state;
mod storage;
mod targets;
mod tensor_names;
mod tensors;

pub use all_refusals::all_refusals;
pub use base_weights::{BaseLinear, BaseWeights, ForBase};
pub use composition::{Composition, CompositionPart, MAX_PARTS, MAX_SCALE};
pub use config::RegistryConfig;
pub use dtype::AdapterDtype;
pub use error::{AdapterError, Refusal, RetryHint};
pub use in_dtype::in_dtype;
pub use info::{AdapterInfo, AdapterTier, RegistryStats};
pub use lease::AdapterLease;
pub use listing::{adapter_files, telling_files};
pub use lower::lower_peft_bytes;
pub use names::{MAX_NAME_BYTES, check_adapter_name};
pub use read::{LoadLimits, load_peft_dir};
pub use registry::AdapterRegistry;
pub use remote::{Admitted, Asker, FetchError, Fetching, LocalOnly, RemoteSources, is_uri};
pub use storage::{FileStamp, LocalFiles, Storage, StoredFile};
