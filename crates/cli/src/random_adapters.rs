//! Adapters with random weights that are made when they are read: thousands of them to measure with,
//! and nothing on disk. In: a base's shapes and ranks. Out: a [`Storage`] for the registry.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use weft_adapters::{FileStamp, Storage, StoredFile};
use weft_bench::adapters::{AdapterRecipe, adapter_files};
use weft_types::{BaseModelSpec, Module};

/// Where they seem to lie.
const ROOT: &str = "/random-adapters";

/// Some linears of all layers; adapter `i` has the `i`-th rank, in turn.
#[derive(Debug)]
pub struct RandomAdapters {
    base: BaseModelSpec,
    num: usize,
    ranks: Vec<usize>,
    modules: Vec<Module>,
    /// Bytes of the tensors by rank.
    lengths: Mutex<HashMap<usize, u64>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Directory,
    Config,
    Tensors,
}

impl RandomAdapters {
    /// Neither `ranks` nor `modules` is empty.
    #[must_use]
    pub fn new(base: BaseModelSpec, num: usize, ranks: Vec<usize>, modules: Vec<Module>) -> Self {
        Self { base, num, ranks, modules, lengths: Mutex::default() }
    }

    /// Names and where they seem to lie.
    pub fn names(&self) -> impl Iterator<Item = (String, PathBuf)> {
        (0..self.num).map(|index| {
            let name = format!("r-{index}");
            let path = Path::new(ROOT).join(&name);
            (name, path)
        })
    }

    fn find(&self, path: &Path) -> io::Result<(usize, Part)> {
        let found = || {
            let mut parts = path.strip_prefix(ROOT).ok()?.iter();
            let index: usize = parts.next()?.to_str()?.strip_prefix("r-")?.parse().ok()?;
            let part = match parts.next().map(|part| part.to_str()) {
                None => Part::Directory,
                Some(Some("adapter_config.json")) => Part::Config,
                Some(Some("adapter_model.safetensors")) => Part::Tensors,
                Some(_) => return None,
            };
            (index < self.num && parts.next().is_none()).then_some((index, part))
        };
        found().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn recipe(&self, index: usize) -> AdapterRecipe {
        let rank = self.ranks[index % self.ranks.len()];
        AdapterRecipe { rank, modules: self.modules.clone(), seed: index as u64 }
    }

    fn tensors(&self, index: usize) -> io::Result<Vec<u8>> {
        Ok(adapter_files(&self.base, &self.recipe(index))?.tensors)
    }

    fn stamp(&self, index: usize, part: Part) -> io::Result<FileStamp> {
        let len = match part {
            Part::Directory => 0,
            Part::Config => self.config(index).len() as u64,
            Part::Tensors => self.num_tensor_bytes(index)?,
        };
        let is_dir = part == Part::Directory;
        let identity = [index as u64, part as u64, 0, 0];
        Ok(FileStamp { is_file: !is_dir, is_dir, len, modified: None, identity })
    }

    /// The configuration says nothing of shapes, so a base without layers gives the same.
    fn config(&self, index: usize) -> Vec<u8> {
        let base = BaseModelSpec { num_layers: 0, ..self.base.clone() };
        adapter_files(&base, &self.recipe(index)).map_or_else(|_| Vec::new(), |f| f.config.into())
    }

    fn num_tensor_bytes(&self, index: usize) -> io::Result<u64> {
        let rank = self.recipe(index).rank;
        let known = self.lengths.lock().expect("no panics under the lock").get(&rank).copied();
        if let Some(len) = known {
            return Ok(len);
        }
        let len = self.tensors(index)?.len() as u64;
        self.lengths.lock().expect("no panics under the lock").insert(rank, len);
        Ok(len)
    }
}

impl Storage for RandomAdapters {
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        let (index, part) = self.find(path)?;
        self.stamp(index, part)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let (index, part) = self.find(path)?;
        let stamp = self.stamp(index, part)?;
        let bytes = match part {
            Part::Directory => return Err(io::ErrorKind::IsADirectory.into()),
            Part::Config => self.config(index),
            Part::Tensors => self.tensors(index)?,
        };
        Ok(Box::new(MadeFile { stamp, bytes: Cursor::new(bytes) }))
    }
}

struct MadeFile {
    stamp: FileStamp,
    bytes: Cursor<Vec<u8>>,
}

impl Read for MadeFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl StoredFile for MadeFile {
    fn stat(&self) -> io::Result<FileStamp> {
        Ok(self.stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_adapters::{AdapterRegistry, RegistryConfig};

    #[tokio::test]
    async fn a_registry_reads_them_like_files() {
        let base = BaseModelSpec {
            num_layers: 2,
            hidden_size: 8,
            intermediate_size: 12,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 4,
            vocab_size: 32,
            max_context: 64,
            tied_embeddings: true,
        };
        let adapters = Arc::new(RandomAdapters::new(
            base.clone(),
            3,
            vec![2, 5],
            vec![Module::Q, Module::Down],
        ));
        let names: Vec<_> = adapters.names().collect();
        let storage: Arc<dyn Storage> = adapters;
        let registry =
            AdapterRegistry::new(RegistryConfig { storage, ..RegistryConfig::new(base) }).unwrap();
        let mut hashes = Vec::new();
        for ((name, path), rank) in names.iter().zip([2, 5, 2]) {
            registry.add_static(name, path).unwrap();
            let lease = registry.resolve(name).await.unwrap();
            assert_eq!(lease.weights().max_rank(), rank);
            hashes.push(lease.content_hash());
        }
        assert!(hashes[0] != hashes[2]);
    }
}
