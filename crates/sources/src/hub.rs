//! The Hugging Face Hub's protocol. In: a repository, a revision and a folder. Out: a directory of the
//! cache with the adapter's files as of one commit. A commit that is there is asked nobody about; if
//! the hub does not answer, what a branch was the last time serves.

use crate::cache::{Fetch, Told, is_file_of};
use crate::checksum::Checksum;
use crate::config::HubConfig;
use crate::download::{Job, Opened, RemoteFile, download};
use crate::error::{Fault, SourceError};
use crate::hub_cache::Repository;
use crate::lock::lock;
use crate::ranges;
use crate::web::{Answer, Ask, Follow, Reach, Retries, Web, busy};
use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use std::path::PathBuf;
use url::Url;
use weft_adapters::adapter_files;

/// The hub, as one server sees it.
#[derive(Debug)]
pub(crate) struct Hub {
    endpoint: Url,
    authorization: Option<HeaderValue>,
    config: HubConfig,
}

/// What is wanted of the hub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HubPlace<'a> {
    pub(crate) repo: &'a str,
    pub(crate) revision: Option<&'a str>,
    pub(crate) folder: &'a [String],
}

/// What the hub says of a revision.
#[derive(Debug, Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file of a commit.
struct HubFile<'a> {
    name: &'static str,
    /// Its name among the blobs.
    tag: String,
    len: u64,
    hub: &'a Hub,
    web: &'a Web,
    url: Url,
    place: &'a str,
}

/// Whether `text` is a commit in full.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Hub {
    pub(crate) fn new(config: HubConfig) -> Result<Self, String> {
        let given = config.endpoint.trim_end_matches('/');
        let endpoint = Url::parse(given).ok().filter(|url| {
            matches!(url.scheme(), "https" | "http") && url.has_host() && url.username().is_empty()
        });
        let endpoint = endpoint.ok_or("the hub's endpoint (HF_ENDPOINT) is no https:// address")?;
        let bearer = config.token.as_deref().map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| "the hub's token (HF_TOKEN) holds a character that no token has")?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Self { endpoint, authorization: bearer.transpose()?, config })
    }

    pub(crate) async fn fetch(
        &self,
        web: &Web,
        at: HubPlace<'_>,
        fetch: &Fetch<'_>,
    ) -> Result<PathBuf, SourceError> {
        let repository = Repository::of(&self.config.cache_dir, at.repo);
        let revision = at.revision.unwrap_or("main");
        let cached = cached(&repository, at, revision).await;
        if let Some(path) = cached.clone().filter(|_| self.config.is_offline || is_commit(revision))
        {
            return Ok(path);
        }
        if self.config.is_offline {
            let reason =
                "is not in the cache, and HF_HUB_OFFLINE says that only the cache may be used";
            return Err(SourceError::denied(fetch.place, reason));
        }
        let (commit, names) = match self.revision(web, at, revision, fetch.place).await {
            Ok(found) => found,
            Err(SourceError::Unreachable { reason, .. }) if cached.is_some() => {
                tracing::warn!(
                    source = fetch.place,
                    reason,
                    "the hub does not answer; using the cache"
                );
                return Ok(cached.unwrap_or_default());
            }
            Err(error) => return Err(error),
        };
        let prefix: String = at.folder.iter().flat_map(|part| [part.as_str(), "/"]).collect();
        let is_there = |name: &str| names.iter().any(|known| *known == format!("{prefix}{name}"));
        let files = adapter_files(is_there)
            .map_err(|refusal| SourceError::unfit(fetch.place, refusal.reason()))?;
        let snapshot = repository.snapshot(&commit, at.folder);
        if !has_all(&snapshot, &files).await {
            self.fill(web, at, &commit, &files, &repository, fetch).await?;
        }
        repository.note_commit(revision, &commit).await?;
        Ok(snapshot)
    }

    /// The commit of a revision, and the files in it.
    async fn revision(
        &self,
        web: &Web,
        at: HubPlace<'_>,
        revision: &str,
        place: &str,
    ) -> Result<(String, Vec<String>), SourceError> {
        let repo: Vec<&str> = at.repo.split('/').collect();
        let parts = ["api", "models"].into_iter().chain(repo).chain(["revision", revision]);
        let url = self.url(parts);
        let ask = self.ask(Method::GET, url, Follow::All, place);
        let mut retries = Retries::new(web.patience, place);
        let found = loop {
            let answer = web.send_patiently(&ask).await?;
            self.check(&answer, place)?;
            match answer.json::<Revision>(place).await {
                Ok(found) => break found,
                Err(fault) => retries.wait_after(fault).await?,
            }
        };
        if !is_commit(&found.sha) {
            return Err(SourceError::unfit(place, "answers with something else than a commit"));
        }
        Ok((found.sha, found.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    async fn fill(
        &self,
        web: &Web,
        at: HubPlace<'_>,
        commit: &str,
        files: &[&'static str],
        repository: &Repository,
        fetch: &Fetch<'_>,
    ) -> Result<(), SourceError> {
        let mut measured = Vec::new();
        for name in files {
            measured.push(self.measure(web, at, commit, name, fetch.place).await?);
        }
        let num_bytes = fetch.check_size(measured.iter().map(|file| file.len))?;
        let mut before = 0;
        let mut told = None;
        for file in &measured {
            let blob = repository.blob(&file.tag);
            if !is_file_of(&blob, file.len).await {
                let _lock = lock(&repository.lock(&file.tag)).await?;
                if !is_file_of(&blob, file.len).await {
                    told.get_or_insert_with(|| Told::begin(fetch, num_bytes));
                    let error = |cause: std::io::Error| SourceError::io(&blob, &cause);
                    if let Some(blobs) = blob.parent() {
                        tokio::fs::create_dir_all(blobs).await.map_err(error)?;
                    }
                    let came = |here| fetch.progress.fetched(before + here);
                    let job = Job {
                        place: fetch.place,
                        file: file.name,
                        len: file.len,
                        checksum: Checksum::of_hub_tag(&file.tag),
                        partial: &blob.with_file_name(format!("{}.incomplete", file.tag)),
                        target: &blob,
                    };
                    download(&job, file, fetch.patience, &came).await?;
                }
            }
            repository.link(commit, at.folder, file.name, &file.tag).await?;
            before += file.len;
        }
        Ok(())
    }

    /// Asks for a file's size and tag.
    async fn measure<'a>(
        &'a self,
        web: &'a Web,
        at: HubPlace<'_>,
        commit: &str,
        name: &'static str,
        place: &'a str,
    ) -> Result<HubFile<'a>, SourceError> {
        let folder = at.folder.iter().map(String::as_str);
        let url =
            self.url(at.repo.split('/').chain(["resolve", commit]).chain(folder).chain([name]));
        // What lies behind a redirect to another host describes that host's copy.
        let ask = self.ask(Method::HEAD, url.clone(), Follow::SameOrigin, place);
        let answer = web.send_patiently(&ask).await?;
        if !answer.status.is_redirection() {
            self.check(&answer, place)?;
        }
        let tag =
            answer.first("x-linked-etag").or_else(|| answer.first("etag")).unwrap_or_default();
        let tag = tag.trim_start_matches("W/").trim_matches('"').to_owned();
        let is_name = (1..=128).contains(&tag.len())
            && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !tag.starts_with('.');
        let len = answer.first("x-linked-size");
        let len =
            len.or_else(|| answer.last("content-length").filter(|_| answer.status.is_success()));
        match len.and_then(|text| text.parse().ok()) {
            Some(len) if is_name => Ok(HubFile { name, tag, len, hub: self, web, url, place }),
            _ => {
                let reason = format!("does not say how large {name} is and which version");
                Err(SourceError::unfit(place, reason))
            }
        }
    }

    fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    fn ask<'a>(&'a self, method: Method, url: Url, follow: Follow, place: &'a str) -> Ask<'a> {
        let authorization = self.authorization.as_ref();
        let reach = &Reach::Anywhere;
        Ask { method, url, headers: HeaderMap::new(), authorization, reach, follow, place }
    }

    fn check(&self, answer: &Answer, place: &str) -> Result<(), SourceError> {
        let status = answer.status;
        if status.is_success() {
            return Ok(());
        }
        let code = answer.first("x-error-code").unwrap_or_default();
        let has_token = self.authorization.is_some();
        Err(match (status, code) {
            (_, "GatedRepo") => SourceError::denied(
                place,
                "is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account",
            ),
            (_, "RevisionNotFound") => SourceError::missing(place, "has no such revision"),
            (_, "EntryNotFound") => SourceError::missing(place, "has no such file"),
            // So the hub answers whoever may not know whether there is something.
            (StatusCode::UNAUTHORIZED, "RepoNotFound" | "") if !has_token => SourceError::missing(
                place,
                "does not exist, or is private: then set HF_TOKEN to a token that may read it",
            ),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                SourceError::denied(place, "may not be read with the token that HF_TOKEN holds")
            }
            (StatusCode::NOT_FOUND, _) => SourceError::missing(place, "does not exist"),
            _ => SourceError::unfit(place, format!("answers with status {status}")),
        })
    }
}

#[async_trait]
impl RemoteFile for HubFile<'_> {
    async fn open(&self, offset: u64) -> Result<Opened, Fault> {
        let mut ask = self.hub.ask(Method::GET, self.url.clone(), Follow::All, self.place);
        ranges::ask_from(&mut ask.headers, offset);
        let answer = busy(self.web.send(&ask).await?)?;
        if !answer.status.is_success() && answer.status != StatusCode::RANGE_NOT_SATISFIABLE {
            self.hub.check(&answer, self.place)?;
        }
        // A commit's files do not change, and the checksum tells if these do.
        ranges::opened(answer, self.len, self.place)
    }
}

/// What the cache holds of a revision, whole.
async fn cached(repository: &Repository, at: HubPlace<'_>, revision: &str) -> Option<PathBuf> {
    let commit = repository.commit_of(revision).await?;
    let snapshot = repository.snapshot(&commit, at.folder);
    let names = names_in(&snapshot).await;
    let files = adapter_files(|name| names.iter().any(|known| known == name)).ok()?;
    has_all(&snapshot, &files).await.then_some(snapshot)
}

async fn names_in(directory: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else { return names };
    while let Ok(Some(entry)) = entries.next_entry().await {
        names.extend(entry.file_name().into_string());
    }
    names
}

async fn has_all(snapshot: &std::path::Path, files: &[&str]) -> bool {
    for file in files {
        // Links are followed: the blob must be there.
        let found = tokio::fs::metadata(snapshot.join(file)).await;
        if !found.is_ok_and(|found| found.is_file()) {
            return false;
        }
    }
    true
}
