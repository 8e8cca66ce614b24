//! Progress on the terminal. In: bytes and sentences. Out: a bar where there is a terminal, else one
//! line per step; always on standard error.

use crate::pull::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::OnceLock;

/// Draws a bar while something is fetched.
#[derive(Default)]
pub struct Terminal {
    bar: OnceLock<ProgressBar>,
}

impl Progress for Terminal {
    fn fetched(&self, done: u64, total: u64) {
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_init(|| bytes_bar(total));
            // The wheel stands beside pip's other files; the bar must not run over.
            bar.set_position(done.min(total));
        }
    }

    fn step(&self, sentence: &str) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
        eprintln!("{sentence}");
    }
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn fetched(&self, _: u64, _: u64) {}
    fn step(&self, _: &str) {}
}

fn bytes_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "  {bar:40} {bytes:>10} of {total_bytes} {bytes_per_sec:>12} {eta:>4}",
    );
    let bar = ProgressBar::new(total);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A bar over `total` equal steps, hidden where there is no terminal.
#[must_use]
pub fn count_bar(total: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {msg} {bar:40} {pos} of {len} {elapsed:>4}");
    let bar = ProgressBar::new(total).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
