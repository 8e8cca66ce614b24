//! Where adapters' files lie. The seam between loading and the file system: in tests, a storage can
//! be slow, fail, or change a file while it is read.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

/// A file system, as far as loading needs one. Calls may block for long: they come on threads for
/// that.
pub trait Storage: fmt::Debug + Send + Sync {
    /// What lies at `path`, links followed. Opens nothing.
    ///
    /// # Errors
    /// The system's.
    fn stat(&self, path: &Path) -> io::Result<FileStamp>;

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>>;

    /// The names of what lies in the directory `path`: for hints only. A storage that cannot list
    /// says nothing.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, _path: &Path) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// An open file.
pub trait StoredFile: Read + Send {
    /// What the file is now, wherever its name leads meanwhile.
    ///
    /// # Errors
    /// The system's.
    fn stat(&self) -> io::Result<FileStamp>;
}

/// Equal for two looks at one file only if it did not change between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStamp {
    /// A regular file.
    pub is_file: bool,
    /// A directory.
    pub is_dir: bool,
    /// Bytes.
    pub len: u64,
    /// When the content changed last.
    pub modified: Option<SystemTime>,
    /// What else tells versions apart: device, inode, and the time of the last change of either
    /// content or inode. Renaming tools keep the other times.
    pub identity: [u64; 4],
}

impl From<&Metadata> for FileStamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            is_file: metadata.is_file(),
            is_dir: metadata.is_dir(),
            len: metadata.len(),
            modified: metadata.modified().ok(),
            identity: identity(metadata),
        }
    }
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> [u64; 4] {
    use std::os::unix::fs::MetadataExt;
    let changed = [metadata.ctime().cast_unsigned(), metadata.ctime_nsec().cast_unsigned()];
    [metadata.dev(), metadata.ino(), changed[0], changed[1]]
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> [u64; 4] {
    [0; 4]
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFiles;

impl Storage for LocalFiles {
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        Ok(FileStamp::from(&fs::metadata(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(path)?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }
}

impl StoredFile for File {
    fn stat(&self) -> io::Result<FileStamp> {
        Ok(FileStamp::from(&self.metadata()?))
    }
}
