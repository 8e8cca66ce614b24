//! The cache that `huggingface_hub` keeps. In: a repository, a revision, file names. Out: paths. What
//! its tools have fetched is found here, and what is put here is found by them.
//!
//! `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT/FILE` are links to `blobs/TAG`.

use crate::error::SourceError;
use crate::hub::is_commit;
use std::io;
use std::path::{Path, PathBuf};
use tokio::fs;

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    dir: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(crate) fn of(cache_dir: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        let locks = cache_dir.join(".locks").join(&name);
        Self { dir: cache_dir.join(name), locks }
    }

    /// The commit that a branch or tag was the last time.
    pub(crate) async fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).await.ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) async fn note_commit(
        &self,
        revision: &str,
        commit: &str,
    ) -> Result<(), SourceError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        let error = |cause: io::Error| SourceError::io(&path, &cause);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await.map_err(error)?;
        }
        fs::write(&path, commit).await.map_err(error)
    }

    pub(crate) fn snapshot(&self, commit: &str, folder: &[String]) -> PathBuf {
        let root = self.dir.join("snapshots").join(commit);
        folder.iter().fold(root, |path, part| path.join(part))
    }

    pub(crate) fn blob(&self, tag: &str) -> PathBuf {
        self.dir.join("blobs").join(tag)
    }

    pub(crate) fn lock(&self, tag: &str) -> PathBuf {
        self.locks.join(format!("{tag}.lock"))
    }

    /// Makes `file` in a snapshot stand for a blob.
    pub(crate) async fn link(
        &self,
        commit: &str,
        folder: &[String],
        file: &str,
        tag: &str,
    ) -> Result<(), SourceError> {
        let directory = self.snapshot(commit, folder);
        let path = directory.join(file);
        let error = |cause: io::Error| SourceError::io(&path, &cause);
        fs::create_dir_all(&directory).await.map_err(error)?;
        // Relative, so that the cache can be moved and mounted.
        let up: PathBuf = (0..folder.len() + 2).map(|_| "..").collect();
        let (target, next) =
            (up.join("blobs").join(tag), directory.join(format!(".{file}.{}", std::process::id())));
        let _ = fs::remove_file(&next).await;
        match symlink(&target, &next).await {
            Ok(()) => {}
            // Some file systems have no links.
            Err(_) => {
                fs::copy(self.blob(tag), &next).await.map_err(error)?;
            }
        }
        fs::rename(&next, &path).await.map_err(error)
    }
}

#[cfg(unix)]
async fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    fs::symlink(target, path).await
}

#[cfg(not(unix))]
async fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
