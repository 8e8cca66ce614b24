//! Reads an adapter's two files into memory, once, as they were at one moment, never more than such
//! an adapter can need. What the bytes mean is for `lower`.

use crate::base_weights::ForBase;
use crate::buffers::Buffers;
use crate::error::{AdapterError, Refusal, RetryHint};
use crate::listing::{TENSORS_FILES, only_pickle};
use crate::lower::lower_peft_bytes;
use crate::polite::pause;
use crate::storage::{FileStamp, LocalFiles, Storage, StoredFile};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use weft_types::{BaseModelSpec, ContentHash, LoweredAdapter, Module};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const TENSORS_FILE: &str = "adapter_model.safetensors";

/// The tensors of AdapterHub's library.
pub(crate) const HUB_TENSORS_FILE: &str = "adapter.safetensors";

/// A configuration lists patterns per module at most: a megabyte is far beyond any.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Files that change the adapter and that are not read: each with what to do about it.
pub(crate) const UNREAD_FILES: [(&str, &str); 3] = [
    (
        "head_config.json",
        "prediction heads are not served; save it with save_adapter(..., with_head=False)",
    ),
    ("new_embeddings.safetensors", "added tokens are not supported"),
    ("new_embeddings.bin", "added tokens are not supported"),
];

/// Old spellings of the tensors' file.
pub(crate) const PICKLES: [&str; 3] =
    ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"];

/// And of AdapterHub's.
pub(crate) const HUB_PICKLE: &str = "pytorch_adapter.bin";

/// What a server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// The largest rank of any module.
    pub max_lora_rank: usize,
}

/// What a server accepts that was not told otherwise.
pub(crate) const DEFAULT_MAX_LORA_RANK: usize = 512;

impl Default for LoadLimits {
    /// Ranks up to 512.
    fn default() -> Self {
        Self { max_lora_rank: DEFAULT_MAX_LORA_RANK }
    }
}

/// Faults that pass are tried again so often.
const MAX_TRANSIENT_RETRIES: u32 = 3;

/// Files that change while they are read are read again so often.
const MAX_CHANGES: u32 = 5;

/// Before the first retry; four times as long before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// Where an adapter is read from, and as what.
#[derive(Clone, Copy)]
pub(crate) struct ReadFrom<'a> {
    pub(crate) storage: &'a dyn Storage,
    /// For the errors.
    pub(crate) name: &'a str,
    /// A directory.
    pub(crate) path: &'a Path,
    /// Bounds the size.
    pub(crate) base: &'a BaseModelSpec,
    /// Bounds the size.
    pub(crate) limits: LoadLimits,
    /// For the tensors.
    pub(crate) buffers: &'a Buffers,
}

/// What both files were: the configuration's stamp, then the tensors'.
pub(crate) type Stamps = [FileStamp; 2];

/// Both files of an adapter as they were at one moment.
pub(crate) struct AdapterFiles {
    pub(crate) config: Vec<u8>,
    pub(crate) tensors: Vec<u8>,
    /// For [`ReadFrom::is_unchanged`].
    pub(crate) stamps: Stamps,
}

impl AdapterFiles {
    pub(crate) fn content_hash(&self) -> ContentHash {
        content_hash(&self.config, &self.tensors)
    }
}

/// Digest of both files: the length keeps `(ab, c)` and `(a, bc)` apart.
pub(crate) fn content_hash(config: &[u8], tensors: &[u8]) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"weft peft adapter 1\0");
    hasher.update(&(config.len() as u64).to_le_bytes());
    hasher.update(config);
    for part in tensors.chunks(PART) {
        pause();
        hasher.update(part);
    }
    ContentHash(*hasher.finalize().as_bytes())
}

/// Loads the PEFT directory `path` for the model `base`. Blocks; reads each file once.
///
/// # Errors
/// [`AdapterError::PathNotFound`], [`AdapterError::Io`] and [`AdapterError::Rejected`]; the name in
/// them is the directory's.
pub fn load_peft_dir<'a>(
    path: &Path,
    base: impl Into<ForBase<'a>>,
    limits: &LoadLimits,
) -> Result<LoweredAdapter, AdapterError> {
    let base = base.into();
    let name = path.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy());
    let buffers = &Buffers::default();
    let (storage, spec) = (&LocalFiles, base.spec);
    let from = ReadFrom { storage, name: &name, path, base: spec, limits: *limits, buffers };
    let Some(files) = from.read(u64::MAX)? else {
        return Err(changing().of(&name));
    };
    lower_peft_bytes(&files.config, &files.tensors, base, limits)
        .map_err(|refusal| refusal.of(&name))
}

/// The largest file that an acceptable adapter for `base` can be: every site at the largest rank in
/// f32, the copies of embedding and head that PEFT adds, and a generous header.
fn max_tensors_bytes(base: &BaseModelSpec, limits: &LoadLimits) -> u64 {
    let rank = limits.max_lora_rank as u64;
    let (hidden, vocab) = (base.hidden_size as u64, base.vocab_size as u64);
    let layer: u64 = Module::ALL
        .iter()
        .map(|&module| base.linear(module))
        .map(|shape| shape.num_inputs as u64 + shape.num_outputs as u64)
        .sum();
    let end = rank.saturating_mul(hidden + vocab).saturating_add(hidden * vocab);
    let elements = rank.saturating_mul(layer).saturating_mul(base.num_layers as u64);
    let elements = elements.saturating_add(end.saturating_mul(2));
    elements.saturating_mul(4).saturating_add(16 << 20)
}

/// Said of an adapter that is never the same for long enough.
pub(crate) fn changing() -> Refusal {
    Refusal::new(
        "changes while it is read; write a new version beside it and rename it into its place",
    )
}

/// Bytes that are read or hashed between two pauses.
const PART: usize = 256 << 10;

/// Why one try to read ended.
enum Fault {
    NoDirectory,
    Refused(Refusal),
    Io {
        path: PathBuf,
        cause: io::Error,
    },
    /// Some of it may be of another version.
    Changed,
}

impl ReadFrom<'_> {
    /// Bytes of both files together, after the checks that need no reading.
    pub(crate) fn measure(self) -> Result<u64, AdapterError> {
        self.patiently(|| self.stamps().map(|([config, tensors], _)| config.len + tensors.len))
    }

    /// Both files; `None` if they have more than `max_bytes` together.
    pub(crate) fn read(self, max_bytes: u64) -> Result<Option<AdapterFiles>, AdapterError> {
        self.patiently(|| self.read_once(max_bytes))
    }

    /// Whether the files are still those of these stamps. False if they cannot be looked at.
    pub(crate) fn is_unchanged(self, stamps: &Stamps) -> bool {
        self.stamps().is_ok_and(|(now, _)| now == *stamps)
    }

    /// Tries again after faults that pass.
    fn patiently<T>(self, attempt: impl Fn() -> Result<T, Fault>) -> Result<T, AdapterError> {
        let (mut num_transient, mut num_changes) = (0, 0);
        loop {
            let num_retries = match attempt() {
                Ok(done) => return Ok(done),
                Err(Fault::Changed) if num_changes < MAX_CHANGES => {
                    num_changes += 1;
                    num_changes
                }
                Err(Fault::Io { cause, .. })
                    if is_transient(&cause) && num_transient < MAX_TRANSIENT_RETRIES =>
                {
                    num_transient += 1;
                    num_transient
                }
                Err(fault) => return Err(self.error(fault)),
            };
            thread::sleep(delay_before(num_retries));
        }
    }

    fn error(self, fault: Fault) -> AdapterError {
        let name = self.name.to_owned();
        match fault {
            Fault::NoDirectory => {
                let (path, retry) = (self.path.to_owned(), RetryHint::default());
                AdapterError::PathNotFound { name, path, retry }
            }
            Fault::Refused(refusal) => refusal.of(self.name),
            Fault::Io { path, cause } => {
                AdapterError::Io { name, path, message: cause.to_string() }
            }
            Fault::Changed => changing().of(self.name),
        }
    }

    fn stat(self, path: &Path) -> Result<Option<FileStamp>, Fault> {
        match self.storage.stat(path) {
            Ok(stamp) => Ok(Some(stamp)),
            Err(cause) if is_nothing_there(&cause) => Ok(None),
            Err(cause) => Err(Fault::Io { path: path.to_owned(), cause }),
        }
    }

    /// Looks at both files without opening them; also says which the second is.
    fn stamps(self) -> Result<(Stamps, &'static str), Fault> {
        if !self.stat(self.path)?.is_some_and(|stamp| stamp.is_dir) {
            return Err(Fault::NoDirectory);
        }
        for (file, why) in UNREAD_FILES {
            if self.stat(&self.path.join(file))?.is_some() {
                return Err(Fault::Refused(Refusal::new(format!("carries {file}, but {why}"))));
            }
        }
        let Some(config) = self.stat(&self.path.join(CONFIG_FILE))? else {
            return Err(Fault::Refused(self.no_config()));
        };
        check_stamp(CONFIG_FILE, &config, MAX_CONFIG_BYTES)?;
        for file in TENSORS_FILES {
            if let Some(tensors) = self.stat(&self.path.join(file))? {
                check_stamp(file, &tensors, max_tensors_bytes(self.base, &self.limits))?;
                return Ok(([config, tensors], file));
            }
        }
        Err(Fault::Refused(self.no_tensors()))
    }

    /// A trainer's directory may have the adapter in checkpoints only.
    fn no_config(self) -> Refusal {
        let step = |name: &str| name.strip_prefix("checkpoint-")?.parse::<u64>().ok();
        let names = self.storage.list(self.path).unwrap_or_default();
        let is_adapter = |name: &&String| {
            step(name).is_some()
                && self.storage.stat(&self.path.join(name).join(CONFIG_FILE)).is_ok()
        };
        let last = names.iter().filter(is_adapter).max_by_key(|name| step(name));
        let hint = last.map(|name| {
            format!("; did you mean {}, a checkpoint?", self.path.join(name).display())
        });
        let hint = hint.unwrap_or_default();
        Refusal::new(format!("has no {CONFIG_FILE} in {}{hint}", self.path.display()))
    }

    fn no_tensors(self) -> Refusal {
        let is_there = |file: &str| self.storage.stat(&self.path.join(file)).is_ok();
        let missing = || format!("has no {TENSORS_FILE} in {}", self.path.display());
        only_pickle(is_there).unwrap_or_else(|| Refusal::new(missing()))
    }

    /// Opens both files before it reads either, and looks again afterwards: whoever swaps the
    /// directory or writes into a file meanwhile is noticed.
    fn read_once(self, max_bytes: u64) -> Result<Option<AdapterFiles>, Fault> {
        // Asked before opening, because opening a pipe would wait for its writer.
        let (stamps, tensors_file) = self.stamps()?;
        if stamps[0].len + stamps[1].len > max_bytes {
            return Ok(None);
        }
        let paths = [CONFIG_FILE, tensors_file].map(|file| self.path.join(file));
        let [mut config, mut tensors] = [self.open(&paths[0])?, self.open(&paths[1])?];
        let files = AdapterFiles {
            config: read_exactly(
                &mut *config,
                &paths[0],
                stamps[0].len,
                Vec::with_capacity(stamps[0].len as usize),
            )?,
            tensors: {
                let buffer = self.buffers.take(stamps[1].len as usize);
                read_exactly(&mut *tensors, &paths[1], stamps[1].len, buffer)?
            },
            stamps,
        };
        let is_same = |file: &dyn StoredFile, stamp| file.stat().is_ok_and(|now| now == stamp);
        if is_same(&*config, stamps[0])
            && is_same(&*tensors, stamps[1])
            && self.is_unchanged(&stamps)
        {
            return Ok(Some(files));
        }
        Err(Fault::Changed)
    }

    fn open(self, path: &Path) -> Result<Box<dyn StoredFile>, Fault> {
        self.storage.open(path).map_err(|cause| match is_nothing_there(&cause) {
            // It was, a moment ago.
            true => Fault::Changed,
            false => Fault::Io { path: path.to_owned(), cause },
        })
    }
}

fn delay_before(retry: u32) -> Duration {
    RETRY_DELAY * 4_u32.pow(retry - 1)
}

/// Tries again what failed with an error that passes.
pub(crate) fn retry_transient<T>(operation: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for retry in 1..=MAX_TRANSIENT_RETRIES {
        match operation() {
            Err(cause) if is_transient(&cause) => thread::sleep(delay_before(retry)),
            done => return done,
        }
    }
    operation()
}

fn is_nothing_there(cause: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(cause.kind(), NotFound | NotADirectory | InvalidInput | InvalidFilename)
}

fn is_transient(cause: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, StaleNetworkFileHandle, TimedOut, WouldBlock};
    matches!(cause.kind(), Interrupted | WouldBlock | TimedOut | StaleNetworkFileHandle)
}

fn check_stamp(file: &str, stamp: &FileStamp, max_bytes: u64) -> Result<(), Fault> {
    if !stamp.is_file {
        let reason = format!("has a {file} that is no regular file");
        return Err(Fault::Refused(Refusal::new(reason)));
    }
    if stamp.len > max_bytes {
        return Err(Fault::Refused(Refusal::new(format!(
            "has a {file} of more than {max_bytes} bytes, the most that an adapter for this base \
             can need"
        ))));
    }
    Ok(())
}

/// The `len` bytes that the file had a moment ago, and not one more: a file can grow. `bytes` is empty
/// and has room for them.
fn read_exactly(
    file: &mut dyn StoredFile,
    path: &Path,
    len: u64,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Fault> {
    loop {
        let left = (len - bytes.len() as u64).min(PART as u64);
        let read = (&mut *file).take(left).read_to_end(&mut bytes);
        if read.map_err(|cause| Fault::Io { path: path.to_owned(), cause })? == 0 {
            break;
        }
        pause();
    }
    if bytes.len() as u64 != len {
        return Err(Fault::Changed);
    }
    Ok(bytes)
}
