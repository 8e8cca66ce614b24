//! Which sources requests may name. In: patterns of the operator. Out: whether a location is covered.
//! A pattern is a location, which covers itself, or one that ends with `/*`, which covers all that
//! lies below. Nothing else is a wildcard. Local paths are judged where links lead: see
//! [`crate::contained`].

use crate::location::{Location, LocationError, Store};
use std::path::PathBuf;
use url::Url;

/// The patterns of `--adapter-source-allow`.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    patterns: Vec<Pattern>,
}

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A `*` that is not the end.
    #[error("`*` may only stand at the end, after a slash, as in hf://acme/* or /srv/adapters/*")]
    Star,
    /// What stands before is no location.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A local directory that cannot be found.
    #[error("{} cannot be read: {reason}", .path.display())]
    Local {
        /// The directory.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    place: Place,
    /// Parts of the path.
    parts: Vec<String>,
    /// Only this revision.
    revision: Option<String>,
    /// All that lies below, and not the place itself.
    is_below: bool,
}

/// Where the parts of a path begin to count.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A directory, links resolved.
    Local(PathBuf),
    Hub,
    Objects(Store),
    /// Scheme, host and port, or any host.
    Web(Option<(String, String, Option<u16>)>),
}

/// A local directory that requests may load from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root<'a> {
    /// Links resolved.
    pub(crate) path: &'a std::path::Path,
    /// What lies below, or else the directory itself.
    pub(crate) is_below: bool,
}

impl AllowList {
    /// Reads patterns. Local directories must be there.
    ///
    /// # Errors
    /// [`PatternError`] of the first that is none.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let patterns = patterns.into_iter().map(Pattern::parse).collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern covers a remote location. False for local ones.
    #[must_use]
    pub fn covers(&self, location: &Location) -> bool {
        self.patterns.iter().any(|pattern| pattern.covers(location))
    }

    /// Whether a pattern that covers the location names its host: then the operator wants that host,
    /// wherever its address is.
    pub(crate) fn names_host(&self, location: &Location) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.place != Place::Web(None) && pattern.covers(location))
    }

    pub(crate) fn local_roots(&self) -> impl Iterator<Item = Root<'_>> {
        self.patterns.iter().filter_map(|pattern| match &pattern.place {
            Place::Local(path) => Some(Root { path, is_below: pattern.is_below }),
            _ => None,
        })
    }
}

impl Pattern {
    fn parse(given: &str) -> Result<Self, PatternError> {
        let is_below = given.ends_with("/*");
        let stem = if is_below { &given[..given.len() - 1] } else { given };
        if stem.contains('*') {
            return Err(PatternError::Star);
        }
        let whole = |place| Ok(Self { place, parts: Vec::new(), revision: None, is_below });
        match stem {
            "hf://" => return whole(Place::Hub),
            "s3://" => return whole(Place::Objects(Store::S3)),
            "gs://" => return whole(Place::Objects(Store::Gcs)),
            "az://" => return whole(Place::Objects(Store::Azure)),
            "https://" => return whole(Place::Web(None)),
            _ => {}
        }
        // `hf://acme/` is no repository, but all of an organisation's are below it.
        if let Some(org) = stem.strip_prefix("hf://").and_then(|rest| rest.strip_suffix('/'))
            && is_below
            && !org.contains('/')
        {
            Location::parse(&format!("hf://{org}/x"))?;
            let parts = vec![org.to_owned()];
            return Ok(Self { place: Place::Hub, parts, revision: None, is_below });
        }
        let location = Location::parse(stem)?;
        let revision = match &location {
            Location::Hub { revision, .. } => revision.clone(),
            _ => None,
        };
        let place = match &location {
            Location::Local(path) => {
                let canonical = path.canonicalize();
                let error = |cause: std::io::Error| PatternError::Local {
                    path: path.clone(),
                    reason: cause.to_string(),
                };
                Place::Local(canonical.map_err(error)?)
            }
            Location::Hub { .. } => Place::Hub,
            Location::Objects { store, .. } => Place::Objects(*store),
            Location::Web(url) => Place::Web(Some(host_of(url))),
        };
        Ok(Self { place, parts: parts_of(&location), revision, is_below })
    }

    fn covers(&self, location: &Location) -> bool {
        let is_place = match (&self.place, location) {
            (Place::Hub, Location::Hub { revision, .. }) => {
                self.revision.is_none() || self.revision == *revision
            }
            (Place::Objects(mine), Location::Objects { store, .. }) => mine == store,
            (Place::Web(None), Location::Web(url)) => url.scheme() == "https",
            (Place::Web(Some(host)), Location::Web(url)) => *host == host_of(url),
            _ => false,
        };
        let parts = parts_of(location);
        is_place
            && match parts.strip_prefix(self.parts.as_slice()) {
                Some(rest) => self.is_below != rest.is_empty(),
                None => false,
            }
    }
}

fn host_of(url: &Url) -> (String, String, Option<u16>) {
    let host = url.host_str().unwrap_or_default().to_owned();
    (url.scheme().to_owned(), host, url.port_or_known_default())
}

fn parts_of(location: &Location) -> Vec<String> {
    match location {
        Location::Local(_) => Vec::new(),
        Location::Hub { repo, folder, .. } => {
            repo.split('/').map(str::to_owned).chain(folder.iter().cloned()).collect()
        }
        Location::Objects { bucket, prefix, .. } => {
            std::iter::once(bucket).chain(prefix).cloned().collect()
        }
        Location::Web(url) => {
            let parts = url.path_segments().into_iter().flatten();
            parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, location: &str) -> bool {
        AllowList::parse([pattern]).unwrap().covers(&Location::parse(location).unwrap())
    }

    #[test]
    fn a_star_covers_what_lies_below_and_no_neighbour() {
        for (pattern, inside, outside) in [
            ("hf://acme/*", "hf://acme/sql@v1/a", "hf://acme-evil/sql"),
            ("hf://*", "hf://acme/sql", "s3://acme/sql"),
            ("s3://bucket/team/*", "s3://bucket/team/sql", "s3://bucket/team2/sql"),
            ("s3://bucket/team/*", "s3://bucket/team/a/b", "s3://bucket/team"),
            ("gs://*", "gs://bucket/a", "s3://bucket/a"),
            ("https://h/a/*", "https://h/a/b/", "https://h/ab/"),
            ("https://h/a/*", "https://H:443/a/b", "https://h:8443/a/b"),
            ("https://*", "https://anything/a", "http://127.0.0.1/a"),
            ("http://127.0.0.1:81/*", "http://127.0.0.1:81/a", "http://127.0.0.1:82/a"),
        ] {
            assert!(covers(pattern, inside), "{pattern} {inside}");
            assert!(!covers(pattern, outside), "{pattern} {outside}");
        }
    }

    #[test]
    fn without_a_star_a_pattern_covers_only_itself() {
        assert!(covers("hf://acme/sql", "hf://acme/sql@v2"));
        assert!(!covers("hf://acme/sql", "hf://acme/sql/folder"));
        assert!(covers("hf://acme/sql@v1", "hf://acme/sql@v1"));
        assert!(!covers("hf://acme/sql@v1", "hf://acme/sql@v2"));
        assert!(!covers("hf://acme/sql@v1", "hf://acme/sql"));
        assert!(covers("https://h/a", "https://h/a/"));
    }

    #[test]
    fn other_stars_are_refused_rather_than_misread() {
        for pattern in ["*", "hf://acme*", "hf://*/sql", "s3://b/*/x/*", "/srv/a*", "hf://acme/**"]
        {
            assert_eq!(AllowList::parse([pattern]).unwrap_err(), PatternError::Star, "{pattern}");
        }
        for pattern in ["hf://acme", "ftp://h/*", "hf://../*"] {
            assert!(matches!(AllowList::parse([pattern]), Err(PatternError::Location(_))));
        }
    }

    #[test]
    fn a_pattern_that_names_a_host_is_told_from_one_that_names_any() {
        let location = Location::parse("https://10.0.0.1/a/b").unwrap();
        let names = |pattern| AllowList::parse([pattern]).unwrap().names_host(&location);
        assert!(names("https://10.0.0.1/*"));
        assert!(!names("https://*"));
        assert!(!names("https://10.0.0.1/b/*"));
    }
}
