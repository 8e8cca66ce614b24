//! Writes the metadata of a GGUF file, for tests of what is read from it.

use weft_gguf::{GgufFile, Metadata};

/// A value of the metadata.
pub(crate) enum Entry<'a> {
    Text(&'a str),
    Flag(bool),
    Id(u32),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Floats(Vec<f32>),
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(out: &mut Vec<u8>, element_type: u32, len: usize) {
    out.extend(9_u32.to_le_bytes());
    out.extend(element_type.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

pub(crate) fn metadata(entries: &[(&str, Entry<'_>)]) -> Metadata {
    GgufFile::parse(&file(entries)).unwrap().metadata().clone()
}

/// A whole file without tensors.
pub(crate) fn file(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        text(&mut out, key);
        match value {
            Entry::Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(&mut out, value);
            }
            Entry::Flag(value) => {
                out.extend(7_u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Entry::Id(value) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Entry::Texts(values) => {
                array(&mut out, 8, values.len());
                values.iter().for_each(|value| text(&mut out, value));
            }
            Entry::Integers(values) => {
                array(&mut out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Entry::Floats(values) => {
                array(&mut out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
    out
}
