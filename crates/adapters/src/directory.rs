//! The adapter directory: every sub-directory with an `adapter_config.json` is an adapter of that
//! name. Looks at the disk each time, so new adapters are found and unknown names cost no memory.
//! A link that leads out of the directory is refused. Knows nothing of what is loaded.

use crate::error::{AdapterError, Refusal};
use crate::names::check_adapter_name;
use crate::read::{CONFIG_FILE, HUB_TENSORS_FILE, TENSORS_FILE, retry_transient};
use std::io;
use std::path::{Path, PathBuf};

/// The directory given with `--adapter-dir`.
#[derive(Debug)]
pub(crate) struct AdapterDirectory {
    /// As it was given: shown as the adapters' path.
    root: PathBuf,
    /// With links resolved: what an adapter's files must lie in.
    canonical: PathBuf,
}

impl AdapterDirectory {
    pub(crate) fn open(root: &Path) -> Result<Self, AdapterError> {
        let error = |message: String| AdapterError::Directory { path: root.to_owned(), message };
        let canonical = root.canonicalize().map_err(|cause| error(cause.to_string()))?;
        if !canonical.is_dir() {
            return Err(error("not a directory".to_owned()));
        }
        Ok(Self { root: root.to_owned(), canonical })
    }

    /// Whether `name` is that of an adapter here; false as well for what [`Self::find`] refuses.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Where the adapter lies.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, AdapterError> {
        let not_found = || AdapterError::NotFound { name: name.to_owned() };
        // Adapters are direct children: a name with a slash is somebody's label, not a path.
        if check_adapter_name(name).is_err() || name.contains('/') {
            return Err(not_found());
        }
        let io_error = |path: PathBuf, cause: io::Error| AdapterError::Io {
            name: name.to_owned(),
            path,
            message: cause.to_string(),
        };
        let path = self.root.join(name);
        let config = path.join(CONFIG_FILE);
        match retry_transient(|| config.try_exists()) {
            Ok(true) => {}
            Ok(false) => return Err(not_found()),
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => return Err(not_found()),
            // It may well be there.
            Err(cause) => return Err(io_error(config, cause)),
        }
        let files = [CONFIG_FILE, TENSORS_FILE, HUB_TENSORS_FILE].map(|file| path.join(file));
        for part in std::iter::once(path.clone()).chain(files) {
            match retry_transient(|| part.canonicalize()) {
                Ok(target) if target.starts_with(&self.canonical) => {}
                // Said by whoever reads the files.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => {
                    let part = part.strip_prefix(&self.root).unwrap_or(&part).display();
                    let reason = format!(
                        "is refused: {part} is a link that leads out of --adapter-dir; copy the \
                         files into it"
                    );
                    return Err(Refusal::new(reason).of(name));
                }
                Err(cause) => return Err(io_error(part, cause)),
            }
        }
        Ok(path)
    }

    /// The names that [`Self::find`] finds, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = self.root.read_dir().into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| self.has(name)).collect();
        names.sort_unstable();
        names
    }
}
