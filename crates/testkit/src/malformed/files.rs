//! Directories in which a file is missing, is not a file, or is one too many.

use super::{Table, good};
use crate::peft::write_peft_dir;
use std::fs;
use std::io;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// Spoils a good directory.
type Spoil = fn(&Path) -> io::Result<()>;

pub(super) fn add(table: &mut Table) {
    let cases: [(&str, &[&str], Spoil); 11] = [
        ("empty", &["no adapter_config.json"], |dir| {
            fs::remove_file(dir.join(CONFIG))?;
            fs::remove_file(dir.join(TENSORS))
        }),
        ("no-config", &["no adapter_config.json"], |dir| fs::remove_file(dir.join(CONFIG))),
        ("no-tensors", &["no adapter_model.safetensors"], |dir| fs::remove_file(dir.join(TENSORS))),
        ("pickle", &["adapter_model.bin", "convert"], |dir| {
            fs::rename(dir.join(TENSORS), dir.join("adapter_model.bin"))
        }),
        ("pickle-pt", &["adapter_model.pt", "convert"], |dir| {
            fs::rename(dir.join(TENSORS), dir.join("adapter_model.pt"))
        }),
        ("shards", &["no adapter_model.safetensors"], |dir| {
            fs::rename(dir.join(TENSORS), dir.join("adapter_model-00001-of-00002.safetensors"))
        }),
        ("merged-model", &["no adapter_model.safetensors"], |dir| {
            fs::rename(dir.join(TENSORS), dir.join("model.safetensors"))
        }),
        ("config-is-directory", &["adapter_config.json", "no regular file"], |dir| {
            fs::remove_file(dir.join(CONFIG))?;
            fs::create_dir(dir.join(CONFIG))
        }),
        ("tensors-are-directory", &["adapter_model.safetensors", "no regular file"], |dir| {
            fs::remove_file(dir.join(TENSORS))?;
            fs::create_dir(dir.join(TENSORS))
        }),
        ("new-embeddings", &["new_embeddings.safetensors", "added tokens"], |dir| {
            fs::copy(dir.join(TENSORS), dir.join("new_embeddings.safetensors")).map(|_| ())
        }),
        ("swapped", &["adapter_config.json", "JSON"], |dir| {
            fs::rename(dir.join(CONFIG), dir.join("kept"))?;
            fs::rename(dir.join(TENSORS), dir.join(CONFIG))?;
            fs::rename(dir.join("kept"), dir.join(TENSORS))
        }),
    ];
    for (name, words, spoil) in cases {
        let base = table.base.clone();
        table.add(format!("files-{name}"), words, move |dir| {
            write_peft_dir(dir, &good().config(), &good().tensors(&base))?;
            spoil(dir)
        });
    }
}
