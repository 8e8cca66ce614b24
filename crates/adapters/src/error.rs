//! Why an adapter could not be had: one sentence each, for the person who can act.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why the files of an adapter cannot be served: a predicate that follows the adapter's name, such
/// as `has rank 512, but this server was started with --max-lora-rank 256`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The predicate.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }

    pub(crate) fn of(self, name: &str) -> AdapterError {
        AdapterError::Rejected { name: name.to_owned(), reason: self.0 }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// What [`crate::AdapterRegistry`] and [`crate::load_peft_dir`] refuse with.
///
/// `Clone`, because everybody who waits for one load gets the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// No adapter has this name: never given, not in the adapter directory, or unloaded.
    #[error("the model `{name}` does not exist")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The name is taken and the request did not ask for replacement.
    #[error("the adapter {name:?} has already been loaded; set load_inplace to replace it")]
    AlreadyLoaded {
        /// The name.
        name: String,
    },
    /// An adapter must not shadow the base model.
    #[error("{name:?} is the name of the base model; give the adapter another name")]
    NameIsBase {
        /// The name.
        name: String,
    },
    /// The name cannot be used as an adapter's name.
    #[error("the adapter name {name:?} {reason}")]
    InvalidName {
        /// The name, shortened if it is long.
        name: String,
        /// A predicate: `is empty`, `contains ".."`, …
        reason: &'static str,
    },
    /// What a composition says cannot be.
    #[error("the composition {formula} {reason}")]
    Composition {
        /// As it was written, in quotes, shortened if it is long.
        formula: String,
        /// A predicate: `names "a" twice; give it one scale`, …
        reason: String,
    },
    /// A part of a composition does not exist.
    #[error("the composition {formula} names the adapter {part:?}, which does not exist")]
    MissingPart {
        /// The composition, in quotes.
        formula: String,
        /// The part.
        part: String,
    },
    /// The path is not there, or is no directory.
    #[error("adapter {name:?} has no directory at {}{retry}", .path.display())]
    PathNotFound {
        /// The name.
        name: String,
        /// The path as it was given.
        path: PathBuf,
        /// Set if this is an answer from memory.
        retry: RetryHint,
    },
    /// The files are there and cannot be served.
    #[error("adapter {name:?} {reason}")]
    Rejected {
        /// The name.
        name: String,
        /// A predicate that names the key or tensor and says what to do:
        /// `has rank 512, but this server was started with --max-lora-rank 256`.
        reason: String,
    },
    /// Its source has no such adapter. To whoever asked for the name, it does not exist.
    #[error("the model `{name}` does not exist{retry}")]
    NotInSource {
        /// The name.
        name: String,
        /// The source, and what it answered: not for strangers.
        reason: String,
        /// Set if this is an answer from memory.
        retry: RetryHint,
    },
    /// A request may not name this source.
    #[error("adapter {name:?}: {reason}")]
    NotAllowed {
        /// The name.
        name: String,
        /// A sentence that names the flag that would allow it.
        reason: String,
    },
    /// Its source did not give it.
    #[error("adapter {name:?} could not be fetched: {reason}")]
    Fetch {
        /// The name.
        name: String,
        /// A sentence about the source, without a secret.
        reason: String,
        /// Whether asking again later may help.
        passes: bool,
    },
    /// The operating system refused to read.
    #[error("adapter {name:?} cannot be read from {}: {message}", .path.display())]
    Io {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
        /// The system's words.
        message: String,
    },
    /// More than the whole host memory for adapters.
    #[error(
        "adapter {name:?} needs {needed} bytes of host memory, more than all {budget} bytes of \
         --adapter-host-memory; raise it"
    )]
    HostMemoryTooSmall {
        /// The name.
        name: String,
        /// Bytes of the adapter's files, or packed.
        needed: usize,
        /// Bytes that the server was given.
        budget: usize,
    },
    /// Requests, pins and other loads hold the host memory for adapters. Passes with time.
    #[error(
        "adapter {name:?} found no room: it needs {needed} of the {budget} bytes of \
         --adapter-host-memory, and adapters that are running, pinned or loading kept them for {} s; \
         ask again later",
        .waited.as_secs_f64()
    )]
    HostMemoryFull {
        /// The name.
        name: String,
        /// Bytes of the adapter's files, or packed.
        needed: usize,
        /// Bytes that the server was given.
        budget: usize,
        /// How long the load waited.
        waited: Duration,
    },
    /// The adapter directory itself is not usable.
    #[error("--adapter-dir {} cannot be read: {message}", .path.display())]
    Directory {
        /// As it was given.
        path: PathBuf,
        /// The system's words.
        message: String,
    },
    /// The load ended without an answer: the server is shutting down.
    #[error("loading of adapter {name:?} was interrupted; ask again")]
    Interrupted {
        /// The name.
        name: String,
    },
}

impl AdapterError {
    /// Whether the fault lies in the adapter's source: asking again at once would read it for
    /// nothing.
    pub(crate) fn is_of_source(&self) -> bool {
        matches!(
            self,
            Self::PathNotFound { .. }
                | Self::Rejected { .. }
                | Self::Io { .. }
                | Self::Fetch { .. }
                | Self::NotInSource { .. }
        )
    }

    /// The same error as an answer from memory, saying when the source is tried again.
    pub(crate) fn remembered(&self, retry_in: Duration) -> Self {
        let hint = RetryHint(Some(retry_in));
        let mut error = self.clone();
        match &mut error {
            Self::PathNotFound { retry, .. } | Self::NotInSource { retry, .. } => *retry = hint,
            Self::Rejected { reason: words, .. }
            | Self::Fetch { reason: words, .. }
            | Self::Io { message: words, .. } => {
                *words = format!("{words}{hint}");
            }
            _ => {}
        }
        error
    }
}

/// Ends the sentence of an error that is repeated from memory; nothing otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryHint(pub Option<Duration>);

impl fmt::Display for RetryHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) => write!(f, "; it is tried again in {:.1} s", wait.as_secs_f64().max(0.1)),
            None => Ok(()),
        }
    }
}
