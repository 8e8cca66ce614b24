//! Good files read back, damaged files refused, random files survived.

use crate::testing::{FileBuilder, good_file, string, string_array};
use crate::{GgmlType, GgufError, GgufFile, Header};
use proptest::prelude::*;
use std::io::Write;

fn refusal(file: &FileBuilder) -> String {
    Header::parse(&file.build()).expect_err("a damaged file was accepted").to_string()
}

#[track_caller]
fn check_refusal(file: &FileBuilder, part: &str) {
    let message = refusal(file);
    assert!(message.contains(part), "{message:?} does not contain {part:?}");
}

#[test]
fn values_of_every_type_are_read_back() {
    let header = Header::parse(&good_file().build()).unwrap();
    let metadata = header.metadata();
    assert_eq!(metadata.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.require_u64("some.u8").unwrap(), 200);
    assert_eq!(metadata.require_f64("some.i8").unwrap(), -2.0);
    assert_eq!(metadata.get_f64("some.f32").unwrap(), Some(1.5));
    assert_eq!(metadata.get_f64("some.f64").unwrap(), Some(2.5));
    assert_eq!(metadata.get_bool("some.bool").unwrap(), Some(true));
    assert_eq!(metadata.require_str_array("some.strings").unwrap(), ["a", "", "bcd"]);
    assert_eq!(metadata.get_u64_array("some.numbers").unwrap(), Some(vec![1, 2, 3]));
    assert_eq!(metadata.get_i64_array("some.negatives").unwrap(), Some(vec![-1, 2]));
    assert_eq!(metadata.get_f64_array("some.negatives").unwrap(), Some(vec![-1.0, 2.0]));
    assert_eq!(metadata.get_str("absent").unwrap(), None);
    assert_eq!(metadata.iter().count(), 11);
}

#[test]
fn a_value_of_another_type_is_named_in_the_error() {
    let header = Header::parse(&good_file().build()).unwrap();
    let metadata = header.metadata();
    let message = |error: GgufError| error.to_string();
    assert_eq!(
        message(metadata.get_u64("general.architecture").unwrap_err()),
        "metadata key \"general.architecture\" is the string \"llama\", but a non-negative \
         integer is needed"
    );
    assert_eq!(
        message(metadata.get_u64("some.i64").unwrap_err()),
        "metadata key \"some.i64\" is the number -5, but a non-negative integer is needed"
    );
    assert_eq!(
        message(metadata.get_u64_array("some.negatives").unwrap_err()),
        "metadata key \"some.negatives\" is an array of 2 numbers, but an array of non-negative \
         integers is needed"
    );
    assert_eq!(
        message(metadata.require_str("llama.block_count").unwrap_err()),
        "metadata key \"llama.block_count\" is missing"
    );
}

#[test]
fn tensors_of_an_opened_file_have_their_shape_type_and_bytes() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&good_file().build()).unwrap();
    let gguf = GgufFile::open(file.path()).unwrap();
    let (info, bytes) = gguf.require_tensor("first").unwrap();
    assert_eq!(
        (info.shape.as_slice(), info.dtype, info.num_elements()),
        (&[32, 2][..], GgmlType::Q4_1, 64)
    );
    assert_eq!(bytes, [7; 40]);
    let (info, bytes) = gguf.tensor("second").unwrap();
    assert_eq!((info.shape.as_slice(), info.dtype), (&[3][..], GgmlType::F32));
    assert_eq!(bytes, [9; 12]);
    assert!(gguf.tensor("third").is_none());
    let message = gguf.require_tensor("third").unwrap_err().to_string();
    assert_eq!(message, "tensor \"third\" is missing");
}

#[test]
fn a_file_without_tensors_may_end_before_the_padding() {
    let mut bytes = FileBuilder::new().key("a", 7, &[0]).build();
    bytes.truncate(24 + 8 + 1 + 4 + 1);
    let header = Header::parse(&bytes).unwrap();
    assert_eq!(header.metadata().get_bool("a").unwrap(), Some(false));
}

#[test]
fn what_is_not_little_endian_version_2_or_3_is_refused() {
    assert!(matches!(Header::parse(b"GGML....").unwrap_err(), GgufError::NotGguf));
    assert!(matches!(Header::parse(b"").unwrap_err(), GgufError::NotGguf));
    assert!(Header::parse(&FileBuilder { version: 2, ..good_file() }.build()).is_ok());
    check_refusal(&FileBuilder { version: 1, ..good_file() }, "GGUF version 1 cannot be read");
    check_refusal(&FileBuilder { version: 3 << 24, ..good_file() }, "big-endian");
}

#[test]
fn an_opened_file_that_is_refused_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"nonsense").unwrap();
    let message = GgufFile::open(file.path()).unwrap_err().to_string();
    assert!(message.starts_with(&file.path().display().to_string()), "{message}");
    let message = GgufFile::open(std::path::Path::new("no/such/file")).unwrap_err().to_string();
    assert!(message.starts_with("no/such/file: "), "{message}");
}

#[test]
fn lying_counts_and_lengths_are_refused_without_allocating_for_them() {
    let huge = u64::MAX.to_le_bytes();
    check_refusal(&FileBuilder { num_keys: u64::MAX, ..good_file() }, "takes");
    let lie = FileBuilder { num_tensors: u64::MAX, ..FileBuilder::new() };
    check_refusal(&lie, "a tensor at byte 24 has an empty name");
    check_refusal(&FileBuilder::new().key("a", 8, &huge), "a metadata value");
    for element_type in [0_u32, 8, 12] {
        let lie = [element_type.to_le_bytes().as_slice(), &huge].concat();
        check_refusal(&FileBuilder::new().key("a", 9, &lie), "a metadata array");
    }
}

#[test]
fn malformed_keys_are_refused_with_their_name() {
    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat();
    check_refusal(&FileBuilder::new().key("n", 9, &nested), "\"n\" is an array of arrays");
    check_refusal(&FileBuilder::new().key("t", 77, &[]), "\"t\" has value type 77");
    check_refusal(&FileBuilder::new().key("b", 7, &[2]), "\"b\" is a bool with the value 2");
    let twice = FileBuilder::new().key("d", 7, &[1]).key("d", 7, &[1]);
    check_refusal(&twice, "\"d\" occurs twice");
    for alignment in [0_u32, 3, 48] {
        let file = FileBuilder::new().key("general.alignment", 4, &alignment.to_le_bytes());
        check_refusal(&file, "power of two");
    }
}

#[test]
fn text_that_is_not_utf8_is_kept_until_it_is_asked_for() {
    let file = FileBuilder::new().key("bad", 8, &string(b"\xff\xfe"));
    let header = Header::parse(&file.build()).unwrap();
    let message = header.metadata().get_str("bad").unwrap_err().to_string();
    assert!(message.contains("\"bad\" holds text that is not valid UTF-8"), "{message}");
    check_refusal(&FileBuilder::new().tensor(b"\xff", &[1], 0, 0).data(&[0; 4]), "not valid UTF-8");
}

#[test]
fn malformed_tensors_are_refused_with_their_name() {
    let one = |dims: &[u64], dtype, offset| {
        FileBuilder::new().tensor(b"w", dims, dtype, offset).data(&[0; 64])
    };
    check_refusal(&one(&[], 0, 0), "\"w\" has 0 dimensions");
    check_refusal(&one(&[1; 5], 0, 0), "\"w\" has 5 dimensions");
    check_refusal(&one(&[4, 0], 0, 0), "\"w\" has the impossible shape [4, 0]");
    check_refusal(&one(&[u64::MAX, 2], 0, 0), "impossible shape");
    check_refusal(&one(&[u64::MAX / 2], 0, 0), "impossible shape");
    check_refusal(&one(&[33], 2, 0), "rows of 33 elements, but Q4_0 stores blocks of 32");
    check_refusal(&one(&[4], 0, 8), "offset 8, which is no multiple of 32");
    check_refusal(&one(&[17], 0, 0), "takes 68 bytes from offset 0");
    check_refusal(&one(&[1], 0, u64::MAX - 31), "takes 4 bytes from offset");
    check_refusal(&FileBuilder::new().tensor(b"", &[1], 0, 0).data(&[0; 4]), "empty name");
    check_refusal(&one(&[1], 0, 0).tensor(b"w", &[1], 0, 32), "\"w\" occurs twice");
    let overlapping = one(&[9], 0, 0).tensor(b"v", &[1], 0, 32);
    check_refusal(&overlapping, "tensors \"w\" and \"v\" overlap");
}

#[test]
fn tensors_of_unsupported_types_are_listed_but_not_readable() {
    let file = FileBuilder::new().tensor(b"x", &[256], 23, 0).data(&[0; 136]);
    let header = Header::parse(&file.build()).unwrap();
    let message = header.tensor("x").unwrap().require_supported().unwrap_err().to_string();
    assert_eq!(
        message,
        "tensor \"x\" has type IQ4_XS, which Weft cannot read; supported: F32, F16, BF16, Q4_0, \
         Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"
    );
}

#[test]
fn every_prefix_of_a_file_is_refused_or_read_without_panic() {
    let bytes = good_file().build();
    for len in 0..bytes.len() {
        assert!(Header::parse(&bytes[..len]).is_err(), "a prefix of {len} bytes was accepted");
    }
    assert!(Header::parse(&bytes).is_ok());
}

#[test]
fn a_vocabulary_of_many_strings_is_read_whole() {
    let tokens: Vec<String> = (0..100_000).map(|index| format!("token{index}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let bytes = FileBuilder::new().key("tokens", 9, &string_array(&tokens)).build();
    let header = Header::parse(&bytes).unwrap();
    assert_eq!(header.metadata().require_str_array("tokens").unwrap(), tokens);
}

/// Reads everything that a header offers: what was accepted must hold its promises.
fn exercise(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else { return };
    for tensor in header.tensors() {
        assert!(bytes.get(header.byte_range(tensor)).is_some(), "{tensor:?} is outside the file");
        assert!(header.tensor(&tensor.name).is_some());
        tensor.require_supported().map_err(|error| error.to_string()).ok();
    }
    let metadata = header.metadata();
    for (key, _) in metadata.iter() {
        let errors = [
            metadata.get_str(key).err(),
            metadata.get_u64(key).err(),
            metadata.get_f64(key).err(),
            metadata.get_bool(key).err(),
            metadata.get_str_array(key).err(),
            metadata.get_u64_array(key).err(),
            metadata.get_i64_array(key).err(),
            metadata.get_f64_array(key).err(),
        ];
        assert!(errors.iter().flatten().all(|error| !error.to_string().is_empty()));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(&tail);
        exercise(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }

    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = good_file().build();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes);
    }
}
