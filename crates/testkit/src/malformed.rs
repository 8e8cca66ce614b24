//! Adapter directories that a server must refuse, as data: a name, the words that the refusal must
//! contain, and how to write the directory. The same table drives the loader's tests and those that
//! post every one of them over HTTP.

mod config;
mod files;
mod header;
mod tensors;

use crate::peft::{RandomAdapter, write_peft_dir};
use crate::safetensors_file::RawTensor;
use serde_json::{Map, Value};
use std::io;
use std::path::Path;
use weft_types::{BaseModelSpec, Module};

type Write = Box<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// One directory that must be refused.
pub struct MalformedAdapter {
    /// What is wrong, as a name: letters, digits, `.`, `_` and `-`. Unique in the table.
    pub name: String,
    /// What the refusal must contain: the key or tensor, and the reason.
    pub words: Vec<String>,
    write: Write,
}

impl MalformedAdapter {
    /// Writes the directory, which must exist.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        (self.write)(dir)
    }
}

/// More than 200 directories, all for `base` and a server with `max_lora_rank`, which must be at
/// least 8.
#[must_use]
pub fn malformed_adapters(base: &BaseModelSpec, max_lora_rank: usize) -> Vec<MalformedAdapter> {
    let mut table = Table { base: base.clone(), cases: Vec::new() };
    config::add(&mut table, max_lora_rank);
    tensors::add(&mut table);
    header::add(&mut table);
    files::add(&mut table);
    table.cases
}

/// The table while it is made.
struct Table {
    base: BaseModelSpec,
    cases: Vec<MalformedAdapter>,
}

/// A good adapter, to be spoilt: rank 4, in the first layer only so that it is small.
fn good() -> RandomAdapter {
    let modules = vec![Module::Q, Module::V];
    RandomAdapter { modules, layers: Some(vec![0]), seed: 7, ..RandomAdapter::of_rank(4, 7) }
}

impl Table {
    fn add(
        &mut self,
        name: impl Into<String>,
        words: &[&str],
        write: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static,
    ) {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        self.cases.push(MalformedAdapter { name: name.into(), words, write: Box::new(write) });
    }

    /// `adapter` with its configuration changed by `edit`.
    fn add_config(
        &mut self,
        name: impl Into<String>,
        words: &[&str],
        adapter: RandomAdapter,
        edit: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static,
    ) {
        let base = self.base.clone();
        self.add(name, words, move |dir| {
            let mut config = adapter.config();
            edit(&mut config);
            write_peft_dir(dir, &config, &adapter.tensors(&base))
        });
    }

    /// `adapter` with its tensors changed by `edit`.
    fn add_tensors(
        &mut self,
        name: impl Into<String>,
        words: &[&str],
        adapter: RandomAdapter,
        edit: impl Fn(&mut Vec<RawTensor>) + Send + Sync + 'static,
    ) {
        let base = self.base.clone();
        self.add(name, words, move |dir| {
            let mut tensors = adapter.tensors(&base);
            edit(&mut tensors);
            write_peft_dir(dir, &adapter.config(), &tensors)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::malformed_adapters;
    use std::collections::HashSet;

    #[test]
    fn the_table_is_long_and_its_names_are_unique_and_printable() {
        let table = malformed_adapters(&crate::tiny_llama_spec(), 64);
        assert!(table.len() >= 300, "{}", table.len());
        let names: HashSet<_> = table.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), table.len());
        for case in &table {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(case.name.chars().all(plain), "{}", case.name);
            assert!(!case.words.is_empty(), "{}", case.name);
        }
    }

    #[test]
    fn every_directory_can_be_written() {
        for case in malformed_adapters(&crate::tiny_llama_spec(), 64) {
            let dir = tempfile::tempdir().unwrap();
            case.write(dir.path()).unwrap_or_else(|cause| panic!("{}: {cause}", case.name));
        }
    }
}
