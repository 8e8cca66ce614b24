//! What is written is read, to the bit; what is anything else is refused without a panic.

use super::*;
use crate::weights::{LayerWeights, LinearWeights, ModelWeights};
use proptest::prelude::*;
use std::io::Cursor;
use std::sync::OnceLock;
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::pack::Packer;

const IDENTITY: &str = "0123456789abcdef";
const OUTPUTS: usize = 5;
const INPUTS: usize = 64;
const SHAPE: LinearShape = LinearShape { num_inputs: INPUTS, num_outputs: OUTPUTS };
const LINEARS: [&str; 8] = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.0.mlp.down_proj",
];
const VECTORS: [&str; 5] = [
    "model.norm.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.self_attn.k_norm.weight",
    "model.layers.0.self_attn.q_proj.bias",
];

/// A matrix in codes, with an order of inputs if its format may have one.
fn coded(format: Format, zeros: &[u8]) -> PackedLinear {
    let order = (0..INPUTS as u32).rev().collect();
    let mut packer = Packer::with_order(format, OUTPUTS, INPUTS, order);
    for row in 0..OUTPUTS {
        let codes: Vec<u8> = (0..INPUTS).map(|k| ((k + row) % 16) as u8).collect();
        let scales: Vec<f32> = (0..INPUTS / format.group()).map(|g| g as f32 + 0.5).collect();
        packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros });
    }
    packer.finish()
}

fn weights() -> ModelWeights<PackedLinear> {
    let floats = |format| {
        let mut packer = Packer::new(format, OUTPUTS, INPUTS);
        let row: Vec<f32> = (0..INPUTS).map(|k| k as f32 / 8.0).collect();
        (0..OUTPUTS).for_each(|output| packer.set_float(output, &row));
        LinearWeights { weight: packer.finish(), bias: None }
    };
    let plain = |weight| LinearWeights { weight, bias: None };
    let zeroed = |format| plain(Packer::new(format, OUTPUTS, INPUTS).finish());
    let layer = LayerWeights {
        attention_norm: vec![1.0, 2.0],
        q: LinearWeights { bias: Some(vec![-0.0, f32::MIN_POSITIVE / 2.0]), ..floats(Format::F32) },
        k: floats(Format::Bf16),
        v: floats(Format::F16),
        q_norm: None,
        k_norm: Some(vec![3.0]),
        o: plain(coded(Format::ZeroPoint { bits: 4, group: 32 }, &[3, 4])),
        mlp_norm: vec![4.0],
        gate: plain(coded(Format::Codebook { book: Codebook::Fp4, group: 64 }, &[])),
        up: zeroed(Format::W4),
        down: zeroed(Format::W8 { group: 16, offset: 32, has_min: false }),
    };
    let embedding = floats(Format::F16).weight;
    ModelWeights { embedding, layers: vec![layer], final_norm: vec![5.0; 3], lm_head: None }
}

/// A written file.
fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut out = Cursor::new(Vec::new());
        let num_bytes = write(&weights(), IDENTITY, &mut out).unwrap();
        assert_eq!(num_bytes, out.get_ref().len() as u64);
        out.into_inner()
    })
}

/// The same bytes at a multiple of 64.
fn placed(bytes: &[u8]) -> Bytes {
    struct Placed(Vec<u8>, usize);
    impl AsRef<[u8]> for Placed {
        fn as_ref(&self) -> &[u8] {
            &self.0[self.1..]
        }
    }
    let mut room = vec![0; bytes.len() + 64];
    let start = room.as_ptr().addr().wrapping_neg() % 64;
    room.truncate(start + bytes.len());
    room[start..].copy_from_slice(bytes);
    Bytes::from_owner(Placed(room, start))
}

fn parse(bytes: &[u8]) -> Result<PackedFile, PackedFileError> {
    PackedFile::parse(placed(bytes), IDENTITY)
}

/// Bytes and order of a linear, or nothing and bits of a vector.
type Part = (Vec<u8>, Vec<u32>);

/// Everything in a file.
fn read(bytes: &[u8]) -> Result<Vec<Part>, PackedFileError> {
    let file = parse(bytes)?;
    let mut all = Vec::new();
    for name in LINEARS {
        let linear = file.linear(name, SHAPE)?;
        all.push((linear.as_bytes().to_vec(), linear.order().unwrap_or_default().to_vec()));
    }
    for (name, len) in VECTORS.into_iter().zip([3, 2, 1, 1, 2]) {
        let vector = file.vector(name, len)?.unwrap_or_default();
        all.push((Vec::new(), vector.into_iter().map(f32::to_bits).collect()));
    }
    Ok(all)
}

/// The file with other contents under a right hash.
fn resealed(contents: &[u8]) -> Vec<u8> {
    let header = PackedFile::header(file()).unwrap();
    let mut bytes = file()[..header.contents_offset as usize].to_vec();
    let header = Header {
        contents_bytes: contents.len() as u64,
        contents_hash: *blake3::hash(contents).as_bytes(),
        ..header
    };
    bytes[..ALIGNMENT].copy_from_slice(&header.to_bytes());
    bytes.extend(contents);
    bytes
}

fn contents() -> &'static [u8] {
    &file()[PackedFile::header(file()).unwrap().contents_offset as usize..]
}

#[test]
fn all_that_is_written_is_read_to_the_bit() {
    let weights = weights();
    let layer = &weights.layers[0];
    let linears =
        [&weights.embedding].into_iter().chain(weights.layer_linears()).collect::<Vec<_>>();
    let read = read(file()).unwrap();
    for (index, linear) in linears.into_iter().enumerate() {
        assert_eq!(read[index].0, linear.as_bytes(), "{}", LINEARS[index]);
        assert_eq!(read[index].1, linear.order().unwrap_or_default(), "{}", LINEARS[index]);
    }
    let bias = layer.q.bias.as_ref().unwrap();
    for (index, vector) in
        [&weights.final_norm, &layer.attention_norm, &layer.mlp_norm, &vec![3.0], bias]
            .into_iter()
            .enumerate()
    {
        let bits: Vec<u32> = vector.iter().map(|value| value.to_bits()).collect();
        assert_eq!(read[LINEARS.len() + index].1, bits, "{}", VECTORS[index]);
    }
    let file = parse(file()).unwrap();
    assert!(file.has("model.embed_tokens.weight") && file.has("model.norm.weight"));
    assert!(!file.has("lm_head.weight"));
    assert!(file.vector("model.layers.0.self_attn.q_norm.weight", 1).unwrap().is_none());
    assert!(file.linear("model.embed_tokens", SHAPE).unwrap().is_shared());
}

#[test]
fn what_is_no_such_file_is_refused_with_a_reason() {
    let refusal = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    let edited = |at: usize, value: u8| {
        let mut bytes = file().to_vec();
        bytes[at] = value;
        bytes
    };
    assert_eq!(refusal(b"GGUF"), "it is no file of packed weights");
    assert!(refusal(&edited(8, 9)).contains("version 9"));
    assert!(refusal(&edited(12, 9)).contains("another order of bytes"));
    assert!(refusal(&file()[..file().len() - 1]).contains("its header says"));
    assert!(refusal(&edited(file().len() - 2, b'!')).contains("table of contents is damaged"));
    assert!(refusal(&edited(ALIGNMENT + 1, 0x55)).contains("model.embed_tokens are damaged"));
    let other = PackedFile::parse(placed(file()), "another").unwrap_err().to_string();
    assert_eq!(other, "it holds weights of another model");
    let file = parse(file()).unwrap();
    let shape = LinearShape { num_inputs: INPUTS, num_outputs: 6 };
    let said = file.linear(LINEARS[1], shape).unwrap_err().to_string();
    assert!(said.contains("has shape [5, 64], where the model has [6, 64]"), "{said}");
    assert!(file.linear("lm_head", SHAPE).unwrap_err().to_string().contains("is missing"));
    assert!(file.vector(VECTORS[0], 4).unwrap_err().to_string().contains("12 bytes for 4"));
}

#[test]
fn every_prefix_is_refused() {
    for len in 0..file().len() {
        assert!(parse(&file()[..len]).is_err(), "a prefix of {len} bytes was accepted");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&tail).is_err());
        prop_assert!(read(&[&file()[..16], &tail].concat()).is_err());
    }

    #[test]
    fn a_changed_file_is_refused_or_says_the_same(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = file().to_vec();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(all) = read(&bytes) {
            prop_assert_eq!(all, read(file()).unwrap());
        }
    }

    #[test]
    fn contents_that_say_anything_under_a_right_hash_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), b' '..b'~'), 1..4),
    ) {
        let mut contents = contents().to_vec();
        for (at, value) in edits {
            let at = at.index(contents.len());
            contents[at] = value;
        }
        let _ = read(&resealed(&contents));
    }

    #[test]
    fn numbers_of_contents_may_be_any(
        key in prop::sample::select(
            vec!["offset", "num_bytes", "group", "num_outputs", "num_inputs", "bits"]
        ),
        number in prop::sample::select(vec![0, 1, 7, 63, 1 << 32, 1 << 62, u64::MAX]),
    ) {
        let text = std::str::from_utf8(contents()).unwrap();
        let (mut out, mut rest) = (String::new(), text);
        let key = format!("\"{key}\":");
        while let Some((before, after)) = rest.split_once(&key) {
            out += &format!("{before}{key}{number}");
            rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        prop_assert!(read(&resealed((out + rest).as_bytes())).is_err());
    }
}
