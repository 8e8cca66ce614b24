//! Chores of this workspace. `cargo xtask tidy` checks the rules that no compiler checks;
//! `cargo xtask ci` runs everything that must pass before a change lands.

mod ci;
mod documents;
mod layers;
mod sources;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let root = tidy::workspace_root();
    let chore = std::env::args().nth(1);
    let outcome = match chore.as_deref() {
        Some("tidy") => tidy::run(&root),
        Some("ci") => ci::run(&root),
        _ => {
            eprintln!("usage: cargo xtask <tidy|ci>");
            eprintln!("  tidy  layers, file lengths, forbidden words, unsafe, documents");
            eprintln!("  ci    fmt, clippy, tidy, tests");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
