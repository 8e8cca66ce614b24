//! Text for standard output, and JSON for files. A reader that has gone, as in `weft … | head`, is no error: there is
//! just nobody left to tell.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// Writes `text` as it is.
///
/// # Errors
/// If standard output cannot be written, unless its reader has gone.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    forgive_broken_pipe(write!(out, "{text}").and_then(|()| out.flush()))
}

/// Writes `value` as indented JSON.
///
/// # Errors
/// As [`print`]; if `value` has no JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string_pretty(value)? + "\n")
}

/// Writes `value` into a file, as indented JSON.
///
/// # Errors
/// If it cannot be written, or has no JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Success, too, if the reader has gone.
///
/// # Errors
/// Every other one.
pub fn forgive_broken_pipe(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to standard output"),
    }
}
