//! The rules that no compiler checks. In: the workspace's root. Out: one sentence per violation.

use crate::{documents, layers, sources};
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the workspace.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root, with `/`.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

/// Checks every rule.
///
/// # Errors
/// Lists all violations.
pub(crate) fn run(root: &Path) -> Result<()> {
    let violations = violations(root)?;
    if violations.is_empty() {
        println!("tidy: nothing to say");
        return Ok(());
    }
    bail!("{}\n{} violations", violations.join("\n"), violations.len());
}

/// One sentence per violation, each starting with where.
///
/// # Errors
/// If the tree cannot be read or `cargo metadata` fails.
pub(crate) fn violations(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut violations = layers::violations(&layers::read_metadata(root)?);
    violations.extend(files.iter().flat_map(sources::violations));
    violations.extend(sources::stale_exceptions(&files));
    violations.extend(documents::violations(root, &files));
    Ok(violations)
}

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo_path() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Directories that hold what was built or fetched, not what was written.
const SKIPPED: [&str; 5] = [".git", "target", "__pycache__", ".venv", "node_modules"];

/// Endings of files that people write, and files without one.
const ENDINGS: [&str; 8] = [".rs", ".toml", ".md", ".py", ".sh", ".yml", ".yaml", "/run"];

fn collect(root: &Path, dir: &Path, files: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                collect(root, &path, files)?;
            }
            continue;
        }
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        if kind.is_file() && ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            files.push(Source { path: name, text: fs::read_to_string(&path)? });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let violations = super::violations(&super::workspace_root()).unwrap();
        assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
    }
}
