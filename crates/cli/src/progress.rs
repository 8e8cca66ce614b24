//! Progress on the terminal. In: bytes and sentences. Out: a bar where there is a terminal, else one
//! line per step; always on standard error.

use crate::pull::Progress;
use crate::size::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use weft_sources::FetchProgress;

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

/// A bar for each adapter that is fetched for the operator, until a server is ready: from then on its
/// log says what is fetched.
#[derive(Debug, Default)]
pub struct FetchBars {
    bar: Mutex<Option<ProgressBar>>,
    is_silent: AtomicBool,
}

impl FetchBars {
    /// No more bars.
    pub fn silence(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    fn replace(&self, bar: Option<ProgressBar>) {
        let mut shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *shown, bar) {
            old.finish_and_clear();
        }
    }
}

impl FetchProgress for FetchBars {
    fn begin(&self, what: &str, num_bytes: u64) {
        if self.is_silent.load(Ordering::Relaxed) {
            return;
        }
        eprintln!("fetching {what} ({})", ByteSize(num_bytes));
        self.replace(std::io::stderr().is_terminal().then(|| bytes_bar(num_bytes)));
    }

    fn fetched(&self, done: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.set_position(done);
        }
    }

    fn end(&self) {
        self.replace(None);
    }
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
