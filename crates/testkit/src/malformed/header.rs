//! Safetensors files whose header lies, and files that are cut or not of that format at all.

use super::{Table, good};
use crate::peft::write_peft_dir;
use crate::safetensors_file::{safetensors_bytes, with_header};
use std::fs;

pub(super) fn add(table: &mut Table) {
    let whole = safetensors_bytes(&good().tensors(&table.base));
    let header_bytes = whole.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();

    let header_end = 8 + header_bytes as usize;
    let cuts = (0..header_end).step_by(header_end / 24 + 1);
    let data_cuts = (header_end..whole.len()).step_by((whole.len() - header_end) / 12 + 1);
    for cut in (0..8).chain(cuts).chain(data_cuts).chain([whole.len() - 1]) {
        files.push((format!("cut-at-{cut}"), whole[..cut].to_vec()));
    }
    files.sort();
    files.dedup_by(|a, b| a.0 == b.0);

    let lengths = [
        0,
        1,
        header_bytes - 1,
        header_bytes + 8,
        whole.len() as u64 - 8,
        whole.len() as u64,
        100_000_000,
        u64::from(u32::MAX),
        1 << 63,
        u64::MAX,
        u64::MAX - 7,
    ];
    for length in lengths {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        files.push((format!("length-{length}"), bytes));
    }
    for (name, header, num_data_bytes) in HEADERS {
        let mut bytes = with_header(header);
        bytes.resize(bytes.len() + num_data_bytes, 0);
        files.push(((*name).to_owned(), bytes));
    }
    let mut trailing = whole.clone();
    trailing.push(0);
    files.push(("trailing-byte".to_owned(), trailing));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    files.push(("deep".to_owned(), with_header(&deep)));
    files.push(("zeros".to_owned(), vec![0; 4096]));
    files.push(("pickle".to_owned(), b"\x80\x02}q\x00(X\x04\x00\x00\x00weig".repeat(20)));
    files.push(("zip".to_owned(), b"PK\x03\x04\x14\x00\x00\x00".repeat(50)));
    files.push(("html".to_owned(), b"<!DOCTYPE html><html><body>404".to_vec()));
    files.push((
        "pointer".to_owned(),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n".to_vec(),
    ));

    for (name, bytes) in files {
        let base = table.base.clone();
        table.add(format!("header-{name}"), &["damaged", "adapter_model"], move |dir| {
            write_peft_dir(dir, &good().config(), &good().tensors(&base))?;
            fs::write(dir.join("adapter_model.safetensors"), &bytes)
        });
    }
}

/// Name, header, bytes of data that follow it.
const HEADERS: &[(&str, &str, usize)] = &[
    ("empty-list", "[]", 0),
    ("null", "null", 0),
    ("number", "8", 0),
    ("not-json", "{tensors}", 0),
    ("tensor-is-number", r#"{"a": 3}"#, 0),
    ("tensor-is-empty", r#"{"a": {}}"#, 0),
    ("no-dtype", r#"{"a": {"shape": [1], "data_offsets": [0, 4]}}"#, 4),
    ("no-shape", r#"{"a": {"dtype": "F32", "data_offsets": [0, 4]}}"#, 4),
    ("no-offsets", r#"{"a": {"dtype": "F32", "shape": [1]}}"#, 4),
    ("one-offset", r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}"#, 4),
    ("negative-offset", r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}"#, 4),
    ("negative-shape", r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#, 4),
    ("fractional-shape", r#"{"a": {"dtype": "F32", "shape": [0.5], "data_offsets": [0, 4]}}"#, 4),
    ("turned-offsets", r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#, 4),
    ("offsets-beyond", r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#, 4),
    ("short-offsets", r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#, 4),
    ("hole", r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#, 8),
    (
        "overlap",
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#,
        12,
    ),
    (
        "a-tensor-twice",
        r#"{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
        4,
    ),
    (
        "huge-shape",
        r#"{"a": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets": [0, 4]}}"#,
        4,
    ),
    (
        "wrapping-shape",
        r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
        0,
    ),
    (
        "huge-offsets",
        r#"{"a": {"dtype": "F32", "shape": [1],
                  "data_offsets": [18446744073709551612, 18446744073709551615]}}"#,
        4,
    ),
    ("metadata-is-number", r#"{"__metadata__": 3}"#, 0),
    ("metadata-of-numbers", r#"{"__metadata__": {"format": 3}}"#, 0),
];
