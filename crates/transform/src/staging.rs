//! A directory or file that appears whole or not at all: written beside its place under a name of its
//! own, then renamed. What is in the way is never overwritten.

use crate::error::{Result, at, refuse};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An output directory in the making; gone if it is dropped before [`Staging::publish`].
#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
    out: PathBuf,
}

impl Staging {
    /// Refuses an `out` that exists, unless it is an empty directory.
    pub(crate) fn new(out: &Path) -> Result<Self> {
        let is_empty_dir = || out.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if out.exists() && !is_empty_dir() {
            return refuse(format!(
                "{} exists already; name a directory that does not, or remove it",
                out.display()
            ));
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(at(parent))?;
        let dir = tempfile::Builder::new().prefix(".weft-").tempdir_in(parent);
        Ok(Self { dir: dir.map_err(at(parent))?, out: out.to_owned() })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Moves all of it to its place, readable for everybody whom the umask lets.
    pub(crate) fn publish(self) -> Result<()> {
        let Self { dir, out } = self;
        // A plain directory has the permissions that the user wants, and a temporary one has not.
        if !out.exists() {
            std::fs::create_dir(&out).map_err(at(&out))?;
        }
        for entry in std::fs::read_dir(dir.path()).map_err(at(dir.path()))? {
            let entry = entry.map_err(at(dir.path()))?;
            let target = out.join(entry.file_name());
            std::fs::rename(entry.path(), &target).map_err(at(&target))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_leaves_nothing_and_what_is_published_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/out");
        drop(Staging::new(&out).unwrap());
        assert!(!out.exists());
        let staging = Staging::new(&out).unwrap();
        std::fs::write(staging.path().join("a"), "1").unwrap();
        staging.publish().unwrap();
        assert_eq!(std::fs::read(out.join("a")).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(dir.path().join("deep")).unwrap().count(), 1);
        let error = Staging::new(&out).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }
}
