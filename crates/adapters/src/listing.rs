//! Which files of a directory make the adapter. In: the names that are there. Out: the names to be
//! read, or why the directory as a whole is refused. Opens nothing.

use crate::error::Refusal;
use crate::read::{CONFIG_FILE, PICKLES, TENSORS_FILE, UNREAD_FILES};

/// The files that an adapter with these files is read from.
///
/// # Errors
/// A [`Refusal`] that names the file that is missing, or that cannot be honoured.
pub fn adapter_files(is_there: impl Fn(&str) -> bool) -> Result<Vec<&'static str>, Refusal> {
    if let Some((file, why)) = UNREAD_FILES.iter().find(|(file, _)| is_there(file)) {
        return Err(Refusal::new(format!("carries {file}, but {why}")));
    }
    if !is_there(CONFIG_FILE) {
        return Err(Refusal::new(format!("has no {CONFIG_FILE}")));
    }
    if !is_there(TENSORS_FILE) {
        let pickle = PICKLES.into_iter().find(|file| is_there(file));
        let missing = || Refusal::new(format!("has no {TENSORS_FILE}"));
        return Err(pickle.map_or_else(missing, only_pickle));
    }
    Ok(vec![CONFIG_FILE, TENSORS_FILE])
}

/// The names that [`adapter_files`] asks about, for sources that cannot list.
#[must_use]
pub fn telling_files() -> Vec<&'static str> {
    let unread = UNREAD_FILES.iter().map(|(file, _)| *file);
    [CONFIG_FILE, TENSORS_FILE].into_iter().chain(unread).chain(PICKLES).collect()
}

/// Said of a directory whose tensors are only there in an old spelling.
pub(crate) fn only_pickle(file: &str) -> Refusal {
    Refusal::new(format!(
        "has {file} but no {TENSORS_FILE}: pickle files can run code and are not read; convert it \
         by loading the adapter with peft and calling save_pretrained(path, safe_serialization=True)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_cannot_be_honoured_is_named() {
        let files = |names: &[&str]| adapter_files(|name| names.contains(&name));
        let good = ["adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(files(&["README.md", good[0], good[1]]).unwrap(), good);
        let cases: [(&[&str], &str); 4] = [
            (&[], "has no adapter_config.json"),
            (&["adapter_config.json"], "has no adapter_model.safetensors"),
            (&["adapter_config.json", "adapter_model.bin"], "pickle"),
            (
                &["adapter_config.json", "adapter_model.safetensors", "new_embeddings.safetensors"],
                "carries new_embeddings.safetensors",
            ),
        ];
        for (names, words) in cases {
            let reason = files(names).unwrap_err().to_string();
            assert!(reason.contains(words), "{reason}");
        }
        assert!(good.iter().all(|file| telling_files().contains(file)));
    }
}
