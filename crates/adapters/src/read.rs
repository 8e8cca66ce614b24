//! Reads an adapter's two files into memory, once, never more than such an adapter can need.
//! What the bytes mean is for `lower`.

use crate::error::{AdapterError, Refusal};
use crate::lower::lower_peft_bytes;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use weft_types::{BaseModelSpec, ContentHash, LoweredAdapter, Module};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const TENSORS_FILE: &str = "adapter_model.safetensors";

/// A configuration lists patterns per module at most: a megabyte is far beyond any.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Files that change the adapter and that are not read: each with what to do about it.
const UNREAD_FILES: [(&str, &str); 2] = [
    ("new_embeddings.safetensors", "added tokens are not supported"),
    ("new_embeddings.bin", "added tokens are not supported"),
];

/// Old spellings of the tensors' file.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"];

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

/// Both files of an adapter as they were at one moment.
pub(crate) struct AdapterFiles {
    pub(crate) config: Vec<u8>,
    pub(crate) tensors: Vec<u8>,
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
    hasher.update(tensors);
    ContentHash(*hasher.finalize().as_bytes())
}

/// Loads the PEFT directory `path` for the model `base`. Blocks; reads each file once.
///
/// # Errors
/// [`AdapterError::PathNotFound`], [`AdapterError::Io`] and [`AdapterError::Rejected`]; the name in
/// them is the directory's.
pub fn load_peft_dir(
    path: &Path,
    base: &BaseModelSpec,
    limits: &LoadLimits,
) -> Result<LoweredAdapter, AdapterError> {
    let name = path.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy());
    let files = read_files(&name, path, base, limits)?;
    lower_peft_bytes(&files.config, &files.tensors, base, limits)
        .map_err(|refusal| refusal.of(&name))
}

/// Reads the two files of the directory `path`; `name` is for the errors.
pub(crate) fn read_files(
    name: &str,
    path: &Path,
    base: &BaseModelSpec,
    limits: &LoadLimits,
) -> Result<AdapterFiles, AdapterError> {
    if !path.is_dir() {
        return Err(AdapterError::PathNotFound { name: name.to_owned(), path: path.to_owned() });
    }
    for (file, why) in UNREAD_FILES {
        if path.join(file).exists() {
            return Err(Refusal::new(format!("carries {file}, but {why}")).of(name));
        }
    }
    let config = read_capped(name, &path.join(CONFIG_FILE), MAX_CONFIG_BYTES)?;
    let Some(config) = config else {
        return Err(Refusal::new(format!("has no {CONFIG_FILE} in {}", path.display())).of(name));
    };
    let tensors = read_capped(name, &path.join(TENSORS_FILE), max_tensors_bytes(base, limits))?;
    let Some(tensors) = tensors else {
        let pickle = PICKLES.iter().find(|file| path.join(file).exists());
        let reason = match pickle {
            Some(file) => format!(
                "has {file} but no {TENSORS_FILE}: pickle files can run code and are not read; \
                 convert it by loading the adapter with peft and calling \
                 save_pretrained(path, safe_serialization=True)"
            ),
            None => format!("has no {TENSORS_FILE} in {}", path.display()),
        };
        return Err(Refusal::new(reason).of(name));
    };
    Ok(AdapterFiles { config, tensors })
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

/// The whole file, `None` if there is none. Checks the length before it allocates, and again while
/// it reads: a file can grow.
fn read_capped(name: &str, path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, AdapterError> {
    let io_error = |cause: io::Error| AdapterError::Io {
        name: name.to_owned(),
        path: path.to_owned(),
        message: cause.to_string(),
    };
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    // Asked before opening, because opening a pipe would wait for its writer.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(io_error(cause)),
    };
    if !metadata.is_file() {
        return Err(Refusal::new(format!("has a {file_name} that is no regular file")).of(name));
    }
    let too_large = || {
        let reason = format!(
            "has a {file_name} of more than {max_bytes} bytes, the most that an adapter for this \
             base can need"
        );
        Refusal::new(reason).of(name)
    };
    if metadata.len() > max_bytes {
        return Err(too_large());
    }
    let file = File::open(path).map_err(io_error)?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(Some(bytes))
}
