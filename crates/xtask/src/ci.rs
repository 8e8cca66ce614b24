//! Everything that must pass before a change lands, fastest first. Stops at the first failure.

use crate::tidy;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Runs fmt, tidy, clippy and all tests in `root`.
///
/// # Errors
/// Names the first command that failed.
pub(crate) fn run(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    println!("==> tidy");
    tidy::run(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    cargo(root, &["test", "--workspace"])
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    println!("==> cargo {}", args.join(" "));
    let status = Command::new(tidy::cargo_path())
        .args(args)
        .current_dir(root)
        .status()
        .context("cargo did not start")?;
    ensure!(status.success(), "`cargo {}` failed", args.join(" "));
    Ok(())
}
