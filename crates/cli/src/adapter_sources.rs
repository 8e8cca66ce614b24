//! What brings adapters here, as flags and environment say. In: `--adapter-source-allow`,
//! `--adapter-resolver`, `--adapter-download-max`; `HF_…`, `AWS_…`, `GOOGLE_…`, `AZURE_…`. Out:
//! [`Sources`]. The only place that reads these variables; their secrets go no further.

use crate::args::SourceArgs;
use crate::args::sources::AdapterPullArgs;
use crate::cache::cache_dir_from;
use crate::progress::FetchBars;
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use weft_adapters::Asker;
use weft_sources::{AllowList, HubConfig, Location, ResolverRule, Sources, SourcesConfig};

/// The sources that the flags and this process's environment describe.
///
/// # Errors
/// A sentence that names the flag or variable.
pub fn open(args: &SourceArgs, bars: Arc<FetchBars>) -> Result<Sources> {
    let variable = |name: &str| std::env::var_os(name);
    let mut config = from_environment(&variable, std::env::vars_os())?;
    let patterns = args.adapter_source_allow.iter().map(String::as_str);
    config.allow = AllowList::parse(patterns).with_context(|| {
        format!("--adapter-source-allow {}", args.adapter_source_allow.join(","))
    })?;
    for given in &args.adapter_resolver {
        let rule = ResolverRule::parse(given);
        config.rules.push(rule.with_context(|| format!("--adapter-resolver {given}"))?);
    }
    if let Some(size) = args.adapter_download_max {
        config.max_bytes = size.0;
    }
    config.progress = bars;
    Sources::new(config).map_err(|reason| anyhow!(reason))
}

/// `weft adapter pull`, and `weft pull` with a URI: the directory that holds the adapter.
///
/// # Errors
/// A sentence about the source.
pub async fn pull(args: &AdapterPullArgs) -> Result<PathBuf> {
    let location = Location::parse(&args.uri)?;
    if !location.is_remote() {
        bail!("{location} is on this machine already; a URI such as hf://org/name is fetched");
    }
    let flags =
        SourceArgs { adapter_download_max: args.adapter_download_max, ..SourceArgs::default() };
    let sources = open(&flags, Arc::default())?;
    Ok(sources.fetch_to_cache(&location, Asker::Operator).await?)
}

fn from_environment(
    variable: &dyn Fn(&str) -> Option<OsString>,
    all: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<SourcesConfig> {
    let text = |name: &str| {
        let value = variable(name)?.into_string().ok()?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache_dir_from(variable).unwrap_or_else(|| std::env::temp_dir().join("weft-cache"));
    let home = path("HOME").unwrap_or_else(|| cache.clone());
    let hf_home = path("HF_HOME").unwrap_or_else(|| {
        let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        cache.join("huggingface")
    });
    let hub_cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
    let hub_cache = hub_cache.unwrap_or_else(|| hf_home.join("hub"));
    let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
        // Where `hf auth login` puts it.
        let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let token = std::fs::read_to_string(file).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    });
    let is_on = |name: &str| {
        text(name).is_some_and(|value| {
            ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
        })
    };
    let mut config = SourcesConfig::new(cache, hub_cache.clone());
    let standard = HubConfig::new(hub_cache);
    config.hub = HubConfig {
        endpoint: text("HF_ENDPOINT").unwrap_or(standard.endpoint.clone()),
        token,
        is_offline: is_on("HF_HUB_OFFLINE"),
        ..standard
    };
    let of_stores = ["AWS_", "GOOGLE_", "AZURE_"];
    let settings = all.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| {
            of_stores.iter().any(|prefix| name.to_ascii_uppercase().starts_with(prefix))
        })?;
        Some((name, value.into_string().ok()?))
    });
    config.store_settings = settings.collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(set: &[(&str, &str)]) -> SourcesConfig {
        let get = |name: &str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let all = set.iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
        from_environment(&get, all).unwrap()
    }

    #[test]
    fn the_hub_cache_is_where_huggingface_hub_has_it() {
        let of = |set: &[(&str, &str)]| config(set).hub.cache_dir;
        let all =
            [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        assert_eq!(of(&all), PathBuf::from("/a"));
        assert_eq!(of(&all[1..]), PathBuf::from("/b/hub"));
        assert_eq!(of(&all[2..]), PathBuf::from("/c/huggingface/hub"));
        assert_eq!(of(&all[3..]), PathBuf::from("/d/.cache/huggingface/hub"));
    }

    #[test]
    fn settings_reach_the_stores_and_secrets_do_not_show() {
        let config = config(&[
            ("AWS_SECRET_ACCESS_KEY", "hush-1"),
            ("HF_TOKEN", " hush-2\n"),
            ("HF_HUB_OFFLINE", "1"),
            ("HF_ENDPOINT", "https://mirror"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(
            config.store_settings,
            [("AWS_SECRET_ACCESS_KEY".to_owned(), "hush-1".to_owned())]
        );
        assert_eq!(config.hub.token.as_deref(), Some("hush-2"));
        assert_eq!((config.hub.endpoint.as_str(), config.hub.is_offline), ("https://mirror", true));
        assert!(!format!("{config:?}").contains("hush"), "{config:?}");
    }

    #[test]
    fn bad_flags_are_named() {
        let open = |allow: &str, rule: &str| {
            let list =
                |given: &str| (!given.is_empty()).then(|| given.to_owned()).into_iter().collect();
            let args = SourceArgs {
                adapter_source_allow: list(allow),
                adapter_resolver: list(rule),
                ..SourceArgs::default()
            };
            format!("{:#}", super::open(&args, Arc::default()).unwrap_err())
        };
        assert!(open("hf://a*", "").starts_with("--adapter-source-allow hf://a*: `*` may only"));
        assert!(open("", "a=b").starts_with("--adapter-resolver a=b: "));
    }

    #[tokio::test]
    async fn a_path_is_not_pulled() {
        let args = AdapterPullArgs { uri: "./sql".into(), adapter_download_max: None };
        let said = pull(&args).await.unwrap_err().to_string();
        assert!(said.contains("on this machine already"), "{said}");
    }
}
