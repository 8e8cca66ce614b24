//! Which files of a directory make the adapter. In: the names that are there. Out: the names to be
//! read, or why the directory as a whole is refused. Opens nothing.

use crate::error::Refusal;
use crate::read::{CONFIG_FILE, HUB_PICKLE, HUB_TENSORS_FILE, PICKLES, TENSORS_FILE, UNREAD_FILES};

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
    match TENSORS_FILES.into_iter().find(|file| is_there(file)) {
        Some(tensors) => Ok(vec![CONFIG_FILE, tensors]),
        None => {
            Err(only_pickle(is_there)
                .unwrap_or_else(|| Refusal::new(format!("has no {TENSORS_FILE}"))))
        }
    }
}

/// The tensors are in the first that is there.
pub(crate) const TENSORS_FILES: [&str; 2] = [TENSORS_FILE, HUB_TENSORS_FILE];

/// The names that [`adapter_files`] asks about, for sources that cannot list.
#[must_use]
pub fn telling_files() -> Vec<&'static str> {
    let unread = UNREAD_FILES.iter().map(|(file, _)| *file);
    let read = [CONFIG_FILE].into_iter().chain(TENSORS_FILES);
    read.chain(unread).chain(PICKLES).chain([HUB_PICKLE]).collect()
}

/// Said of a directory whose tensors are only there in an old spelling.
pub(crate) fn only_pickle(is_there: impl Fn(&str) -> bool) -> Option<Refusal> {
    if let Some(file) = PICKLES.into_iter().find(|file| is_there(file)) {
        return Some(Refusal::new(format!(
            "has {file} but no {TENSORS_FILE}: pickle files can run code and are not served; \
             `weft adapter convert` makes a safetensors file of it without running it"
        )));
    }
    is_there(HUB_PICKLE).then(|| {
        Refusal::new(format!(
            "has {HUB_PICKLE} but no {HUB_TENSORS_FILE}: pickle files can run code and are not read; \
             convert it by loading the adapter with adapters and calling save_adapter(path, name, \
             use_safetensors=True)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_is_missing_or_cannot_be_honoured_is_named() {
        let files = |names: &[&str]| adapter_files(|name| names.contains(&name));
        let config = "adapter_config.json";
        let (peft, hub) = ("adapter_model.safetensors", "adapter.safetensors");
        assert_eq!(files(&["README.md", config, peft]).unwrap(), [config, peft]);
        assert_eq!(files(&[hub, config]).unwrap(), [config, hub]);
        // As they are read.
        assert_eq!(files(&[hub, config, peft]).unwrap(), [config, peft]);
        assert_eq!(files(&[hub, config, "pytorch_adapter.bin"]).unwrap(), [config, hub]);
        let cases: [(&[&str], &str); 6] = [
            (&[], "has no adapter_config.json"),
            (&[config], "has no adapter_model.safetensors"),
            (&[config, "adapter_model.bin"], "weft adapter convert"),
            (&[config, "pytorch_adapter.bin"], "use_safetensors=True"),
            (&[config, peft, "new_embeddings.safetensors"], "carries new_embeddings.safetensors"),
            (&[config, hub, "head_config.json"], "carries head_config.json"),
        ];
        for (names, words) in cases {
            let reason = files(names).unwrap_err().to_string();
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn all_that_is_asked_about_tells_something() {
        let asked = RefCell::new(Vec::new());
        let note = |name: &str, is_there| {
            asked.borrow_mut().push(name.to_owned());
            is_there
        };
        adapter_files(|name| note(name, name == CONFIG_FILE)).unwrap_err();
        let (mut asked, mut telling) = (asked.into_inner(), telling_files());
        asked.sort_unstable();
        asked.dedup();
        telling.sort_unstable();
        assert_eq!(asked, telling);
    }
}
