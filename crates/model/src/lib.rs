//! Base models: what a checkpoint says, its weights in the device's layout, and the decoder.
//!
//! In: a GGUF file or a Hugging Face directory, then [`ForwardBatch`]es. Out: logits. Knows no
//! sequence, no schedule and no sampling.
//!
//! * [`config`], [`hf_config`], [`gguf_config`], [`rope`]: a model is a description.
//! * [`load`]: GGUF or Hugging Face → [`ModelWeights`], quantized as stored or on request;
//!   [`quantization`], [`bitsandbytes`], [`zero_points`] (GPTQ, AWQ) and [`nf4`] for what tools make.
//! * [`WeightCache`]: packed weights of an earlier start, mapped.
//! * [`checkpoint`]: single linears of a checkpoint, later.
//! * [`device`]: the operations a decoder needs; [`cpu`]: those on the CPU.
//! * [`decoder`]: the one decoder.

pub mod batch;
mod bitsandbytes;
pub mod checkpoint;
pub mod config;
pub mod cpu;
mod cpu_project;
pub mod cuda;
pub mod decoder;
pub mod device;
mod error;
mod ggml_blocks;
mod gguf_config;
mod gguf_source;
mod hf_config;
mod hf_source;
pub mod load;
mod mapped_file;
mod nf4;
mod packed_file;
mod quantization;
mod quantize;
mod rope;
mod shapes;
mod source_identity;
mod tensor_files;
mod weight_cache;
pub mod weights;
mod zero_points;

pub use batch::{AdapterSegment, ForwardBatch};
pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use cpu::CpuDevice;
pub use cuda::CudaDevice;
pub use decoder::Decoder;
pub use device::{Device, Projection};
pub use error::ModelError;
pub use load::{LoadOptions, LoadedModel, Quantize};
pub use packed_file::PackedFileError;
pub use source_identity::PACKING_VERSION;
pub use tensor_files::weight_files;
pub use weight_cache::WeightCache;
pub use weights::ModelWeights;
