//! Storages that misbehave: the local files behind a hook, and files in memory.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use weft_adapters::{FileStamp, LocalFiles, Storage, StoredFile};

/// What is about to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Stat,
    Open,
    /// The first read of an opened file.
    Read,
}

type Hook = dyn Fn(Op, &Path) -> io::Result<()> + Send + Sync;

/// The local files; a hook is called before everything that is done.
#[derive(Clone)]
pub(crate) struct Hooked(Arc<Hook>);

impl Hooked {
    pub(crate) fn storage(
        hook: impl Fn(Op, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<dyn Storage> {
        Arc::new(Self(Arc::new(hook)))
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl Storage for Hooked {
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        (self.0)(Op::Stat, path)?;
        LocalFiles.stat(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        (self.0)(Op::Open, path)?;
        let file = LocalFiles.open(path)?;
        Ok(Box::new(HookedFile { file, path: path.to_owned(), hook: Some(Arc::clone(&self.0)) }))
    }
}

struct HookedFile {
    file: Box<dyn StoredFile>,
    path: PathBuf,
    /// Until the first read.
    hook: Option<Arc<Hook>>,
}

impl Read for HookedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(hook) = self.hook.take() {
            hook(Op::Read, &self.path)?;
        }
        self.file.read(buffer)
    }
}

impl StoredFile for HookedFile {
    fn stat(&self) -> io::Result<FileStamp> {
        self.file.stat()
    }
}

/// A door that threads wait at.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    is_open: bool,
    num_arrived: usize,
}

impl Gate {
    pub(crate) fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.num_arrived += 1;
        while !state.is_open {
            state = self.0.1.wait(state).unwrap();
        }
    }

    pub(crate) fn open(&self) {
        self.0.0.lock().unwrap().is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until somebody stands at the door.
    pub(crate) async fn arrived(&self) {
        while self.0.0.lock().unwrap().num_arrived == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Whether a path is that of the tensors of the adapter in the directory `name`.
pub(crate) fn is_tensors_of(path: &Path, name: &str) -> bool {
    path.ends_with(Path::new(name).join("adapter_model.safetensors"))
}

/// Files in memory, with faults on request.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryStorage(Arc<Mutex<MemoryFiles>>);

#[derive(Debug, Default)]
struct MemoryFiles {
    files: HashMap<PathBuf, (Arc<[u8]>, u64)>,
    num_writes: u64,
    /// So many operations fail with an error that passes.
    num_faults: usize,
    /// At the next read, this is written first.
    at_read: Option<(PathBuf, [Arc<[u8]>; 2])>,
}

const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

impl MemoryFiles {
    fn put(&mut self, dir: &Path, files: [Arc<[u8]>; 2]) {
        for (name, bytes) in FILES.into_iter().zip(files) {
            self.num_writes += 1;
            self.files.insert(dir.join(name), (bytes, self.num_writes));
        }
    }

    fn fault(&mut self) -> io::Result<()> {
        if self.num_faults == 0 {
            return Ok(());
        }
        self.num_faults -= 1;
        Err(io::ErrorKind::StaleNetworkFileHandle.into())
    }
}

impl MemoryStorage {
    pub(crate) fn put(&self, dir: &Path, files: [Arc<[u8]>; 2]) {
        self.0.lock().unwrap().put(dir, files);
    }

    pub(crate) fn remove(&self, dir: &Path) {
        self.0.lock().unwrap().files.retain(|path, _| !path.starts_with(dir));
    }

    pub(crate) fn set_faults(&self, num_faults: usize) {
        self.0.lock().unwrap().num_faults = num_faults;
    }

    pub(crate) fn put_at_next_read(&self, dir: &Path, files: [Arc<[u8]>; 2]) {
        self.0.lock().unwrap().at_read = Some((dir.to_owned(), files));
    }
}

impl Storage for MemoryStorage {
    fn stat(&self, path: &Path) -> io::Result<FileStamp> {
        let mut state = self.0.lock().unwrap();
        state.fault()?;
        if let Some((bytes, version)) = state.files.get(path) {
            let identity = [*version, 0, 0, 0];
            let len = bytes.len() as u64;
            return Ok(FileStamp { is_file: true, len, identity, ..FileStamp::default() });
        }
        match state.files.keys().any(|file| file.starts_with(path)) {
            true => Ok(FileStamp { is_dir: true, ..FileStamp::default() }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let mut state = self.0.lock().unwrap();
        state.fault()?;
        let file = state.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        let bytes = Cursor::new(Arc::clone(&file.0));
        Ok(Box::new(MemoryFile { bytes, version: file.1, storage: self.clone() }))
    }
}

struct MemoryFile {
    bytes: Cursor<Arc<[u8]>>,
    version: u64,
    storage: MemoryStorage,
}

impl Read for MemoryFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.storage.0.lock().unwrap();
        if let Some((dir, files)) = state.at_read.take() {
            state.put(&dir, files);
        }
        drop(state);
        self.bytes.read(buffer)
    }
}

impl StoredFile for MemoryFile {
    fn stat(&self) -> io::Result<FileStamp> {
        let (len, identity) = (self.bytes.get_ref().len() as u64, [self.version, 0, 0, 0]);
        Ok(FileStamp { is_file: true, len, identity, ..FileStamp::default() })
    }
}
