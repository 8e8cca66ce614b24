//! Packed weights on disk, so that a later start maps what an earlier one packed. In: a directory, and which
//! checkpoint is loaded how. Out: a [`PackedFile`], or one that is written behind the server's back.
//!
//! A file is named by what it was made from ([`crate::source_identity`]) and never changes. What cannot
//! be read is packed anew, what cannot be written is a warning: a start never fails for its cache. Files
//! that were not used for a month leave, then those that were not used for longest, while all take more
//! than 32 GiB; the newest stays.

use crate::load::Quantize;
use crate::mapped_file::map_shared;
use crate::packed_file::{self, PackedFile, PackedFileError};
use crate::source_identity::identity;
use crate::weights::ModelWeights;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use weft_kernels::PackedLinear;

/// All files of a cache together take no more, but for the newest.
const MAX_BYTES: u64 = 32 << 30;
/// A file that nobody used for so long is removed.
const MAX_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Files under way, or what a killed process left.
const SCRATCH_PREFIX: &str = ".packing-";
/// No write takes so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);
const SUFFIX: &str = ".weft";
/// Smaller models are packed in no time.
const MIN_BYTES: usize = 16 << 20;

/// Where packed weights are kept.
#[derive(Clone, Debug)]
pub struct WeightCache {
    dir: PathBuf,
    min_bytes: usize,
}

impl WeightCache {
    /// Files in `dir`, which is made when the first one is written.
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir, min_bytes: MIN_BYTES }
    }

    /// Keeps models of this many bytes of packed weights and more.
    #[must_use]
    pub fn with_min_bytes(self, min_bytes: usize) -> Self {
        Self { min_bytes, ..self }
    }

    /// The file of a checkpoint that is loaded so, whether it is there or not.
    pub(crate) fn entry(&self, path: &Path, quantize: Quantize) -> Option<Entry> {
        let identity = identity(path, quantize)
            .inspect_err(|error| tracing::warn!("packed weights are not kept: {error}"))
            .ok()?;
        let file = self.dir.join(format!("{identity}{SUFFIX}"));
        Some(Entry { cache: self.clone(), identity, file })
    }
}

/// One file of a cache.
#[derive(Debug)]
pub(crate) struct Entry {
    cache: WeightCache,
    identity: String,
    file: PathBuf,
}

impl Entry {
    /// The file, if there is a sound one.
    pub(crate) fn open(&self) -> Option<PackedFile> {
        let file = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return self.refuse(&error),
        };
        let bytes = match map_shared(&file) {
            Ok(bytes) => bytes,
            Err(error) => return self.refuse(&error),
        };
        let parsed: Result<_, PackedFileError> = PackedFile::parse(bytes, &self.identity);
        match parsed {
            Ok(parsed) => {
                // When it was last of use. Whoever may not say so does without.
                let _ = file.set_modified(SystemTime::now());
                Some(parsed)
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// Says why the file is of no use.
    pub(crate) fn refuse<T>(&self, reason: &dyn std::error::Error) -> Option<T> {
        let path = self.file.display();
        tracing::warn!("{path} is not used, and the model packed anew: {reason}");
        None
    }

    /// Writes the file on a thread of low priority.
    pub(crate) fn write_in_background(self, weights: &Arc<ModelWeights<PackedLinear>>) {
        let weights = Arc::clone(weights);
        let work = move || {
            give_way();
            match self.write(&weights) {
                Ok(None) => {}
                Ok(Some(num_bytes)) => tracing::debug!(
                    bytes = num_bytes,
                    "the next start maps {}",
                    self.file.display()
                ),
                Err(error) => tracing::warn!(
                    "packed weights are not kept for the next start: {}: {error}; \
                     --weight-cache names another directory, or is off",
                    self.file.display()
                ),
            }
        };
        let thread = std::thread::Builder::new().name("weft-pack".to_owned()).spawn(work);
        if let Err(error) = thread {
            tracing::warn!("packed weights are not kept for the next start: {error}");
        }
    }

    /// Writes the file, whole or not at all, and makes room. `None` if it is not worth it.
    pub(crate) fn write(&self, weights: &ModelWeights<PackedLinear>) -> io::Result<Option<u64>> {
        let expected: usize = weights.linears().map(PackedLinear::num_bytes).sum();
        if expected < self.cache.min_bytes {
            return Ok(None);
        }
        let dir = &self.cache.dir;
        fs::create_dir_all(dir)?;
        check_room(dir, expected as u64)?;
        let scratch = scratch_file().tempfile_in(dir)?;
        let mut out = BufWriter::new(scratch.as_file());
        let num_bytes = packed_file::write(weights, &self.identity, &mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        scratch.persist(&self.file)?;
        sweep(dir, &self.file, SystemTime::now(), MAX_BYTES)?;
        Ok(Some(num_bytes))
    }
}

/// Readable for whoever the umask lets, as the model is.
fn scratch_file() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(SCRATCH_PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Refuses to take more than half of what the disk has left.
#[cfg(unix)]
fn check_room(dir: &Path, num_bytes: u64) -> io::Result<()> {
    let disk = rustix::fs::statvfs(dir)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if num_bytes > free / 2 {
        return Err(io::Error::other(format!(
            "{num_bytes} bytes are more than half of what the disk has left"
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_room(_: &Path, _: u64) -> io::Result<()> {
    Ok(())
}

/// Removes what is old, and the least recently used while all together is more than `max_bytes`; never
/// `newest`, and no file of others. A file that a server has mapped stays as it is for that server.
fn sweep(dir: &Path, newest: &Path, now: SystemTime, max_bytes: u64) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let is_scratch = name.starts_with(SCRATCH_PREFIX);
        let is_ours = name.strip_suffix(SUFFIX).is_some_and(|stem| {
            stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if !(is_ours || is_scratch) || path == newest {
            continue;
        }
        // Another process may have removed it meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        let used = metadata.modified()?;
        let idle = now.duration_since(used).unwrap_or_default();
        if idle > if is_scratch { ABANDONED_AFTER } else { MAX_IDLE } {
            remove(&path);
        } else if is_ours {
            kept.push((used, metadata.len(), path));
        }
    }
    kept.sort_unstable();
    let newest = fs::metadata(newest).map_or(0, |metadata| metadata.len());
    let mut total = newest + kept.iter().map(|(_, num_bytes, _)| num_bytes).sum::<u64>();
    for (_, num_bytes, path) in kept {
        if total > max_bytes {
            remove(&path);
            total -= num_bytes;
        }
    }
    Ok(())
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::debug!("removed {}, which was not used for long", path.display()),
        Err(error) => tracing::debug!("{} stays: {error}", path.display()),
    }
}

/// Requests come first, whatever this thread still has to do.
#[cfg(target_os = "linux")]
fn give_way() {
    /// The lowest priority.
    const NICENESS: i32 = 19;
    // Linux gives priorities to threads. If it refuses, the work is only less polite.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}

#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_or_too_much_leaves_and_what_is_new_or_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let file = |name: &str, days: u32| {
            let path = dir.path().join(name);
            fs::write(&path, [0; 100]).unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(now - day * days)
                .unwrap();
            path
        };
        let of = |digit: &str| format!("{}{SUFFIX}", digit.repeat(32));
        file(&of("a"), 31);
        file(&of("b"), 20);
        file(&of("c"), 10);
        file(&of("d"), 5);
        file(".packing-x", 2);
        file(".packing-y", 0);
        file("notes.weft", 99);
        let newest = file(&of("e"), 40);
        let left = |max_bytes| {
            sweep(dir.path(), &newest, now, max_bytes).unwrap();
            let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<String> =
                names.map(|n| n.to_string_lossy()[..3].to_owned()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(left(400), ".pa bbb ccc ddd eee not");
        assert_eq!(left(399), ".pa ccc ddd eee not");
        assert_eq!(left(0), ".pa eee not");
    }
}
