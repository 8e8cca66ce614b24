//! Where fetched models are kept. In: the environment. Out: a directory, not necessarily there yet.

use std::ffi::OsString;
use std::path::PathBuf;

/// `$WEFT_CACHE`, or `weft` in `$XDG_CACHE_HOME`, or in `~/.cache`.
///
/// `None` if the environment names neither a cache nor a home.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    cache_dir_from(|name| std::env::var_os(name))
}

/// [`cache_dir`] of another environment.
pub(crate) fn cache_dir_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("WEFT_CACHE")
        // The XDG rules: a relative path is to be ignored.
        .or_else(|| path("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).map(|d| d.join("weft")))
        .or_else(|| path("HOME").map(|home| home.join(".cache").join("weft")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_variable_wins() {
        let of = |set: &[(&str, &str)]| {
            cache_dir_from(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            })
        };
        let all = [("WEFT_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(of(&all), Some("/a".into()));
        assert_eq!(of(&all[1..]), Some("/b/weft".into()));
        assert_eq!(of(&all[2..]), Some("/c/.cache/weft".into()));
        assert_eq!(of(&[("XDG_CACHE_HOME", "x"), ("HOME", "/c")]), Some("/c/.cache/weft".into()));
        assert_eq!(of(&[("WEFT_CACHE", ""), ("HOME", "/c")]), Some("/c/.cache/weft".into()));
        assert_eq!(of(&[]), None);
    }
}
