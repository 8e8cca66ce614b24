//! What a checkpoint's weights were made from, as a name. In: a path and how it is loaded. Out: a hash that
//! differs whenever packed weights may. Knows no format.
//!
//! Reading all of a checkpoint to recognise it would take as long as loading it. So of each file it is:
//!
//! * its length, and when it was last written *and* when anything of it was last changed: the latter
//!   cannot be set by programs, so it tells even of a file that was edited or replaced by one with an
//!   equal length and an equal, restored or constant date (archives and images have such);
//! * its first megabytes, in which headers are: names, types, shapes and places of all tensors;
//! * pieces from all over it. Two fine-tunes of one base have the same header and length; their weights
//!   differ nearly everywhere.
//!
//! Not its path: a model that is reached by another name is the same model, and another one that takes
//! its place is not. A moved or copied file may be packed anew, which costs time only.

use crate::error::ModelError;
use crate::load::Quantize;
use crate::packed_file::FILE_VERSION;
use crate::tensor_files::weight_files;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use weft_kernels::weight::LAYOUT_VERSION;

/// Of what loading makes of a checkpoint: which rows go where, how floats are quantized. Raise it when
/// the same files are packed into other bytes than before; a test over all kinds of checkpoints knows.
pub const PACKING_VERSION: u32 = 1;

/// Bytes from a file's beginning that are compared.
const HEAD: u64 = 8 << 20;
/// Pieces behind it.
const NUM_PIECES: u64 = 64;
/// Bytes of each.
const PIECE: u64 = 4096;

/// Thirty-two hexadecimal digits.
pub(crate) fn identity(path: &Path, quantize: Quantize) -> Result<String, ModelError> {
    let mut hash = blake3::Hasher::new();
    hash.update(
        format!("{FILE_VERSION} {LAYOUT_VERSION} {PACKING_VERSION} {quantize}\n").as_bytes(),
    );
    for file in sources(path)? {
        add(&mut hash, &file).map_err(|source| ModelError::Io { path: file.clone(), source })?;
    }
    Ok(hash.finalize().to_hex()[..32].to_owned())
}

/// All files that weights depend on.
fn sources(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let described = ["config.json", "model.safetensors.index.json"].map(|name| path.join(name));
    let mut files: Vec<_> = described.into_iter().filter(|file| file.is_file()).collect();
    files.extend(weight_files(path)?);
    Ok(files)
}

fn add(hash: &mut blake3::Hasher, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let len = metadata.len();
    let written = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let line = format!("{name} {len} {} {}\n", written.as_nanos(), changed(&metadata));
    hash.update(line.as_bytes());
    hash.update_reader(Read::by_ref(&mut file).take(HEAD))?;
    let rest = len.saturating_sub(HEAD);
    for index in 0..NUM_PIECES.min(rest.div_ceil(PIECE)) {
        // The last one is the file's end.
        let last = rest.saturating_sub(PIECE);
        let offset = (u128::from(last) * u128::from(index) / u128::from(NUM_PIECES - 1)) as u64;
        file.seek(SeekFrom::Start(HEAD + offset))?;
        hash.update_reader(Read::by_ref(&mut file).take(PIECE))?;
    }
    Ok(())
}

#[cfg(unix)]
fn changed(metadata: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{}", metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(_: &std::fs::Metadata) -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &Path) -> String {
        identity(path, Quantize::None).unwrap()
    }

    #[test]
    fn a_file_is_recognised_until_anything_of_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        std::fs::write(&path, vec![7; 3 * HEAD as usize]).unwrap();
        let first = of(&path);
        assert_eq!(first, of(&path));
        assert_eq!(first.len(), 32);
        assert_ne!(first, identity(&path, Quantize::Int8).unwrap());

        // The same length and date; one byte of one piece is another.
        let file = File::options().write(true).open(&path).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        let mut changed = vec![7; 3 * HEAD as usize];
        *changed.last_mut().unwrap() = 8;
        std::fs::write(&path, &changed).unwrap();
        file.set_modified(written).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), written);
        assert_ne!(first, of(&path));
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_no_piece_covers_are_noticed_by_the_files_own_clock() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        std::fs::write(&path, vec![7; 3 * HEAD as usize]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        let first = of(&path);
        // Some file systems count in ticks of a clock.
        let is_noticed = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            file.write_all_at(&[8], HEAD + PIECE + 1).unwrap();
            file.set_modified(written).unwrap();
            of(&path) != first
        });
        assert!(is_noticed);
    }

    #[test]
    fn a_directory_is_all_that_its_weights_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("config.json", "{}"), ("model.safetensors", "w"), ("notes.md", "n")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let first = of(dir.path());
        std::fs::write(dir.path().join("notes.md"), "other").unwrap();
        assert_eq!(first, of(dir.path()));
        std::fs::write(dir.path().join("config.json"), "{ }").unwrap();
        assert_ne!(first, of(dir.path()));
    }
}
