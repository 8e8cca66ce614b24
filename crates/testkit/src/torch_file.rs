//! Writes what `torch.save` writes for a dictionary of tensors: a zip archive with a pickle and the
//! storages. In: tensors. Out: bytes, with the same instructions in the same order.

use crate::safetensors_file::RawTensor;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The archive of a dictionary with these tensors, each in a storage of its own.
///
/// # Panics
/// For a dtype that is none of F32, F16 and BF16.
#[must_use]
pub fn torch_bytes(tensors: &[RawTensor]) -> Vec<u8> {
    let storages: Vec<&[u8]> = tensors.iter().map(|tensor| tensor.data.as_slice()).collect();
    archive(&state_dict_pickle(tensors), &storages)
}

/// An archive with this pickle, and these storages under their numbers.
///
/// # Panics
/// Never: nothing but memory is written.
#[must_use]
pub fn archive(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("adapter_model/{name}"), options).expect("memory");
        zip.write_all(bytes).expect("memory");
    };
    add("data.pkl", pickle);
    add("byteorder", b"little");
    for (index, bytes) in storages.iter().enumerate() {
        add(&format!("data/{index}"), bytes);
    }
    add("version", b"3\n");
    zip.finish().expect("memory").into_inner()
}

/// The pickle, protocol 2, of a dictionary of contiguous tensors.
///
/// # Panics
/// For a dtype that is none of F32, F16 and BF16.
#[must_use]
pub fn state_dict_pickle(tensors: &[RawTensor]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00(".to_vec();
    for (index, tensor) in tensors.iter().enumerate() {
        put_text(&mut out, &tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(&mut out, "storage");
        let (class, size) = match tensor.dtype.as_str() {
            "F32" => ("FloatStorage", 4),
            "F16" => ("HalfStorage", 2),
            "BF16" => ("BFloat16Storage", 2),
            other => panic!("{other} is no float type of adapters"),
        };
        out.extend(format!("ctorch\n{class}\n").bytes());
        put_text(&mut out, &index.to_string());
        put_text(&mut out, "cpu");
        put_int(&mut out, tensor.data.len() / size);
        out.extend(b"tQK\x00(");
        tensor.shape.iter().for_each(|&dim| put_int(&mut out, dim));
        out.extend(b"t(");
        for dim in 0..tensor.shape.len() {
            put_int(&mut out, tensor.shape[dim + 1..].iter().product());
        }
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn put_int(out: &mut Vec<u8>, value: usize) {
    out.push(b'J');
    out.extend((value as u32).to_le_bytes());
}
