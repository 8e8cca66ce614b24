//! The layout as others keep it: bytes out and in again, and what they are.

use super::*;
use crate::coded::CodedRow;
use crate::pack::{Packer, QuantizedRow};

const FORMATS: [Format; 13] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::W4,
    Format::W8 { group: 32, offset: 128, has_min: false },
    Format::W8 { group: 16, offset: 32, has_min: false },
    Format::W8 { group: 32, offset: 0, has_min: true },
    Format::Codebook { book: Codebook::Nf4, group: 64 },
    Format::Codebook { book: Codebook::Fp4, group: 8 },
    Format::ZeroPoint { bits: 4, group: 32 },
    Format::ZeroPoint { bits: 4, group: 64 },
    Format::ZeroPoint { bits: 8, group: 64 },
    Format::ZeroPoint { bits: 8, group: 16 },
];

/// A matrix of numbers that depend on where they are.
fn example(format: Format, num_outputs: usize, num_inputs: usize) -> PackedLinear {
    let reversed = matches!(format, Format::ZeroPoint { group: 64, .. });
    let mut packer = if reversed {
        let order = (0..num_inputs as u32).rev().collect();
        Packer::with_order(format, num_outputs, num_inputs, order)
    } else {
        Packer::new(format, num_outputs, num_inputs)
    };
    let num_groups = num_inputs / format.group();
    for row in 0..num_outputs {
        let codes: Vec<u8> = (0..num_inputs).map(|k| ((7 * row + 3 * k) % 16) as u8).collect();
        let scales: Vec<f32> = (0..num_groups).map(|g| (1 + row + 5 * g) as f32 / 8.0).collect();
        if format.is_float() {
            let values: Vec<f32> = codes.iter().map(|&code| f32::from(code) / 4.0 - 1.0).collect();
            packer.set_float(row, &values);
        } else if format.coded().is_some() {
            let has_zeros = matches!(format, Format::ZeroPoint { .. });
            let zeros = vec![row as u8 % 16; if has_zeros { num_groups } else { 0 }];
            packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
        } else {
            let has_min = !matches!(format, Format::W8 { has_min: false, .. });
            let mins: Vec<f32> = if has_min { scales.iter().map(|s| -s).collect() } else { vec![] };
            packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
        }
    }
    packer.finish()
}

/// The same bytes `offset` beyond a multiple of 64.
fn copied(bytes: &[u8], offset: usize) -> Bytes {
    struct Placed(Vec<u8>, usize);
    impl AsRef<[u8]> for Placed {
        fn as_ref(&self) -> &[u8] {
            &self.0[self.1..]
        }
    }
    let mut room = vec![0; bytes.len() + 128];
    let start = room.as_ptr().addr().wrapping_neg() % 64 + offset;
    room.truncate(start + bytes.len());
    room[start..].copy_from_slice(bytes);
    Bytes::from_owner(Placed(room, start))
}

#[test]
fn the_layout_is_that_of_its_version() {
    let mut hash = blake3::Hasher::new();
    for format in FORMATS {
        let linear = example(format, 21, 128);
        hash.update(linear.as_bytes());
        for input in linear.order().unwrap_or_default() {
            hash.update(&input.to_le_bytes());
        }
    }
    assert_eq!(
        (LAYOUT_VERSION, hash.finalize().to_hex().as_str()),
        (1, "e78088a33cdc701919c867b47acaa6e95499af1131b27f204d7d27d5e0d3ad1a"),
        "the layout has changed: raise LAYOUT_VERSION, so that nobody reads bytes of the old one, \
         and write the new version and hash here"
    );
}

#[test]
fn packed_bytes_are_the_same_matrix_again_without_a_copy() {
    for format in FORMATS {
        let packed = example(format, 21, 128);
        let bytes = copied(packed.as_bytes(), 0);
        let order = packed.order().map(<[u32]>::to_vec);
        let again = PackedLinear::from_packed(format, [21, 128], order, bytes.clone()).unwrap();
        assert_eq!(again.as_bytes().as_ptr(), bytes.as_ptr());
        assert!(again.is_shared() && !packed.is_shared());
        assert_eq!(again.num_bytes(), packed.num_bytes());
        let (mut want, mut got) = (vec![0.0; 128], vec![0.0; 128]);
        for row in 0..21 {
            packed.dequantize_row_into(row, &mut want);
            again.dequantize_row_into(row, &mut got);
            assert_eq!(got, want, "{format:?}");
        }
    }
}

#[test]
fn bytes_orders_and_formats_that_do_not_fit_are_refused() {
    let format = Format::ZeroPoint { bits: 4, group: 64 };
    let packed = example(format, 21, 128);
    let bytes = copied(packed.as_bytes(), 0);
    let refusal = |format, shape, order: Option<Vec<u32>>, bytes: &Bytes| {
        PackedLinear::from_packed(format, shape, order, bytes.clone()).unwrap_err().to_string()
    };
    for (shape, reason) in [
        ([33, 128], "where a matrix of this shape has"),
        ([21, 192], "where a matrix of this shape has"),
        ([21, 100], "not whole groups of 64"),
        ([21, 0], "is no format of 0 inputs"),
        ([usize::MAX, 128], "no matrix of a model"),
        ([21, usize::MAX], "no matrix of a model"),
    ] {
        let said = refusal(format, shape, None, &bytes);
        assert!(said.contains(reason), "{shape:?}: {said}");
    }
    for order in [vec![0; 128], (0..127).collect(), (1..129).collect()] {
        let said = refusal(format, [21, 128], Some(order), &bytes);
        assert!(said.contains("each input once"), "{said}");
    }
    for format in [
        Format::ZeroPoint { bits: 5, group: 64 },
        Format::ZeroPoint { bits: 4, group: 0 },
        Format::Codebook { book: Codebook::Nf4, group: 4 },
        Format::W8 { group: 64, offset: 0, has_min: false },
        Format::W8 { group: usize::MAX, offset: 0, has_min: false },
    ] {
        assert!(refusal(format, [21, 128], None, &bytes).contains("is no format"), "{format:?}");
    }
    let ordered = refusal(Format::W4, [16, 32], Some((0..32).collect()), &copied(&[0; 320], 0));
    assert!(ordered.contains("no order of inputs"), "{ordered}");
    let said = refusal(format, [21, 128], None, &copied(packed.as_bytes(), 8));
    assert!(said.contains("multiple of 64"), "{said}");
}
