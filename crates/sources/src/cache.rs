//! Adapters of object stores and web servers, kept by what their servers say of their files. In: a
//! location and its files' versions. Out: a directory with exactly these versions, fetched if need be;
//! and the one that was there last, for when nobody answers.
//!
//! `adapters/PLACE/snapshots/VERSION/` is whole; `partial/VERSION/` is not yet; `current` names the
//! last one. Nothing in a snapshot ever changes.

use crate::checksum::Checksum;
use crate::config::Patience;
use crate::download::{Job, RemoteFile, download};
use crate::error::SourceError;
use crate::location::Location;
use crate::lock::lock;
use crate::progress::FetchProgress;
use std::path::{Path, PathBuf};
use tokio::fs;

/// The place of one location in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    dir: PathBuf,
}

/// A file to be had.
pub(crate) struct Wanted {
    pub(crate) name: &'static str,
    /// In bytes.
    pub(crate) len: u64,
    /// Another one for other bytes.
    pub(crate) version: String,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) remote: Box<dyn RemoteFile>,
}

/// How to fetch, and whom to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch<'a> {
    pub(crate) place: &'a str,
    pub(crate) patience: &'a Patience,
    pub(crate) max_bytes: u64,
    pub(crate) progress: &'a dyn FetchProgress,
}

impl Fetch<'_> {
    /// Refuses files of these sizes if they are too large together.
    pub(crate) fn check_size(&self, sizes: impl Iterator<Item = u64>) -> Result<u64, SourceError> {
        let num_bytes = sizes.fold(0_u64, u64::saturating_add);
        let max_bytes = self.max_bytes;
        if num_bytes > max_bytes {
            let place = self.place.to_owned();
            return Err(SourceError::TooLarge { place, num_bytes, max_bytes });
        }
        Ok(num_bytes)
    }
}

/// Tells of the end, however it comes.
pub(crate) struct Told<'a>(&'a dyn FetchProgress);

impl<'a> Told<'a> {
    pub(crate) fn begin(fetch: &Fetch<'a>, num_bytes: u64) -> Self {
        fetch.progress.begin(fetch.place, num_bytes);
        tracing::info!(source = fetch.place, bytes = num_bytes, "fetching an adapter");
        Self(fetch.progress)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Entry {
    pub(crate) fn of(cache_dir: &Path, location: &Location) -> Self {
        let hash = blake3::hash(location.to_string().as_bytes()).to_hex();
        Self { dir: cache_dir.join("adapters").join(&hash[..32]) }
    }

    /// The snapshot that was fetched last.
    pub(crate) async fn current(&self) -> Option<PathBuf> {
        let id = fs::read_to_string(self.dir.join("current")).await.ok()?;
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let snapshot = self.dir.join("snapshots").join(is_id.then_some(id)?);
        fs::metadata(&snapshot).await.is_ok_and(|found| found.is_dir()).then_some(snapshot)
    }

    /// A directory with these files.
    pub(crate) async fn bring(
        &self,
        wanted: &[Wanted],
        fetch: &Fetch<'_>,
    ) -> Result<PathBuf, SourceError> {
        let num_bytes = fetch.check_size(wanted.iter().map(|file| file.len))?;
        let id = snapshot_id(wanted);
        let snapshot = self.dir.join("snapshots").join(&id);
        if !is_whole(&snapshot, wanted).await {
            let _lock = lock(&self.dir.join("lock")).await?;
            // Perhaps another one has brought it meanwhile.
            if !is_whole(&snapshot, wanted).await {
                let _told = Told::begin(fetch, num_bytes);
                self.fill(&id, wanted, fetch, &snapshot).await?;
            }
        }
        let error = |cause: std::io::Error| SourceError::io(&self.dir, &cause);
        let next = self.dir.join(format!("current.{}", std::process::id()));
        fs::write(&next, &id).await.map_err(error)?;
        fs::rename(&next, self.dir.join("current")).await.map_err(error)?;
        Ok(snapshot)
    }

    async fn fill(
        &self,
        id: &str,
        wanted: &[Wanted],
        fetch: &Fetch<'_>,
        snapshot: &Path,
    ) -> Result<(), SourceError> {
        let partials = self.dir.join("partial");
        let scratch = partials.join(id);
        sweep(&partials, id).await;
        let error = |cause: std::io::Error| SourceError::io(&scratch, &cause);
        fs::create_dir_all(&scratch).await.map_err(error)?;
        fs::create_dir_all(self.dir.join("snapshots")).await.map_err(error)?;
        let mut before = 0;
        for file in wanted {
            let target = scratch.join(file.name);
            let partial = scratch.join(format!("{}.partial", file.name));
            let job = Job {
                place: fetch.place,
                file: file.name,
                len: file.len,
                checksum: file.checksum.clone(),
                partial: &partial,
                target: &target,
            };
            let came = |here| fetch.progress.fetched(before + here);
            if !is_file_of(&target, file.len).await {
                download(&job, &*file.remote, fetch.patience, &came).await?;
            }
            before += file.len;
        }
        match fs::rename(&scratch, snapshot).await {
            Ok(()) => Ok(()),
            // It was there, but not whole.
            Err(_) => {
                fs::remove_dir_all(snapshot).await.map_err(error)?;
                fs::rename(&scratch, snapshot).await.map_err(error)
            }
        }
    }
}

/// What came of other versions will never be wanted again.
async fn sweep(partials: &Path, id: &str) {
    let Ok(mut entries) = fs::read_dir(partials).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name() != id {
            let _ = fs::remove_dir_all(entry.path()).await;
        }
    }
}

fn snapshot_id(wanted: &[Wanted]) -> String {
    let mut hasher = blake3::Hasher::new();
    for file in wanted {
        for part in [file.name, &file.len.to_string(), &file.version] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

async fn is_whole(snapshot: &Path, wanted: &[Wanted]) -> bool {
    for file in wanted {
        if !is_file_of(&snapshot.join(file.name), file.len).await {
            return false;
        }
    }
    true
}

pub(crate) async fn is_file_of(path: &Path, len: u64) -> bool {
    fs::metadata(path).await.is_ok_and(|found| found.is_file() && found.len() == len)
}
