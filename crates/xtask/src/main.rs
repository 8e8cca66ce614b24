//! Chores of this workspace. `cargo xtask tidy` checks the rules that no compiler checks;
//! `cargo xtask ci` runs everything that must pass before a change lands; `cargo xtask kernels` compiles
//! the kernels for all GPUs and says what became of them.

mod ci;
mod documents;
mod kernels;
mod layers;
#[path = "../../cuda/build/nvcc.rs"]
mod nvcc;
mod sources;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let root = tidy::workspace_root();
    let chore = std::env::args().nth(1);
    let outcome = match chore.as_deref() {
        Some("tidy") => tidy::run(&root),
        Some("ci") => ci::run(&root),
        Some("kernels") => kernels::run(&root, std::env::args().nth(2).as_deref()),
        _ => {
            eprintln!("usage: cargo xtask <tidy|ci|kernels [NAME]>");
            eprintln!("  tidy  layers, file lengths, forbidden words, unsafe, documents");
            eprintln!("  ci    fmt, clippy, tidy, tests");
            eprintln!(
                "  kernels  registers, shared memory and spills of kernels with NAME in theirs, by nvcc"
            );
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
