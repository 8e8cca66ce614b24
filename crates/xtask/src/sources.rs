//! Rules for single files: length, opening line, forbidden words, `unsafe`. In: a file. Out: a
//! sentence per violation.

use crate::tidy::Source;

const MAX_LINES: usize = 600;
const MAX_TEST_LINES: usize = 800;

/// Longer than allowed, and why.
const LONG_FILES: [(&str, &str); 0] = [];

/// The only places that may hold `unsafe`.
const UNSAFE_ALLOWED: [&str; 6] = [
    "crates/cuda/",
    "crates/kernels/",
    "crates/gguf/src/file.rs",
    "crates/model/src/mapped_file.rs",
    "crates/testkit/src/allocations.rs",
    "tests/it/support/failing_driver.rs",
];

/// Names that say nothing about what a file holds.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "helper", "manager", "common"];

/// What must not stand in any file, and why. Split, so that this file passes its own check.
const FORBIDDEN: [(&str, &str); 6] = [
    (concat!("/", "tmp/"), "use a temporary directory from the environment"),
    (concat!("/", "work/"), "a path of one machine"),
    (concat!("/", "root/"), "a path of one machine"),
    (concat!("TO", "DO"), "finish it or file it"),
    (concat!("FIX", "ME"), "finish it or file it"),
    (concat!("#[ign", "ore"), "a test that does not run is not a test"),
];

/// A sentence per violation in `file`.
pub(crate) fn violations(file: &Source) -> Vec<String> {
    let Source { path, text } = file;
    let mut said = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, reason) in FORBIDDEN {
            if line.contains(word) {
                said.push(format!("{path}:{}: `{word}`: {reason}", number + 1));
            }
        }
    }
    let num_lines = text.lines().count();
    let limit = if is_test(path) { MAX_TEST_LINES } else { MAX_LINES };
    let is_code = path.ends_with(".rs") || path.ends_with(".py");
    let is_excused = LONG_FILES.iter().any(|(long, _)| long == path);
    if is_code && num_lines > limit && !is_excused {
        said.push(format!("{path}: {num_lines} lines, more than {limit}: split it by noun"));
    }
    if path.ends_with(".rs") {
        if !text.starts_with("//!") {
            said.push(format!("{path}: does not open with `//!`: what goes in, what comes out"));
        }
        if !UNSAFE_ALLOWED.iter().any(|allowed| path.starts_with(allowed)) {
            said.extend(text.lines().enumerate().filter(|(_, line)| is_unsafe(line)).map(
                |(number, _)| format!("{path}:{}: `unsafe` does not belong here", number + 1),
            ));
        }
        let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
        let parent = path.rsplit('/').nth(1).unwrap_or_default();
        if EMPTY_NAMES.contains(&stem) || (stem == "mod" && EMPTY_NAMES.contains(&parent)) {
            said.push(format!("{path}: the name says nothing about what the file holds"));
        }
    }
    said
}

/// Exceptions that nothing needs any more.
pub(crate) fn stale_exceptions(files: &[Source]) -> Vec<String> {
    LONG_FILES
        .iter()
        .filter(|(long, _)| {
            let limit = if is_test(long) { MAX_TEST_LINES } else { MAX_LINES };
            !files.iter().any(|file| file.path == *long && file.text.lines().count() > limit)
        })
        .map(|(long, reason)| format!("{long}: no longer needs its exception ({reason})"))
        .collect()
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// Whether a line of Rust opens something unsafe; comments do not count.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let Some(at) = code.find(concat!("uns", "afe ")) else { return false };
    let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_\"`".contains(c));
    let rest = code[at..].split_whitespace().nth(1).unwrap_or_default();
    is_word && ["{", "fn", "impl", "extern", "trait"].iter().any(|word| rest.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<String> {
        violations(&Source { path: path.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn a_plain_file_passes() {
        assert!(check("crates/x/src/lib.rs", "//! Doc.\n#![deny(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn forbidden_words_are_named_with_their_line() {
        for (word, reason) in FORBIDDEN {
            let said = check("demo/x.py", &format!("a\nb {word} c\n"));
            assert_eq!(said, [format!("demo/x.py:2: `{word}`: {reason}")]);
        }
    }

    #[test]
    fn length_is_limited_and_tests_may_be_longer() {
        let text = format!("//! Doc.\n{}", "x\n".repeat(650));
        assert_eq!(check("crates/x/src/a.rs", &text).len(), 1);
        assert!(check("crates/x/src/a/tests.rs", &text).is_empty());
        assert!(check("README.md", &text).is_empty());
    }

    #[test]
    fn unsafe_is_found_outside_its_places_only() {
        let block = concat!("//! Doc.\nlet x = uns", "afe { *p };\n");
        assert_eq!(check("crates/x/src/a.rs", block).len(), 1);
        assert!(check("crates/kernels/src/a.rs", block).is_empty());
        assert!(check("crates/gguf/src/file.rs", block).is_empty());
        let comment = concat!("//! Doc.\n// uns", "afe { }\n");
        assert!(check("crates/x/src/a.rs", comment).is_empty());
    }

    #[test]
    fn files_open_with_a_sentence_and_have_a_name() {
        assert!(check("crates/x/src/a.rs", "use a;\n")[0].contains("does not open with"));
        assert!(check("crates/x/src/utils.rs", "//! Doc.\n")[0].contains("says nothing"));
        assert!(check("crates/x/src/common/mod.rs", "//! Doc.\n")[0].contains("says nothing"));
    }
}
