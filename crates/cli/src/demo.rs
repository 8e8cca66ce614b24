//! Finds the demo's adapters. In: where we are and where the program lies. Out: a directory whose
//! sub-directories are adapters.

use crate::adapter_flags::NamedAdapter;
use std::io;
use std::path::{Path, PathBuf};

/// Why the demo has no adapters.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Neither here nor beside the program.
    #[error(
        "there is no demo/adapters here or above the program; run this in a checkout of Weft, or \
         name the directory with --demo-dir"
    )]
    NotFound,
    /// A directory without adapters.
    #[error("{} holds no adapter: no sub-directory has an adapter_config.json", .0.display())]
    Empty(PathBuf),
    /// The system.
    #[error("reading {}: {source}", .path.display())]
    Io {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The demo's adapters, by name: those of `given`, or of the first `demo/adapters` found here or in
/// a directory above the program.
///
/// # Errors
/// See [`DemoError`].
pub fn adapters(given: Option<&Path>) -> Result<Vec<NamedAdapter>, DemoError> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => find(here.as_deref(), program.as_deref()).ok_or(DemoError::NotFound)?,
    };
    list(&dir)
}

fn find(here: Option<&Path>, program: Option<&Path>) -> Option<PathBuf> {
    let above_program = program.into_iter().flat_map(|path| path.ancestors().skip(1));
    here.into_iter()
        .chain(above_program)
        .map(|dir| dir.join("demo").join("adapters"))
        .find(|dir| dir.is_dir())
}

fn list(dir: &Path) -> Result<Vec<NamedAdapter>, DemoError> {
    let io = |source| DemoError::Io { path: dir.to_owned(), source };
    let mut named = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        if let Some(name) = name.filter(|_| path.join("adapter_config.json").is_file()) {
            named.push(NamedAdapter { name, path });
        }
    }
    if named.is_empty() {
        return Err(DemoError::Empty(dir.to_owned()));
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_found_here_or_above_the_program_and_listed_by_name() {
        let root = tempfile::tempdir().unwrap();
        let adapters = root.path().join("demo/adapters");
        for name in ["sql", "json"] {
            std::fs::create_dir_all(adapters.join(name)).unwrap();
            std::fs::write(adapters.join(name).join("adapter_config.json"), "{}").unwrap();
        }
        std::fs::create_dir_all(adapters.join("notes")).unwrap();
        let program = root.path().join("target/release/weft");
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(find(Some(elsewhere.path()), Some(&program)), Some(adapters.clone()));
        assert_eq!(find(Some(root.path()), None), Some(adapters.clone()));
        assert_eq!(find(Some(elsewhere.path()), None), None);
        let names: Vec<_> = list(&adapters).unwrap().into_iter().map(|a| a.name).collect();
        assert_eq!(names, ["json", "sql"]);
    }

    #[test]
    fn a_directory_without_adapters_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(adapters(Some(empty.path())), Err(DemoError::Empty(_))));
        let error = adapters(Some(&empty.path().join("gone"))).unwrap_err();
        assert!(matches!(error, DemoError::Io { .. }), "{error}");
    }
}
