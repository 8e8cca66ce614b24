//! Why a source gave no adapter: one sentence each, for the person who can act. No secret is in any:
//! places are shown as [`crate::Location`] shows them, redirects and tokens not at all.

use crate::location::LocationError;
use std::path::{Path, PathBuf};
use weft_adapters::FetchError;

/// What [`crate::Sources`] refuses with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The text is no path or URI.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A request may not name it.
    #[error("{place} {reason}")]
    NotAllowed {
        /// What was named.
        place: String,
        /// A predicate that names the flag.
        reason: String,
    },
    /// There is nothing.
    #[error("{place} {reason}")]
    Missing {
        /// Where.
        place: String,
        /// A predicate.
        reason: String,
    },
    /// It wants to know who asks, or does not like who does.
    #[error("{place} {reason}")]
    Denied {
        /// Where.
        place: String,
        /// A predicate that names the setting.
        reason: String,
    },
    /// Something is there that is not served.
    #[error("{place} {reason}")]
    Unfit {
        /// Where.
        place: String,
        /// A predicate.
        reason: String,
    },
    /// Known before anything is fetched.
    #[error(
        "{place} has {num_bytes} bytes, more than the {max_bytes} of --adapter-download-max; raise it"
    )]
    TooLarge {
        /// Where.
        place: String,
        /// Bytes of all files.
        num_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// What came is not what was announced.
    #[error(
        "{file} of {place} was fetched, but its {kind} is {found}, not {expected}; it was thrown away"
    )]
    Checksum {
        /// Where.
        place: String,
        /// Which file.
        file: String,
        /// Which checksum.
        kind: &'static str,
        /// What came.
        found: String,
        /// What should have come.
        expected: String,
    },
    /// No answer, or not to the end. Passes with time.
    #[error("{place} does not answer: {reason}")]
    Unreachable {
        /// Where.
        place: String,
        /// The last failure.
        reason: String,
    },
    /// Two looks at it saw two versions. Passes with time.
    #[error("{place} changes while it is fetched; try again")]
    Changed {
        /// Where.
        place: String,
    },
    /// This machine's disk.
    #[error("{}: {reason}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

impl SourceError {
    pub(crate) fn io(path: &Path, cause: &std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), reason: cause.to_string() }
    }

    pub(crate) fn missing(place: &str, reason: impl Into<String>) -> Self {
        Self::Missing { place: place.to_owned(), reason: reason.into() }
    }

    pub(crate) fn denied(place: &str, reason: impl Into<String>) -> Self {
        Self::Denied { place: place.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unfit(place: &str, reason: impl Into<String>) -> Self {
        Self::Unfit { place: place.to_owned(), reason: reason.into() }
    }

    pub(crate) fn not_allowed(place: &str, reason: impl Into<String>) -> Self {
        Self::NotAllowed { place: place.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unreachable(place: &str, reason: impl Into<String>) -> Self {
        Self::Unreachable { place: place.to_owned(), reason: reason.into() }
    }
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        let reason = error.to_string();
        match error {
            SourceError::Missing { .. } => Self::Missing(reason),
            SourceError::NotAllowed { .. } => Self::NotAllowed(reason),
            SourceError::Unreachable { .. } | SourceError::Changed { .. } => {
                Self::Unreachable(reason)
            }
            SourceError::Location(_)
            | SourceError::Denied { .. }
            | SourceError::Unfit { .. }
            | SourceError::TooLarge { .. }
            | SourceError::Checksum { .. }
            | SourceError::Io { .. } => Self::Refused(reason),
        }
    }
}

/// What went wrong in one attempt.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Worth another attempt, after at least this long if the server said so.
    Passing(String, Option<std::time::Duration>),
    /// It is not.
    Final(SourceError),
}

impl From<SourceError> for Fault {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}
