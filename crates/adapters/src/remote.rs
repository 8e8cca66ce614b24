//! Adapters that do not lie on this machine: the seam between the registry and whatever brings them
//! here. In: a URI. Out: a local directory with the files that [`crate::read`] reads. Knows no
//! protocol: those are in the crate `sources`.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;

/// Who named a source, and so how far it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Whoever started the server: flags and resolver rules.
    Operator,
    /// A request.
    Request,
}

/// Why a source gave no adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// It answered, and has none there.
    Missing(String),
    /// It may not be asked. A sentence that says which flag would allow it.
    NotAllowed(String),
    /// It will not, or what it has is not acceptable: asking again changes nothing soon.
    Refused(String),
    /// It did not answer, or not to the end: asking later may help.
    Unreachable(String),
}

impl FetchError {
    /// The sentence, without a secret.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Missing(reason)
            | Self::NotAllowed(reason)
            | Self::Refused(reason)
            | Self::Unreachable(reason) => reason,
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for FetchError {}

/// A fetch under way. Dropped, it stops, and what has come is kept for the next one.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<PathBuf, FetchError>> + Send + 'a>>;

/// What brings adapters to this machine.
pub trait RemoteSources: fmt::Debug + Send + Sync {
    /// Brings the adapter at `uri` here, unless this very version is here already.
    fn fetch<'a>(&'a self, uri: &'a str, asker: Asker) -> Fetching<'a>;

    /// Where an adapter of this name would be by the operator's rules: URIs to try in turn. Empty
    /// for a name that no rule covers. Asks nobody.
    fn candidates(&self, name: &str) -> Vec<String>;

    /// What a request that names the path or URI `given` may have. Blocks: looks at the disk.
    ///
    /// # Errors
    /// [`FetchError::NotAllowed`], and [`FetchError::Refused`] for what is no path or URI.
    fn admit(&self, given: &str) -> Result<Admitted, FetchError>;
}

/// A source that a request may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// A local directory.
    Local(PathBuf),
    /// To be fetched.
    Remote(String),
}

/// This machine only; requests may name any directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalOnly;

impl RemoteSources for LocalOnly {
    fn fetch<'a>(&'a self, uri: &'a str, _: Asker) -> Fetching<'a> {
        let error = FetchError::Refused(format!("{uri} is not on this machine"));
        Box::pin(std::future::ready(Err(error)))
    }

    fn candidates(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn admit(&self, given: &str) -> Result<Admitted, FetchError> {
        if is_uri(given) {
            return Err(FetchError::NotAllowed("only local directories are served here".into()));
        }
        Ok(Admitted::Local(PathBuf::from(given)))
    }
}

/// Whether `given` names a scheme, such as `hf://…`, and so is no path.
#[must_use]
pub fn is_uri(given: &str) -> bool {
    let Some((scheme, _)) = given.split_once("://") else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::is_uri;

    #[test]
    fn uris_are_told_from_paths() {
        for uri in ["hf://a/b", "s3://x", "HTTPS://h/", "x-y+z.1://"] {
            assert!(is_uri(uri), "{uri}");
        }
        for path in ["", "a/b", "/a://b", "./hf://a", "a b://c", "://x", "1a://x", "hf:/a"] {
            assert!(!is_uri(path), "{path}");
        }
    }
}
