//! Ctrl-C and SIGTERM. Out: a future that resolves at the first; a second one ends the process.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell reports of a program that SIGINT ended.
const STATUS_INTERRUPTED: i32 = 130;

/// Both signals, caught from now on.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts to catch them.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Resolves at the first signal. The second one ends the process at once: who asks twice does
    /// not want to wait for requests in flight.
    pub async fn first(mut self) {
        self.next().await;
        eprintln!("stopping: running requests finish first; once more to stop at once");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(STATUS_INTERRUPTED);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
