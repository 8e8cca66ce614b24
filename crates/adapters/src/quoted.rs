//! Untrusted text in sentences: in quotes, escaped, and never long.

use std::fmt;

/// More characters than this are cut: a name in a file can be megabytes.
const MAX_CHARS: usize = 160;

/// Displays text as `"text"`, escaped and shortened.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MAX_CHARS) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quoted;

    #[test]
    fn long_and_odd_text_is_cut_and_escaped() {
        assert_eq!(Quoted("a\n\"b\"").to_string(), r#""a\n\"b\"""#);
        assert_eq!(Quoted(&"é".repeat(1000)).to_string().chars().count(), 160 + 3);
    }
}
