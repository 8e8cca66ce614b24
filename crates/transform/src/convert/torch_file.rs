//! What `torch.save` wrote: a zip archive with a pickle and the storages' bytes. In: a path. Out: tensors
//! by name, contiguous. The pickle is read by [`super::pickle`]; here it is checked against the bytes.

use super::pickle::{PickledTensor, Storage, read as read_pickle};
use crate::error::{Result, TransformError, at, refuse};
use crate::peft_dir::FileTensor;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// A pickle has some hundred bytes per tensor.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Tensors may share storages; more than this many times the file's bytes is no adapter.
const MAX_EXPANSION: u64 = 4;

/// All tensors of the file.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, FileTensor>> {
    let file = File::open(path).map_err(at(path))?;
    let num_bytes = file.metadata().map_err(at(path))?.len();
    read_from(file, num_bytes)
        .map_err(|reason| TransformError::Refused(format!("{} {reason}", path.display())))
}

/// The same, of a file of `num_bytes`; the error is a predicate.
pub(super) fn read_from(
    file: impl Read + Seek,
    num_bytes: u64,
) -> std::result::Result<BTreeMap<String, FileTensor>, String> {
    let archive = ZipArchive::new(file).map_err(|cause| {
        format!(
            "is no archive of torch.save ({cause}); files of PyTorch before 1.6 must be saved again \
             with a later one"
        )
    })?;
    let mut archive =
        Archive { archive, prefix: String::new(), bytes_left: num_bytes * MAX_EXPANSION };
    archive.find_prefix()?;
    if let Some(order) = archive.read_if_there("byteorder", 16)?
        && order != b"little"
    {
        return Err("was saved on a big-endian machine".to_owned());
    }
    let pickle = archive.read("data.pkl", MAX_PICKLE_BYTES)?;
    let pickled = read_pickle(&pickle)?;
    let mut bytes_left = num_bytes * MAX_EXPANSION;
    let mut storages: HashMap<String, Vec<u8>> = HashMap::new();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in pickled {
        let Storage { key, dtype, num_elements } = &tensor.storage;
        let size = dtype.size();
        let Some(length) = num_elements.checked_mul(size) else { return Err(too_large()) };
        if !storages.contains_key(key) {
            let bytes = archive.read(&format!("data/{key}"), u64::MAX)?;
            storages.insert(key.clone(), bytes);
        }
        let storage = &storages[key];
        if storage.len() != length {
            return Err(format!(
                "has a storage {key:.40?} of {} bytes, but its pickle says {length}",
                storage.len()
            ));
        }
        let data = gather(&tensor, storage, &mut bytes_left)
            .ok_or_else(|| format!("has a tensor {name:.120?} that does not lie in its storage"))?;
        tensors.insert(name, FileTensor { dtype: *dtype, shape: tensor.shape, data });
    }
    Ok(tensors)
}

struct Archive<R> {
    archive: ZipArchive<R>,
    /// The directory that all files lie in.
    prefix: String,
    /// What may still be read: entries may claim the same bytes.
    bytes_left: u64,
}

impl<R: Read + Seek> Archive<R> {
    fn find_prefix(&mut self) -> std::result::Result<(), String> {
        let names = self.archive.file_names().filter_map(std::result::Result::ok);
        let prefix = names
            .filter_map(|name| Some(name.strip_suffix("data.pkl")?.to_owned()))
            .find(|prefix| prefix.matches('/').count() <= 1);
        self.prefix = prefix.ok_or("is an archive without a data.pkl, so not one of torch.save")?;
        Ok(())
    }

    fn read_if_there(
        &mut self,
        name: &str,
        max_bytes: u64,
    ) -> std::result::Result<Option<Vec<u8>>, String> {
        let full = format!("{}{name}", self.prefix);
        let is_there =
            self.archive.file_names().any(|name| name.is_ok_and(|name| name == full.as_str()));
        if is_there { self.read(name, max_bytes).map(Some) } else { Ok(None) }
    }

    /// Stored files only: torch compresses nothing, and what is not compressed does not explode.
    fn read(&mut self, name: &str, max_bytes: u64) -> std::result::Result<Vec<u8>, String> {
        let full = format!("{}{name}", self.prefix);
        let of = |cause: &dyn std::fmt::Display| format!("has no readable {name:.60?}: {cause}");
        let file = self.archive.by_name(&full).map_err(|cause| of(&cause))?;
        if file.compression() != CompressionMethod::Stored {
            return Err(of(&"it is compressed, which torch.save does not do"));
        }
        let size = file.size();
        if size > max_bytes.min(self.bytes_left) {
            return Err(of(&format!("it has {size} bytes, more than it can need")));
        }
        self.bytes_left -= size;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(|cause| of(&cause))?;
        if bytes.len() as u64 != size {
            return Err(of(&"it is truncated"));
        }
        Ok(bytes)
    }
}

/// The elements in row-major order; `None` if they do not lie in the storage, or there are more than it
/// has, or more bytes than are left.
fn gather(tensor: &PickledTensor, storage: &[u8], bytes_left: &mut u64) -> Option<Vec<u8>> {
    let PickledTensor { shape, strides, offset, storage: Storage { dtype, num_elements, .. } } =
        tensor;
    let size = dtype.size();
    if shape.len() != strides.len() {
        return None;
    }
    let count = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))?;
    if count == 0 {
        return Some(Vec::new());
    }
    let mut last = *offset;
    for (&dim, &stride) in shape.iter().zip(strides) {
        last = last.checked_add((dim - 1).checked_mul(stride)?)?;
    }
    if last >= *num_elements || count > *num_elements {
        return None;
    }
    *bytes_left = bytes_left.checked_sub((count * size) as u64)?;
    let mut expected = 1;
    let is_contiguous = shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let is_right = dim == 1 || stride == expected;
        expected *= dim;
        is_right
    });
    if is_contiguous {
        return Some(storage[offset * size..(offset + count) * size].to_vec());
    }
    let mut data = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize =
            offset + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>();
        data.extend_from_slice(&storage[at * size..][..size]);
        for (i, &dim) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < dim {
                break;
            }
            *i = 0;
        }
    }
    Some(data)
}

fn too_large() -> String {
    "has a storage that is larger than any memory".to_owned()
}

/// For what is read from an archive of its own.
pub(super) fn read_bytes(bytes: &[u8], name: &str) -> Result<BTreeMap<String, FileTensor>> {
    match read_from(std::io::Cursor::new(bytes), bytes.len() as u64) {
        Ok(tensors) => Ok(tensors),
        Err(reason) => refuse(format!("{name} {reason}")),
    }
}
