//! One process at a time fetches a file. In: the path of a lock. Out: a lock that ends when it is
//! dropped. The same kind of lock that `huggingface_hub` takes on the same paths.

use crate::error::SourceError;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would do it, too, but not before a child that inherited the file ends.
        let _ = self.0.unlock();
    }
}

/// Waits for the lock, for as long as another one fetches. Whoever stops waiting holds nothing.
pub(crate) async fn lock(path: &Path) -> Result<Lock, SourceError> {
    let error = |cause: std::io::Error| SourceError::io(path, &cause);
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(error)?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(error)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL).await,
            Err(TryLockError::Error(cause)) => return Err(error(cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.lock");
        let first = lock(&path).await.unwrap();
        let second = tokio::time::timeout(POLL * 3, lock(&path)).await;
        assert!(second.is_err());
        drop(first);
        lock(&path).await.unwrap();
    }
}
