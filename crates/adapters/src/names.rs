//! Which strings may name an adapter. Names travel in URLs, file paths, metrics and comma-separated
//! lists, so the alphabet is small. Knows nothing of what is loaded.

use crate::error::AdapterError;

/// The longest adapter name, in bytes (all characters are ASCII).
pub const MAX_NAME_BYTES: usize = 128;

/// Checks that `name` is 1 to [`MAX_NAME_BYTES`] ASCII letters, digits and `._:/@+-`, begins with a
/// letter or digit, does not end with `/`, and has no `..` or `//`.
///
/// # Errors
/// [`AdapterError::InvalidName`], saying what is wrong with it.
pub fn check_adapter_name(name: &str) -> Result<(), AdapterError> {
    let Some(reason) = flaw(name) else { return Ok(()) };
    Err(AdapterError::InvalidName { name: name.chars().take(MAX_NAME_BYTES).collect(), reason })
}

fn flaw(name: &str) -> Option<&'static str> {
    let first = name.bytes().next();
    if first.is_none() {
        Some("is empty")
    } else if name.len() > MAX_NAME_BYTES {
        Some("is longer than 128 characters")
    } else if !first.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
        Some("must begin with a letter or a digit")
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/@+-".contains(&b)) {
        Some("may only contain letters, digits and . _ : / @ + -")
    } else if name.contains("..") {
        Some("must not contain \"..\"")
    } else if name.contains("//") || name.ends_with('/') {
        Some("must not contain an empty part between slashes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_accepted() {
        for name in ["sql", "org/adapter", "team:sql@v1.2+b-3_x", "0", &"a".repeat(128)] {
            assert_eq!(check_adapter_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn each_bad_name_is_refused_with_its_reason() {
        let cases = [
            ("", "is empty"),
            ("-x", "begin with"),
            ("../x", "begin with"),
            ("a/../b", "\"..\""),
            ("a..b", "\"..\""),
            ("a//b", "slashes"),
            ("a/", "slashes"),
            ("a,b", "may only"),
            ("a b", "may only"),
            ("a\u{0}b", "may only"),
            ("adäpter", "may only"),
            (&"a".repeat(129), "longer"),
        ];
        for (name, words) in cases {
            let message = check_adapter_name(name).unwrap_err().to_string();
            assert!(message.contains(words), "{name:?}: {message}");
        }
    }
}
