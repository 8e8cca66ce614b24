//! Local directories that requests may load: no `..`, no link that leads out. In: a path and the
//! allowed roots. Out: the directory with links resolved, or why not. Says nothing of what is outside.

use crate::allow::{AllowList, Root};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Why a path may not be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// No root covers it; also if it cannot be looked at.
    NotCovered,
    /// It has a part `..`.
    Upwards,
    /// A file in it is a link that leads out of the root.
    Link(String),
    /// The disk.
    Io(String),
}

/// Where `given` really is, if that is in a root.
pub(crate) fn contain(given: &Path, allow: &AllowList) -> Result<PathBuf, Escape> {
    if given.components().any(|part| part == Component::ParentDir) {
        return Err(Escape::Upwards);
    }
    let canonical = match given.canonicalize() {
        Ok(canonical) => canonical,
        // Of a missing directory the parents tell where it would be; whoever reads says it is missing.
        Err(_) => return missing(given, allow),
    };
    let root = allow.local_roots().find(|root| root.holds(&canonical)).ok_or(Escape::NotCovered)?;
    check_entries(&canonical, &root)?;
    Ok(canonical)
}

fn missing(given: &Path, allow: &AllowList) -> Result<PathBuf, Escape> {
    let parent = given.ancestors().skip(1).find_map(|parent| parent.canonicalize().ok());
    let is_inside = parent.is_some_and(|parent| {
        allow.local_roots().any(|root| root.is_below && parent.starts_with(root.path))
    });
    if is_inside { Ok(given.to_owned()) } else { Err(Escape::NotCovered) }
}

/// Entries may be links, but only to what the root holds.
fn check_entries(directory: &Path, root: &Root<'_>) -> Result<(), Escape> {
    let io = |cause: io::Error| Escape::Io(cause.to_string());
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        // Said by whoever reads it.
        Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(cause) => return Err(io(cause)),
    };
    for entry in entries {
        let path = entry.map_err(io)?.path();
        // A link to nowhere reads nothing.
        let Ok(target) = path.canonicalize() else { continue };
        if !target.starts_with(root.path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Err(Escape::Link(name.into_owned()));
        }
    }
    Ok(())
}

impl Root<'_> {
    fn holds(&self, canonical: &Path) -> bool {
        match canonical.strip_prefix(self.path) {
            Ok(rest) => self.is_below != rest.as_os_str().is_empty(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for dir in ["allowed/sql", "allowed/deep/er", "outside"] {
                fs::create_dir_all(root.path().join(dir)).unwrap();
                fs::write(root.path().join(dir).join("adapter_config.json"), "{}").unwrap();
            }
            Self(root)
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn contain(&self, path: &str) -> Result<PathBuf, Escape> {
            let pattern = format!("{}/*", self.at("allowed").display());
            contain(&self.at(path), &AllowList::parse([pattern.as_str()]).unwrap())
        }
    }

    #[test]
    fn what_lies_below_a_root_is_allowed_and_named_with_links_resolved() {
        let disk = Disk::new();
        let real = disk.at("allowed/sql").canonicalize().unwrap();
        assert_eq!(disk.contain("allowed/sql"), Ok(real.clone()));
        assert!(disk.contain("allowed/deep/er").is_ok());
        symlink(&real, disk.at("allowed/link")).unwrap();
        symlink(&real, disk.at("into")).unwrap();
        assert_eq!(disk.contain("allowed/link"), Ok(real.clone()));
        assert_eq!(disk.contain("into"), Ok(real));
        assert!(disk.contain("allowed/not-there").is_ok());
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let disk = Disk::new();
        symlink(disk.at("outside"), disk.at("allowed/link")).unwrap();
        for path in ["outside", "allowed", "", "allowed/link", "not-there", "outside/not-there"] {
            assert_eq!(disk.contain(path), Err(Escape::NotCovered), "{path}");
        }
        for path in ["allowed/../outside", "allowed/sql/../sql", "allowed/.."] {
            assert_eq!(disk.contain(path), Err(Escape::Upwards), "{path}");
        }
        assert_eq!(disk.contain("allowed/link/not-there"), Err(Escape::NotCovered));
        let link = disk.at("allowed/sql/adapter_model.safetensors");
        symlink(disk.at("outside/adapter_config.json"), link).unwrap();
        let escape = Escape::Link("adapter_model.safetensors".into());
        assert_eq!(disk.contain("allowed/sql"), Err(escape));
    }

    #[test]
    fn a_root_without_a_star_is_that_directory_alone() {
        let disk = Disk::new();
        let allow = AllowList::parse([disk.at("allowed/sql").to_str().unwrap()]).unwrap();
        assert!(contain(&disk.at("allowed/sql"), &allow).is_ok());
        assert_eq!(contain(&disk.at("allowed/deep"), &allow), Err(Escape::NotCovered));
    }
}
