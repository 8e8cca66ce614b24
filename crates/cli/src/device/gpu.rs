//! Models on a GPU: flags and a path in, an executor out.

use super::{BuiltExecutor, MemoryPlan, base_weights, load, quantize};
use crate::args::EngineArgs;
use crate::args::serve::{KvCacheDtype, LoadFormat};
use crate::size::ByteSize;
use anyhow::{Context, Result, bail};
use std::path::Path;
use weft_cuda::{Gpu, HalfType, devices};
use weft_kernels::KvDtype;
use weft_kernels::kv::BLOCK_SIZE;
use weft_model::ModelConfig;
use weft_model::cpu::kv_shape;
use weft_model::cuda::CudaModel;
use weft_runner::CudaExecutor;

/// Of the memory that is free once weights are there, what KV cache and adapters get; the rest is for
/// activations and the driver.
const POOL_SHARE: (u64, u64) = (17, 20);

/// Loads the model onto the first usable GPU.
///
/// # Errors
/// A sentence about the GPU, the model, or flags that contradict each other.
pub(super) fn build(path: &Path, args: &EngineArgs, max_lora_rank: usize) -> Result<BuiltExecutor> {
    let gpu = devices::open(0).context("--device cuda")?;
    let half = HalfType::F16;
    let model = match args.load_format {
        LoadFormat::Dummy => CudaModel::dummy(&gpu, half, ModelConfig::read(path)?)?,
        LoadFormat::Auto => CudaModel::upload(&gpu, half, &load(path, args)?)?,
    };
    let kv_dtype = match args.kv_cache_dtype {
        KvCacheDtype::Auto | KvCacheDtype::F16 => KvDtype::F16,
        KvCacheDtype::Bf16 => KvDtype::Bf16,
        KvCacheDtype::F32 => bail!("--kv-cache-dtype f32 is for the CPU; a GPU takes f16 or bf16"),
    };
    let bytes_per_token = kv_shape(&model.config).block_bytes(kv_dtype) as u64 / BLOCK_SIZE as u64;
    let free = gpu.driver().free_memory()? / POOL_SHARE.1 * POOL_SHARE.0;
    let plan = MemoryPlan::new(args, model.config.spec.max_context, bytes_per_token, free)?;
    if plan.kv_bytes > free {
        bail!(
            "--memory {} is more than the {} that the GPU has left beside the weights",
            ByteSize(plan.kv_bytes),
            ByteSize(free)
        );
    }
    let (shape, weight_bytes) = (model.config.clone(), model.weight_bytes());
    let config = plan.runner_config(args, kv_dtype, max_lora_rank)?;
    let executor = CudaExecutor::on_gpu(&gpu, model, half, &config)?;
    let device = describe(&gpu);
    let base_weights = match args.load_format {
        LoadFormat::Dummy => None,
        LoadFormat::Auto => Some(base_weights::of_checkpoint(path, quantize(args))?),
    };
    let built = BuiltExecutor::new(Box::new(executor), shape, weight_bytes, plan.kv_bytes, device);
    Ok(BuiltExecutor { base_weights, ..built })
}

fn describe(gpu: &Gpu) -> String {
    let facts = gpu.driver().facts();
    let (major, minor) = facts.capability;
    format!(
        "{}, compute capability {major}.{minor}, {} of memory",
        facts.name,
        ByteSize(facts.memory_bytes)
    )
}

/// Whether `--device auto` takes a GPU.
pub(super) fn is_usable() -> bool {
    std::env::var_os(devices::EMULATOR_VARIABLE).is_none() && devices::survey().usable().is_some()
}
