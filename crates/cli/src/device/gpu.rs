//! Models on a GPU: flags and a path in, an executor out.

use super::{
    BuiltExecutor, MemoryPlan, asked_kv_dtype, base_weights, kv_bytes_per_token, load, quantize,
};
use crate::args::EngineArgs;
use crate::args::serve::{CpuIsaChoice, DtypeChoice, LoadFormat};
use crate::size::ByteSize;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::Arc;
use weft_cuda::devices::Absence;
use weft_cuda::{DriverError, Gpu, HalfType, PinnedPages, Survey, devices};
use weft_model::ModelConfig;
use weft_model::cuda::CudaModel;
use weft_runner::CudaExecutor;

/// Of the memory that is free once weights are there, what KV cache and adapters get; the rest is for
/// activations and the driver.
const POOL_SHARE: (u64, u64) = (17, 20);

/// The first GPU that Weft can use.
///
/// # Errors
/// A sentence about the driver, or about the first GPU if none can be used.
pub(super) fn open() -> Result<Gpu> {
    let ordinal = devices::survey().usable().map_or(0, |found| found.ordinal);
    devices::open(ordinal).context("--device cuda")
}

/// The same for `--device auto`: where there is a GPU and it is not used, the log says why.
pub(super) fn open_if_usable() -> Option<Gpu> {
    if std::env::var_os(devices::EMULATOR_VARIABLE).is_some() {
        return None;
    }
    choose(&devices::survey(), devices::open, |reason| {
        tracing::warn!("{reason}; the model runs on the CPU unless there is another GPU");
    })
}

/// The first that opens. `say` hears of the others.
fn choose(
    survey: &Survey,
    open: impl Fn(usize) -> Result<Gpu, DriverError>,
    mut say: impl FnMut(String),
) -> Option<Gpu> {
    let found = match &survey.devices {
        Ok(found) => found,
        // A machine without a GPU.
        Err(Absence::NotBuilt | Absence::NoLibrary | Absence::NoDevice) => return None,
        Err(absence) => {
            say(absence.to_string());
            return None;
        }
    };
    found.iter().find_map(|found| {
        let reason = match &found.refusal {
            Some(refusal) => refusal.clone(),
            None => match open(found.ordinal) {
                Ok(gpu) => return Some(gpu),
                Err(error) => error.to_string(),
            },
        };
        say(format!("GPU {}, {}, is not used: {reason}", found.ordinal, found.facts.name));
        None
    })
}

/// Loads the model onto a GPU.
///
/// # Errors
/// A sentence about the GPU, the model, or flags that contradict each other.
pub(super) fn build(
    gpu: &Gpu,
    path: &Path,
    args: &EngineArgs,
    max_lora_rank: usize,
) -> Result<BuiltExecutor> {
    let half = match args.dtype {
        DtypeChoice::Auto | DtypeChoice::F16 => HalfType::F16,
        DtypeChoice::Bf16 => HalfType::Bf16,
    };
    let kv_dtype = asked_kv_dtype(args.kv_cache_dtype).unwrap_or(half.into());
    kv_dtype.on_gpu()?;
    if args.cpu_isa != CpuIsaChoice::Auto {
        bail!("--cpu-isa is for the CPU: leave it out");
    }
    if args.cpu_activations.is_some() {
        bail!("--cpu-activations is for the CPU; a GPU's activations are --dtype: leave it out");
    }
    let model = match args.load_format {
        LoadFormat::Dummy => CudaModel::dummy(gpu, half, ModelConfig::read(path)?)?,
        LoadFormat::Auto => CudaModel::upload(gpu, half, &load(path, args, None)?)?,
    };
    let bytes_per_token = kv_bytes_per_token(&model.config, kv_dtype);
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
    let executor = CudaExecutor::on_gpu(gpu, model, half, &config)?;
    let device = describe(gpu);
    let base_weights = match args.load_format {
        LoadFormat::Dummy => None,
        LoadFormat::Auto => Some(base_weights::of_checkpoint(path, quantize(args))?),
    };
    let built = BuiltExecutor::new(Box::new(executor), shape, weight_bytes, plan.kv_bytes, device);
    let pages = PinnedPages::new(gpu, |error| {
        tracing::warn!(
            "adapters go to the GPU more slowly, from memory that is not pinned: {error}"
        );
    });
    Ok(BuiltExecutor { pages: Arc::new(pages), base_weights, ..built })
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

#[cfg(test)]
mod tests {
    use super::*;
    use weft_cuda::devices::Found;
    use weft_cuda::driver::DeviceFacts;
    use weft_cuda::{EmulatedDriver, Order};

    fn emulated() -> Gpu {
        let library = Path::new(weft_emulator::LIBRARY);
        Gpu::new(Arc::new(EmulatedDriver::load(library, Order::Fixed).unwrap()))
    }

    fn survey(refusals: &[Option<&str>]) -> Survey {
        let found = |(ordinal, refusal): (usize, &Option<&str>)| Found {
            ordinal,
            facts: DeviceFacts {
                name: format!("model {ordinal}"),
                capability: (9, 0),
                num_multiprocessors: 1,
                memory_bytes: 1,
            },
            free_bytes: 1,
            refusal: refusal.map(str::to_owned),
        };
        Survey { devices: Ok(refusals.iter().enumerate().map(found).collect()) }
    }

    #[test]
    fn a_gpu_that_does_not_open_is_passed_over_with_the_reason() {
        let mut said = Vec::new();
        let survey = survey(&[Some("it is full"), None]);
        let fails = |_| Err(DriverError("the GPU failed while making a stream".into()));
        assert!(choose(&survey, fails, |line| said.push(line)).is_none());
        assert_eq!(
            said,
            [
                "GPU 0, model 0, is not used: it is full",
                "GPU 1, model 1, is not used: the GPU failed while making a stream"
            ]
        );
    }

    #[test]
    fn the_first_gpu_that_opens_is_taken() {
        let mut said = Vec::new();
        let survey = survey(&[None, None, None]);
        let open = |ordinal| match ordinal {
            0 => Err(DriverError("busy".into())),
            1 => Ok(emulated()),
            _ => panic!("one is enough"),
        };
        assert!(choose(&survey, open, |line| said.push(line)).is_some());
        assert_eq!(said, ["GPU 0, model 0, is not used: busy"]);
    }

    #[test]
    fn a_machine_without_a_gpu_is_no_news_but_a_driver_that_does_not_work_is() {
        let mut said = Vec::new();
        let old = Absence::TooOld { found: (11, 4), needed_major: 12 };
        for absence in [Absence::NotBuilt, Absence::NoLibrary, Absence::NoDevice, old] {
            let survey = Survey { devices: Err(absence) };
            let open = |_| panic!("there is none");
            assert!(choose(&survey, open, |line| said.push(line)).is_none());
        }
        assert!(said.len() == 1 && said[0].contains("CUDA 11.4"), "{said:?}");
    }
}
