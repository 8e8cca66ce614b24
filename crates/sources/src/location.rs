//! What a path or URI says. In: text. Out: a [`Location`], whose own text names the same place and
//! holds no secret. Looks at no disk and no network.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use url::Url;
use weft_adapters::is_uri;

/// Longer texts are no locations.
const MAX_BYTES: usize = 2048;

/// What to write, for the errors.
const FORMS: &str = "write a path, hf://org/name[@revision][/folder], s3://bucket/prefix, \
                     gs://bucket/prefix, az://container/prefix or https://host/folder/";

/// The directory of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// A repository of the Hugging Face Hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, tag or commit; `main` if none was given.
        revision: Option<String>,
        /// Parts of the path inside the repository.
        folder: Vec<String>,
    },
    /// A prefix of an object store.
    Objects {
        /// Which kind.
        store: Store,
        /// Bucket or container.
        bucket: String,
        /// Parts of the prefix.
        prefix: Vec<String>,
    },
    /// A directory of a web server; the path ends with a slash. Plain HTTP only to this machine.
    Web(Url),
}

/// A kind of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Amazon S3, and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Store {
    const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

/// Why a text is no location. Says nothing of a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// A scheme that is not served.
    #[error("{scheme}:// is no source of adapters: {FORMS}")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// The scheme is served, the rest is not right.
    #[error("{scheme}://… {reason}")]
    Form {
        /// The scheme.
        scheme: &'static str,
        /// What to do about it.
        reason: &'static str,
    },
    /// Empty, too long, or with control characters.
    #[error("a source of adapters {0}")]
    Text(&'static str),
}

impl Location {
    /// Reads a path or URI.
    ///
    /// # Errors
    /// [`LocationError`], a sentence with what to write.
    pub fn parse(given: &str) -> Result<Self, LocationError> {
        if given.is_empty() {
            return Err(LocationError::Text("is empty"));
        }
        if given.len() > MAX_BYTES {
            return Err(LocationError::Text("is longer than 2048 bytes"));
        }
        if given.chars().any(char::is_control) {
            return Err(LocationError::Text("holds a control character"));
        }
        let Some((scheme, rest)) = given.split_once("://").filter(|_| is_uri(given)) else {
            return Ok(Self::Local(PathBuf::from(given)));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => file(rest),
            "hf" => hub(rest),
            "s3" => objects(Store::S3, rest),
            "gs" | "gcs" => objects(Store::Gcs, rest),
            "az" | "abfs" | "abfss" => objects(Store::Azure, rest),
            "https" => web("https", given),
            "http" => web("http", given),
            other => Err(LocationError::Scheme { scheme: other.to_owned() }),
        }
    }

    /// Whether it has to be fetched.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        !matches!(self, Self::Local(_))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, revision, folder } => {
                write!(f, "hf://{repo}")?;
                if let Some(revision) = revision {
                    write!(f, "@{}", revision.replace('/', "%2F"))?;
                }
                folder.iter().try_for_each(|part| write!(f, "/{part}"))
            }
            Self::Objects { store, bucket, prefix } => {
                write!(f, "{}://{bucket}", store.scheme())?;
                prefix.iter().try_for_each(|part| write!(f, "/{part}"))
            }
            Self::Web(url) => f.write_str(url.as_str()),
        }
    }
}

fn file(rest: &str) -> Result<Location, LocationError> {
    let refuse = |reason| Err(LocationError::Form { scheme: "file", reason });
    // A host could only be another machine.
    let Some(path) = rest.strip_prefix("localhost").or(Some(rest)).filter(|p| p.starts_with('/'))
    else {
        return refuse("names a host: write file:///path");
    };
    if path.contains(['%', '?', '#']) {
        return refuse("holds %, ? or #: give the path without file://");
    }
    Ok(Location::Local(PathBuf::from(path)))
}

fn hub(rest: &str) -> Result<Location, LocationError> {
    let refuse = |reason| Err(LocationError::Form { scheme: "hf", reason });
    let form = "names no repository: write hf://org/name[@revision][/folder]";
    let mut parts = rest.trim_end_matches('/').split('/');
    let (Some(org), Some(name)) = (parts.next(), parts.next()) else { return refuse(form) };
    let (name, revision) = match name.split_once('@') {
        Some((name, revision)) => (name, Some(revision.replace("%2F", "/").replace("%2f", "/"))),
        None => (name, None),
    };
    let is_id = |part: &str| {
        part.len() <= 96
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !part.contains("..")
            && !part.contains("--")
    };
    if !is_id(org) || !is_id(name) {
        return refuse(form);
    }
    let is_revision = |revision: &String| {
        !revision.is_empty()
            && revision.split('/').all(is_plain)
            && revision.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
    };
    if revision.as_ref().is_some_and(|revision| !is_revision(revision)) {
        return refuse("has a revision that is none: a branch, tag or commit, / written as %2F");
    }
    let folder: Vec<_> = parts.map(str::to_owned).collect();
    if !folder.iter().all(|part| is_plain(part)) {
        return refuse("has a folder with an empty part, . or ..");
    }
    Ok(Location::Hub { repo: format!("{org}/{name}"), revision, folder })
}

fn objects(store: Store, rest: &str) -> Result<Location, LocationError> {
    let refuse = |reason| Err(LocationError::Form { scheme: store.scheme(), reason });
    let mut parts = rest.trim_end_matches('/').split('/');
    let bucket = parts.next().unwrap_or_default();
    let is_bucket = (1..=222).contains(&bucket.len())
        && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
        && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_bucket {
        return refuse("names no bucket: write the bucket, then / and the prefix");
    }
    let prefix: Vec<_> = parts.map(str::to_owned).collect();
    if !prefix.iter().all(|part| is_plain(part)) {
        return refuse("has a prefix with an empty part, . or ..");
    }
    Ok(Location::Objects { store, bucket: bucket.to_owned(), prefix })
}

fn web(scheme: &'static str, given: &str) -> Result<Location, LocationError> {
    let refuse = |reason| Err(LocationError::Form { scheme, reason });
    let Ok(mut url) = Url::parse(given) else { return refuse("is no address") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("holds a user name or password, which would end in logs: leave it out");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("holds ? or #: a directory is named by its path alone");
    }
    if url.cannot_be_a_base() || url.host_str().is_none_or(str::is_empty) {
        return refuse("names no host");
    }
    // The parser resolves `..`, encoded or not, and so would name another directory than was written.
    let path = given.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    let path = path.map_or("", |(_, path)| path);
    let is_dots =
        |part: &str| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    if path.contains('\\') || path.trim_end_matches('/').split('/').any(is_dots) {
        return refuse("has a part . or .. in its path, or a backslash");
    }
    if scheme == "http" && !is_this_machine(&url) {
        return refuse("is not encrypted: use https://, or http:// to this machine only");
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(Location::Web(url))
}

/// Whether the host is this machine, by its text.
pub(crate) fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether `part` is one name of a path, and no way out of it.
pub(crate) fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.contains(['/', '\\', '%', '?', '#'])
        && matches!(Path::new(part).components().next(), Some(Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_is_read_and_shown_again() {
        for given in [
            "adapters/sql",
            "/srv/adapters/sql",
            "hf://acme/sql",
            "hf://acme/sql@v1.2/checkpoints/10",
            "hf://acme/sql@refs%2Fpr%2F1",
            "s3://adapters/team/sql",
            "gs://adapters/sql",
            "az://container/sql",
            "https://example.com:8443/a/b/",
            "http://127.0.0.1:80/a/",
        ] {
            let shown = Location::parse(given).unwrap().to_string();
            assert_eq!(shown, given.replace(":80/", "/"));
        }
        assert_eq!(Location::parse("file:///a/b"), Ok(Location::Local("/a/b".into())));
        let url = Location::parse("https://h/a").unwrap();
        assert_eq!(url.to_string(), "https://h/a/");
    }

    #[test]
    fn what_leads_elsewhere_or_holds_a_secret_is_refused_with_a_sentence() {
        let cases = [
            ("", "empty"),
            ("a\nb", "control"),
            ("ftp://h/a", "ftp:// is no source"),
            ("file://host/a", "names a host"),
            ("hf://acme", "hf://org/name"),
            ("hf://acme/../x", "hf://org/name"),
            ("hf://acme/sql/../x", "folder"),
            ("hf://acme/sql/%2e%2e/x", "folder"),
            ("hf://acme/sql@../x", "revision"),
            ("hf://acme/sql@a..%2F..", "revision"),
            ("hf://a--b/sql", "hf://org/name"),
            ("s3://", "bucket"),
            ("s3://b/a//c", "prefix"),
            ("s3://b/../c", "prefix"),
            ("https://user:secret@h/a", "password"),
            ("https://h/a?token=secret", "? or #"),
            ("https://h/a/../b", ".."),
            ("https://h/a/%2E%2e/b", ".."),
            ("https://h/a\\..\\b", "backslash"),
            ("http://example.com/a", "not encrypted"),
            ("http://127.0.0.1.example.com/a", "not encrypted"),
        ];
        for (given, words) in cases {
            let said = Location::parse(given).unwrap_err().to_string();
            assert!(said.contains(words), "{given}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
        assert!(Location::parse(&format!("hf://{}", "a".repeat(3000))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_shown_as_itself(
            given in "(hf|s3|gs|az|file|https|http|x)://[a-z0-9@%./:#?\\\\_-]{0,40}|\\PC{0,40}",
        ) {
            if let Ok(location) = Location::parse(&given) {
                let shown = location.to_string();
                prop_assert_eq!(Location::parse(&shown), Ok(location.clone()), "{}", shown);
                if location.is_remote() {
                    let mut parts = shown.split('/');
                    prop_assert!(!parts.any(|part| part == ".."), "{}", shown);
                }
            }
        }
    }
}
