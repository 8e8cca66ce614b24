//! `weft bench`: flags in, a report out. Joins the load generator with its targets.

use crate::adapter_flags::{self, NamedAdapter};
use crate::args::bench::{AdapterNamingChoice, EndpointChoice, PromptStyleChoice};
use crate::args::serve::LoadFormat;
use crate::args::{BenchAdaptersArgs, BenchEngineArgs, BenchServeArgs, LoadArgs};
use crate::device::{self, BuiltExecutor};
use crate::engine_target::EngineTarget;
use crate::machine;
use crate::model_source::ModelSource;
use crate::output::write_json;
use crate::progress::count_bar;
use crate::random_adapters::RandomAdapters;
use crate::serve::{engine_config, find_model};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use weft_adapters::{AdapterLease, AdapterRegistry};
use weft_bench::{
    AdapterNaming, AdapterRecipe, Arrivals, DriveLimits, Endpoint, HttpConfig, HttpTarget,
    PromptStyle, Report, Target, WorkloadConfig, drive, write_adapter,
};
use weft_types::Module;

/// Loads a server over HTTP.
///
/// # Errors
/// If the server cannot be reached, or the flags contradict each other.
pub async fn serve(args: BenchServeArgs) -> Result<Report> {
    let mut target = HttpTarget::new(HttpConfig {
        url: args.url.clone(),
        endpoint: match args.endpoint {
            EndpointChoice::Completions => Endpoint::Completions,
            EndpointChoice::Chat => Endpoint::Chat,
        },
        prompt_style: match args.prompt_style {
            PromptStyleChoice::TokenIds => PromptStyle::TokenIds,
            PromptStyleChoice::Text => PromptStyle::Text,
        },
        adapter_naming: match args.adapter_naming {
            AdapterNamingChoice::Model => AdapterNaming::Model,
            AdapterNamingChoice::LoraId => AdapterNaming::LoraId,
        },
        new_connections: args.new_connections,
        api_key: args.api_key.clone(),
        user: args.user.clone(),
    })?;
    let wants_all = args.adapters == ["all"];
    let listed =
        if args.model.is_none() || wants_all { target.models().await? } else { Vec::new() };
    let base = match &args.model {
        Some(model) => model.clone(),
        None => listed
            .iter()
            .find(|card| card.parent.is_none())
            .map(|card| card.id.clone())
            .context("the server lists no base model; name one with --model")?,
    };
    let mut adapters: Vec<String> = if wants_all {
        listed.into_iter().filter(|card| card.parent.is_some()).map(|card| card.id).collect()
    } else if let Some(prefix) = &args.adapter_prefix {
        (0..args.num_adapters.unwrap_or(0)).map(|i| format!("{prefix}{i}")).collect()
    } else {
        args.adapters.clone()
    };
    if let Some(num_adapters) = args.num_adapters {
        ensure!(
            adapters.len() >= num_adapters,
            "--num-adapters {num_adapters} is more than the {} adapters there are",
            adapters.len()
        );
        adapters.truncate(num_adapters);
    }
    target.calibrate(&base).await;
    run(target, args.url.clone(), &args.load, base, adapters).await
}

/// Loads an engine in this process.
///
/// # Errors
/// If the model or an adapter cannot be loaded, or the flags contradict each other.
pub async fn engine(args: BenchEngineArgs) -> Result<Report> {
    ensure!(args.ranks.iter().all(|&rank| rank > 0), "--ranks: a rank must be at least 1");
    let source = match args.engine.load_format {
        LoadFormat::Auto => find_model(Some(&args.model))?,
        LoadFormat::Dummy => ModelSource {
            path: PathBuf::from(&args.model),
            default_name: args.model.clone(),
            given: args.model.clone(),
        },
    };
    let BuiltExecutor { executor, spec, chunk_bytes, pages, base_weights, facts } =
        device::build_executor(&source.path, &args.engine, args.adapter_args.max_lora_rank)?;
    let base_names = vec![source.default_name.clone()];
    let mut config =
        adapter_flags::registry_config(&args.adapter_args, spec.clone(), base_names, chunk_bytes);
    config.pages = pages;
    config.base_weights = base_weights;
    let mut named = adapter_flags::named_adapters(&args.adapter_args)?;
    if args.adapters > 0 {
        ensure!(named.is_empty(), "--adapters makes random adapters; leave out --adapter with it");
        let modules = modules_of(&args.target_modules)?;
        let random = RandomAdapters::new(spec.clone(), args.adapters, args.ranks.clone(), modules);
        named.extend(random.names().map(|(name, path)| NamedAdapter { name, path }));
        config.storage = Arc::new(random);
        // Nobody is served yet: all processors may make them.
        config.max_concurrent_lowerings = machine::num_cores();
    }
    let registry = adapter_flags::open_registry(&args.adapter_args, config, &named)?;
    let names: Vec<String> = registry.list().into_iter().map(|info| info.name).collect();
    let leases = load_all(&registry, &names).await?;
    // All may wait at once, though one tenant sends them, who gets most places but not all.
    let config = engine_config(&args.engine, 2 * args.load.num_requests);
    let handle = weft_engine::start(executor, spec.vocab_size, config);
    let where_ = format!("{} in this process, {}", source.default_name, facts.device);
    let target = EngineTarget::new(handle.clone(), leases);
    let report = run(target, where_, &args.load, source.default_name, names).await;
    handle.shutdown(false);
    report
}

/// Brings adapters to host memory, as many at once as the registry likes.
async fn load_all(
    registry: &AdapterRegistry,
    names: &[String],
) -> Result<HashMap<String, AdapterLease>> {
    let bar = count_bar(names.len() as u64, "loading adapters");
    let mut loads = JoinSet::new();
    for name in names.iter().cloned() {
        let registry = registry.clone();
        loads.spawn(async move { (registry.resolve(&name).await, name) });
    }
    let mut leases = HashMap::new();
    while let Some(loaded) = loads.join_next().await {
        let (lease, name) = loaded?;
        leases.insert(name, lease?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(leases)
}

/// Linears by the names that flags give them.
fn modules_of(names: &[String]) -> Result<Vec<Module>> {
    let find = |name: &String| {
        let has_name = |module: &Module| {
            let full = module.hf_name();
            full == name || full.strip_suffix("_proj") == Some(name)
        };
        let found = Module::ALL.into_iter().find(has_name);
        found.ok_or_else(|| anyhow!("--target-modules: `{name}` is not a linear of a layer"))
    };
    names.iter().map(find).collect()
}

/// Writes adapters with random weights.
///
/// # Errors
/// If the model cannot be read or a file cannot be written.
pub fn adapters(args: &BenchAdaptersArgs) -> Result<()> {
    ensure!(args.ranks.iter().all(|&rank| rank > 0), "--ranks: a rank must be at least 1");
    let modules = modules_of(&args.target_modules)?;
    let spec = device::read_spec(&find_model(Some(&args.model))?.path)?;
    let bar = count_bar(args.num as u64, "writing adapters");
    for (i, &rank) in (0..args.num).zip(args.ranks.iter().cycle()) {
        let dir = args.dir.join(format!("{}{i}", args.prefix));
        let recipe = AdapterRecipe { rank, modules: modules.clone(), seed: args.seed + i as u64 };
        write_adapter(&dir, &spec, &recipe)
            .with_context(|| format!("writing {}", dir.display()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("wrote {} adapters to {}", args.num, args.dir.display());
    Ok(())
}

async fn run<T: Target>(
    target: T,
    place: String,
    load: &LoadArgs,
    base: String,
    adapters: Vec<String>,
) -> Result<Report> {
    let id = |bound: usize| u32::try_from(bound).context("--token-ids is out of range");
    let workload = WorkloadConfig {
        num_requests: load.num_requests,
        num_warmup: load.warmup,
        base,
        adapters,
        popularity: load.distribution,
        arrivals: match load.rate {
            Some(rate) => Arrivals::Open { rate, cv: load.cv },
            None => Arrivals::Closed { concurrency: load.concurrency },
        },
        input_len: load.input_len,
        output_len: load.output_len,
        shared_prefix_len: load.shared_prefix,
        token_low: id(load.token_ids.min)?,
        token_high: id(load.token_ids.max)?,
        seed: load.seed,
    };
    let workload = workload.generate()?;
    let config = workload.config.clone();
    let limits = DriveLimits {
        max_request: Duration::from_secs(load.max_request_time),
        max_run: Duration::from_secs(load.max_time),
    };
    let bar = count_bar(load.num_requests as u64, "requests");
    let on_done = {
        let bar = bar.clone();
        move || bar.inc(1)
    };
    let outcome = drive(Arc::new(target), workload, limits, on_done).await;
    bar.finish_and_clear();
    let report = match outcome {
        Ok(outcome) => Report::new(config, place, &outcome),
        Err(sentence) => bail!("{sentence}"),
    };
    if let Some(path) = &load.json {
        write_json(path, &report)?;
    }
    Ok(report)
}
