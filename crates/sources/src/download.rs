//! One file, from somewhere to here. In: its length, perhaps its checksum, and whoever opens it at an
//! offset. Out: a file under its final name that is whole and right; until then it has another name,
//! under which the next attempt goes on. Knows no protocol.

use crate::checksum::{Checksum, Mismatch};
use crate::config::Patience;
use crate::error::{Fault, SourceError};
use crate::web::{Chunks, Retries};
use async_trait::async_trait;
use futures::StreamExt;
use std::io;
use std::path::Path;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

/// A file on a server.
#[async_trait]
pub(crate) trait RemoteFile: Send + Sync {
    /// Opens it at `offset`, or where the server likes.
    async fn open(&self, offset: u64) -> Result<Opened, Fault>;
}

/// An open file.
pub(crate) struct Opened {
    /// Where its bytes begin.
    pub(crate) offset: u64,
    pub(crate) chunks: Chunks,
    /// What the server says of the whole file.
    pub(crate) checksum: Option<Checksum>,
}

/// What to fetch.
pub(crate) struct Job<'a> {
    /// For the errors.
    pub(crate) place: &'a str,
    pub(crate) file: &'a str,
    /// In bytes.
    pub(crate) len: u64,
    pub(crate) checksum: Option<Checksum>,
    /// What has come so far.
    pub(crate) partial: &'a Path,
    pub(crate) target: &'a Path,
}

/// Fetches a file, on from what is there. `came` is told of all bytes that are there so far.
pub(crate) async fn download(
    job: &Job<'_>,
    remote: &dyn RemoteFile,
    patience: &Patience,
    came: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), SourceError> {
    let mut checksum = job.checksum.clone();
    let (mut retries, mut reached) = (Retries::new(*patience, job.place), 0);
    while let Err(fault) = attempt(job, remote, &mut checksum, came).await {
        let here = len_of(job.partial).await;
        // As long as something comes, it may take as many attempts as it likes.
        if here > reached {
            retries.begin_again();
            reached = here;
        }
        retries.wait_after(fault).await?;
    }
    verify(job, checksum).await?;
    fs::rename(job.partial, job.target).await.map_err(|cause| SourceError::io(job.target, &cause))
}

/// Until the file is whole or something breaks.
async fn attempt(
    job: &Job<'_>,
    remote: &dyn RemoteFile,
    checksum: &mut Option<Checksum>,
    came: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Fault> {
    let io = |cause: io::Error| Fault::from(SourceError::io(job.partial, &cause));
    let mut here = len_of(job.partial).await;
    if here > job.len {
        // Of another version.
        fs::remove_file(job.partial).await.map_err(io)?;
        here = 0;
    }
    if here == job.len && here > 0 {
        came(here);
        return Ok(());
    }
    let mut opened = remote.open(here).await?;
    if opened.offset > here {
        let reason = format!("sends {} from another place than it was asked for", job.file);
        return Err(SourceError::unfit(job.place, reason).into());
    }
    if checksum.is_none() {
        *checksum = opened.checksum.take();
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(job.partial).await;
    let mut file = file.map_err(io)?;
    here = opened.offset;
    file.set_len(here).await.map_err(io)?;
    seek(&mut file, here).await.map_err(io)?;
    let copied = copy(job, &mut file, &mut opened.chunks, here, came).await;
    // Also what came before something broke.
    file.flush().await.map_err(io)?;
    copied?;
    file.sync_all().await.map_err(io)
}

async fn copy(
    job: &Job<'_>,
    file: &mut File,
    chunks: &mut Chunks,
    mut here: u64,
    came: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Fault> {
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|reason| Fault::Passing(reason, None))?;
        here += chunk.len() as u64;
        if here > job.len {
            let reason = format!("sends more of {} than the {} bytes it has", job.file, job.len);
            return Err(SourceError::unfit(job.place, reason).into());
        }
        let written = file.write_all(&chunk).await;
        written.map_err(|cause| SourceError::io(job.partial, &cause))?;
        came(here);
    }
    if here < job.len {
        return Err(Fault::Passing(format!("{here} of {} bytes came", job.len), None));
    }
    Ok(())
}

async fn verify(job: &Job<'_>, checksum: Option<Checksum>) -> Result<(), SourceError> {
    let Some(checksum) = checksum else { return Ok(()) };
    let path = job.partial.to_owned();
    let verified = tokio::task::spawn_blocking(move || checksum.verify(&path)).await;
    let verified = verified.map_err(|_| SourceError::unreachable(job.place, "interrupted"))?;
    match verified.map_err(|cause| SourceError::io(job.partial, &cause))? {
        Ok(()) => Ok(()),
        Err(Mismatch { kind, found, expected }) => {
            // Nothing that comes after these bytes could make them right.
            fs::remove_file(job.partial)
                .await
                .map_err(|cause| SourceError::io(job.partial, &cause))?;
            let (place, file) = (job.place.to_owned(), job.file.to_owned());
            Err(SourceError::Checksum { place, file, kind, found, expected })
        }
    }
}

async fn seek(file: &mut File, offset: u64) -> io::Result<u64> {
    use tokio::io::AsyncSeekExt;
    file.seek(io::SeekFrom::Start(offset)).await
}

async fn len_of(path: &Path) -> u64 {
    fs::metadata(path).await.map_or(0, |metadata| metadata.len())
}
