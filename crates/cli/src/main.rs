//! The program: argv in, exit status out. Everything else is in the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    weft::run::run(weft::args::Cli::parse())
}
