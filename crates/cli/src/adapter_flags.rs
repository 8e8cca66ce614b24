//! Which adapters the flags name, and a registry that serves them. In: `--adapter`,
//! `--lora-modules`, and what is said about memory. Out: names and paths, checked for form and for
//! doubles; then the registry, with what was named loaded and pinned.

use crate::adapter_sources;
use crate::args::AdapterArgs;
use crate::args::serve::AdapterDtypeChoice;
use crate::progress::FetchBars;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_adapters::{AdapterDtype, AdapterError, AdapterRegistry, RegistryConfig};
use weft_sources::{Location, LocationError};
use weft_types::BaseModelSpec;

/// An adapter to load at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAdapter {
    /// What requests call it.
    pub name: String,
    /// A PEFT directory, or the text of a URI.
    pub path: PathBuf,
}

/// What is wrong with a flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterFlagError {
    /// Neither `NAME=PATH` nor JSON.
    #[error("{flag} `{given}`: write it as name=path, for example sql=./adapters/sql")]
    Form {
        /// Which flag.
        flag: &'static str,
        /// What was typed.
        given: String,
    },
    /// JSON without the keys.
    #[error(
        "--lora-modules `{given}`: {reason}; write {{\"name\": \"sql\", \"path\": \"./adapters/sql\"}}"
    )]
    Json {
        /// What was typed.
        given: String,
        /// What the parser said.
        reason: String,
    },
    /// Neither a path nor a URI that is served. What was typed may hold a password.
    #[error("{flag} {name}: {cause}")]
    Source {
        /// Which flag.
        flag: &'static str,
        /// The adapter.
        name: String,
        /// Why.
        cause: LocationError,
    },
    /// The flags or variables about sources.
    #[error("{0}")]
    Sources(String),
    /// One name twice.
    #[error("the adapter name `{0}` is given twice")]
    Twice(String),
    /// An adapter cannot be served.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter cannot be pinned.
    #[error("--pin {name}: {cause}")]
    Pin {
        /// Which.
        name: String,
        /// Why.
        cause: AdapterError,
    },
}

/// vLLM's JSON form. Its `base_model_name` is for the model card, which we fill ourselves.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraModule {
    name: String,
    path: PathBuf,
    #[serde(default, rename = "base_model_name")]
    _base_model_name: Option<String>,
}

/// All adapters that the flags name, in their order.
///
/// # Errors
/// See [`AdapterFlagError`].
pub fn named_adapters(args: &AdapterArgs) -> Result<Vec<NamedAdapter>, AdapterFlagError> {
    let mut named = Vec::new();
    for given in &args.adapter {
        named.push(name_and_path("--adapter", given)?);
    }
    for given in &args.lora_modules {
        let trimmed = given.trim_start();
        if trimmed.starts_with(['{', '[']) {
            named.extend(from_json(given)?);
        } else {
            named.push(name_and_path("--lora-modules", given)?);
        }
    }
    for (i, adapter) in named.iter().enumerate() {
        if named[..i].iter().any(|earlier| earlier.name == adapter.name) {
            return Err(AdapterFlagError::Twice(adapter.name.clone()));
        }
    }
    Ok(named)
}

/// What the flags ask of a registry; pages are as large as the device's chunks, `chunk_bytes`.
#[must_use]
pub fn registry_config(
    args: &AdapterArgs,
    base: BaseModelSpec,
    base_names: Vec<String>,
    chunk_bytes: usize,
) -> RegistryConfig {
    let host_memory = args.adapter_host_memory;
    RegistryConfig {
        base_names,
        max_lora_rank: args.max_lora_rank,
        adapter_dir: args.adapter_dir.clone(),
        chunk_bytes,
        host_memory_bytes: host_memory.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX)),
        dtype: match args.adapter_dtype {
            AdapterDtypeChoice::Auto => AdapterDtype::Auto,
            AdapterDtypeChoice::F16 => AdapterDtype::F16,
            AdapterDtypeChoice::Bf16 => AdapterDtype::Bf16,
            AdapterDtypeChoice::Int8 => AdapterDtype::I8,
        },
        ..RegistryConfig::new(base)
    }
}

/// A registry with the adapters of `named` loaded and those of `--pin` pinned. Blocks.
///
/// # Errors
/// [`AdapterFlagError::Adapter`] and [`AdapterFlagError::Pin`]: all of them must succeed.
pub fn open_registry(
    args: &AdapterArgs,
    config: RegistryConfig,
    named: &[NamedAdapter],
) -> Result<AdapterRegistry, AdapterFlagError> {
    let bars = Arc::new(FetchBars::default());
    let sources = adapter_sources::open(&args.sources, Arc::clone(&bars))
        .map_err(|error| AdapterFlagError::Sources(format!("{error:#}")))?;
    let config = RegistryConfig { remote: Arc::new(sources), ..config };
    let registry = AdapterRegistry::new(config)?;
    for adapter in named {
        registry.add_static(&adapter.name, &adapter.path)?;
    }
    for name in &args.pin {
        let pinned = registry.pin_static(name);
        pinned.map_err(|cause| AdapterFlagError::Pin { name: name.clone(), cause })?;
    }
    bars.silence();
    Ok(registry)
}

/// A name and a source, checked for form.
fn named(flag: &'static str, name: &str, path: &Path) -> Result<NamedAdapter, AdapterFlagError> {
    let name = name.to_owned();
    // What is no text is no URI.
    let Some(text) = path.to_str() else {
        return Ok(NamedAdapter { name, path: path.to_owned() });
    };
    match Location::parse(text) {
        Ok(Location::Local(path)) => Ok(NamedAdapter { name, path }),
        Ok(remote) => Ok(NamedAdapter { name, path: remote.to_string().into() }),
        Err(cause) => Err(AdapterFlagError::Source { flag, name, cause }),
    }
}

fn name_and_path(flag: &'static str, given: &str) -> Result<NamedAdapter, AdapterFlagError> {
    match given.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            named(flag, name, Path::new(path))
        }
        _ => Err(AdapterFlagError::Form { flag, given: given.to_owned() }),
    }
}

fn from_json(given: &str) -> Result<Vec<NamedAdapter>, AdapterFlagError> {
    let modules: Result<Vec<LoraModule>, _> = if given.trim_start().starts_with('[') {
        serde_json::from_str(given)
    } else {
        serde_json::from_str(given).map(|module| vec![module])
    };
    let refuse = |error: serde_json::Error| AdapterFlagError::Json {
        given: given.to_owned(),
        reason: error.to_string(),
    };
    let named = |module: LoraModule| named("--lora-modules", &module.name, &module.path);
    modules.map_err(refuse)?.into_iter().map(named).collect()
}

/// Flags of vLLM that were given and change nothing here: a sentence each.
#[must_use]
pub fn notes(args: &AdapterArgs) -> Vec<&'static str> {
    let mut notes = Vec::new();
    if args.enable_lora {
        notes.push("--enable-lora: adapters are always on");
    }
    if args.max_loras.is_some() {
        notes.push("--max-loras: a batch may mix any number of adapters; the limit is not needed");
    }
    if args.max_cpu_loras.is_some() {
        notes.push("--max-cpu-loras: the limit is --adapter-host-memory, in bytes");
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(adapter: &[&str], lora_modules: &[&str]) -> Result<Vec<String>, String> {
        let owned = |given: &[&str]| given.iter().map(ToString::to_string).collect();
        let args = AdapterArgs {
            adapter: owned(adapter),
            lora_modules: owned(lora_modules),
            ..AdapterArgs::default()
        };
        let show = |a: NamedAdapter| format!("{}={}", a.name, a.path.display());
        named_adapters(&args)
            .map(|named| named.into_iter().map(show).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn both_flags_and_vllms_json_name_adapters() {
        let json = r#"{"name": "c", "path": "/z", "base_model_name": "m"}"#;
        let list = r#"[{"name": "d", "path": "w"}, {"name": "e", "path": "v"}]"#;
        let named = parse(&["a=x"], &["b=y=1", json, list]).unwrap();
        assert_eq!(named, ["a=x", "b=y=1", "c=/z", "d=w", "e=v"]);
    }

    #[test]
    fn malformed_flags_are_refused_with_an_example() {
        for given in ["a", "=x", "a=", ""] {
            assert!(parse(&[given], &[]).unwrap_err().contains("name=path"), "{given}");
        }
        assert!(parse(&[], &[r#"{"name": "a"}"#]).unwrap_err().contains("path"));
        assert!(parse(&[], &["{"]).unwrap_err().contains("--lora-modules"));
    }

    #[test]
    fn uris_are_read_and_those_that_are_none_refused_without_their_password() {
        let json = r#"{"name": "b", "path": "s3://bucket/sql"}"#;
        let named = parse(&["a=hf://acme/sql@v1"], &[json, "c=file:///srv/c"]).unwrap();
        assert_eq!(named, ["a=hf://acme/sql@v1", "b=s3://bucket/sql", "c=/srv/c"]);
        let said = parse(&["a=https://me:hush@h/a"], &[]).unwrap_err();
        assert!(said.starts_with("--adapter a: https://") && !said.contains("hush"), "{said}");
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        assert!(parse(&["a=x"], &["a=y"]).unwrap_err().contains("`a` is given twice"));
    }

    #[test]
    fn ignored_flags_are_noted() {
        let args = AdapterArgs { enable_lora: true, max_loras: Some(4), ..AdapterArgs::default() };
        assert_eq!(notes(&args).len(), 2);
        assert!(notes(&AdapterArgs::default()).is_empty());
    }

    #[test]
    fn the_registry_is_told_what_the_flags_say_and_pins_must_succeed() {
        let base = BaseModelSpec {
            num_layers: 1,
            hidden_size: 8,
            intermediate_size: 8,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 8,
            vocab_size: 8,
            max_context: 8,
            tied_embeddings: true,
        };
        let args = AdapterArgs {
            adapter_host_memory: Some(crate::size::ByteSize(1 << 20)),
            adapter_dtype: AdapterDtypeChoice::Bf16,
            max_lora_rank: 16,
            pin: vec!["sql".to_owned()],
            ..AdapterArgs::default()
        };
        let config = registry_config(&args, base, vec!["m".to_owned()], 4096);
        assert_eq!((config.host_memory_bytes, config.dtype), (Some(1 << 20), AdapterDtype::Bf16));
        assert_eq!((config.chunk_bytes, config.max_lora_rank), (4096, 16));
        let error = open_registry(&args, config, &[]).unwrap_err();
        assert_eq!(error.to_string(), "--pin sql: the model `sql` does not exist");
    }
}
