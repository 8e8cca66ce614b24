//! README.md and ARCHITECTURE.md name only files that exist. In: the tree. Out: a sentence per name
//! that leads nowhere.

use crate::tidy::Source;
use std::path::Path;

const DOCUMENTS: [&str; 2] = ["README.md", "ARCHITECTURE.md"];

/// A word in backticks that starts with one of these is a path of this tree.
const ROOTS: [&str; 8] =
    ["crates/", "tests/", "demo/", "kernels/", "benches/", "deploy/", "proto/", ".ci/"];

/// A sentence per missing document and per path in one that does not exist.
pub(crate) fn violations(root: &Path, files: &[Source]) -> Vec<String> {
    let mut said = Vec::new();
    for document in DOCUMENTS {
        let Some(file) = files.iter().find(|file| file.path == document) else {
            said.push(format!("{document}: is missing"));
            continue;
        };
        for (number, line) in file.text.lines().enumerate() {
            for path in paths(line).filter(|path| !root.join(path).exists()) {
                said.push(format!("{document}:{}: there is no `{path}`", number + 1));
            }
        }
    }
    said
}

/// The paths of this tree that a line of Markdown names in backticks or as link targets.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2);
    let linked = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    quoted.chain(linked).filter(|word| {
        // Patterns and placeholders such as `crates/<name>` or `demo/*` name no single file.
        ROOTS.iter().any(|root| word.starts_with(root)) && !word.contains(['<', '*', '{', ' ', '$'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_backticks_and_links() {
        let line = "see `crates/a.rs`, `cargo test`, [b](demo/b.md#x) and `crates/<name>/src`";
        assert_eq!(paths(line).collect::<Vec<_>>(), ["crates/a.rs", "demo/b.md"]);
    }

    #[test]
    fn a_path_that_leads_nowhere_and_a_missing_document_are_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("demo")).unwrap();
        std::fs::write(root.path().join("demo/there.py"), "").unwrap();
        let text = "a\n`demo/there.py` and `demo/gone.py`\n".to_owned();
        let said = violations(root.path(), &[Source { path: "README.md".into(), text }]);
        assert_eq!(
            said,
            ["README.md:2: there is no `demo/gone.py`", "ARCHITECTURE.md: is missing"]
        );
    }
}
