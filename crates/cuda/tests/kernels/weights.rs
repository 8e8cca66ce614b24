//! Weights of every format on the device, with their values in f64.

use crate::support::{HALVES, Rng, from_half, gpu, to_half};
use weft_cuda::weights::{CudaLinear, WeightFormat};
use weft_cuda::{Gpu, HalfType, ops::embedding};
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::pack::{Packer, QuantizedRow};
use weft_kernels::weight::Format;

/// All formats.
pub(crate) const FORMATS: [WeightFormat; 11] = [
    WeightFormat::Dense,
    WeightFormat::W4,
    WeightFormat::W8 { group: 32, offset: 128, has_min: false },
    WeightFormat::W8 { group: 32, offset: 16, has_min: false },
    WeightFormat::W8 { group: 32, offset: 0, has_min: true },
    WeightFormat::W8 { group: 16, offset: 32, has_min: false },
    WeightFormat::W8 { group: 16, offset: 3, has_min: true },
    WeightFormat::Codebook(Codebook::Nf4),
    WeightFormat::Codebook(Codebook::Fp4),
    WeightFormat::ZeroPoint { bits: 4 },
    WeightFormat::ZeroPoint { bits: 8 },
];

/// A matrix on the device, and what it holds.
pub(crate) struct Weights {
    pub(crate) linear: CudaLinear,
    pub(crate) values: Vec<f64>,
}

/// Random codes with scales that both 16-bit types hold.
pub(crate) fn weights(
    gpu: &Gpu,
    half: HalfType,
    format: WeightFormat,
    shape: [usize; 2],
    rng: &mut Rng,
) -> Weights {
    match format {
        WeightFormat::Dense => packed(gpu, half, Format::F16, shape, rng),
        WeightFormat::W4 => packed(gpu, half, Format::W4, shape, rng),
        WeightFormat::W8 { group, offset, has_min } => {
            packed(gpu, half, Format::W8 { group, offset, has_min }, shape, rng)
        }
        WeightFormat::ZeroPoint { bits } => {
            packed(gpu, half, Format::ZeroPoint { bits, group: 32 }, shape, rng)
        }
        WeightFormat::Codebook(book) => {
            packed(gpu, half, Format::Codebook { book, group: 64 }, shape, rng)
        }
    }
}

fn packed(
    gpu: &Gpu,
    half: HalfType,
    format: Format,
    [num_outputs, num_inputs]: [usize; 2],
    rng: &mut Rng,
) -> Weights {
    let packer = Packer::new(format, num_outputs, num_inputs);
    upload(gpu, half, packer, format, [num_outputs, num_inputs], rng)
}

fn upload(
    gpu: &Gpu,
    half: HalfType,
    mut packer: Packer,
    format: Format,
    [num_outputs, num_inputs]: [usize; 2],
    rng: &mut Rng,
) -> Weights {
    for row in 0..num_outputs {
        let bits = match format {
            Format::Codebook { .. } => 4,
            Format::ZeroPoint { bits, .. } => bits,
            _ => 0,
        };
        if bits > 0 {
            let num_groups = num_inputs / format.group();
            let has_zeros = matches!(format, Format::ZeroPoint { .. });
            let mut codes =
                |len: usize| -> Vec<u8> { (0..len).map(|_| rng.below(1 << bits) as u8).collect() };
            let (codes, zeros) = (codes(num_inputs), codes(if has_zeros { num_groups } else { 0 }));
            let scales: Vec<f32> =
                (0..num_groups).map(|_| (1 + rng.below(127)) as f32 / 1024.0).collect();
            packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
            continue;
        }
        if format.is_float() {
            let value = |_| from_half(half, to_half(half, rng.float())) as f32;
            let values: Vec<f32> = (0..num_inputs).map(value).collect();
            packer.set_float(row, &values);
            continue;
        }
        let (first, num_codes, has_min) = match format {
            // The CPU takes codes that less their offset are signed bytes.
            Format::W8 { offset, has_min, .. } if offset < 128 => (0, 128, has_min),
            Format::W8 { has_min, .. } => (0, 256, has_min),
            _ => (0, 16, true),
        };
        let codes: Vec<u8> =
            (0..num_inputs).map(|_| (first + rng.below(num_codes)) as u8).collect();
        let num_groups = num_inputs / format.group();
        let scales: Vec<f32> =
            (0..num_groups).map(|_| (1 + rng.below(127)) as f32 / 2048.0).collect();
        let mins: Vec<f32> = if has_min {
            (0..num_groups).map(|_| rng.below(255) as f32 / 128.0 - 1.0).collect()
        } else {
            Vec::new()
        };
        packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
    }
    let packed = packer.finish();
    let mut values = vec![0.0f32; num_outputs * num_inputs];
    for (row, values) in values.chunks_exact_mut(num_inputs).enumerate() {
        packed.dequantize_row_into(row, values);
    }
    let linear = CudaLinear::from_packed(gpu, half, &packed).expect("the device works");
    Weights { linear, values: values.into_iter().map(f64::from).collect() }
}

/// All rows, as the device's embedding gives them.
pub(crate) fn on_device(gpu: &Gpu, linear: &CudaLinear) -> Vec<f32> {
    let tokens: Vec<u32> = (0..linear.num_outputs() as u32).collect();
    let tokens = gpu.upload(&tokens).expect("the device works");
    let out =
        gpu.alloc::<f32>(linear.num_outputs() * linear.num_inputs()).expect("the device works");
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { embedding::embed(gpu, linear, (tokens.ptr(), out.ptr()), tokens.len()) }
        .expect("the device works");
    out.read(0..out.len()).expect("the device works")
}

#[test]
fn weights_of_the_cpu_are_the_same_on_the_device() {
    let (gpu, mut rng) = (gpu(), Rng::new(11));
    for half in HALVES {
        for format in FORMATS {
            for shape in [[5, 64], [40, 192]] {
                let weights = weights(&gpu, half, format, shape, &mut rng);
                let got = on_device(&gpu, &weights.linear);
                for (index, (&got, &want)) in got.iter().zip(&weights.values).enumerate() {
                    let tolerance = 1e-6 * (1.0 + want.abs());
                    assert!(
                        (f64::from(got) - want).abs() <= tolerance,
                        "{half:?} {format:?} {shape:?}: value {index} is {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn bytes_are_those_of_the_format() {
    let gpu = gpu();
    let num_bytes =
        |format| CudaLinear::random(&gpu, HalfType::F16, format, [32, 128], 1).unwrap().num_bytes();
    let num_weights = 32 * 128;
    assert_eq!(num_bytes(FORMATS[0]), num_weights * 2);
    assert_eq!(num_bytes(FORMATS[1]), num_weights / 2 + num_weights / 32 * 4);
    assert_eq!(num_bytes(FORMATS[2]), num_weights + num_weights / 32 * 2);
    assert_eq!(num_bytes(FORMATS[4]), num_weights + num_weights / 32 * 4);
    assert_eq!(num_bytes(FORMATS[5]), num_weights + num_weights / 16 * 2);
    assert_eq!(num_bytes(FORMATS[7]), num_weights / 2 + num_weights / 64 * 4 + 64);
    assert_eq!(num_bytes(FORMATS[9]), num_weights / 2 + num_weights / 32 * 4);
    assert_eq!(num_bytes(FORMATS[10]), num_weights + num_weights / 32 * 4);
}

#[test]
fn groups_that_the_device_lacks_become_dense_and_long_groups_stay() {
    let (gpu, mut rng) = (gpu(), Rng::new(12));
    let nf4 = |group| Format::Codebook { book: Codebook::Nf4, group };
    let four_bits = |group| Format::ZeroPoint { bits: 4, group };
    let codebook = WeightFormat::Codebook(Codebook::Nf4);
    let zero_point = WeightFormat::ZeroPoint { bits: 4 };
    for (format, want) in [
        (nf4(192), codebook),
        (nf4(96), WeightFormat::Dense),
        (four_bits(96), zero_point),
        (four_bits(192), zero_point),
        (four_bits(16), WeightFormat::Dense),
    ] {
        let shape = [20, 192];
        let packer = Packer::new(format, shape[0], shape[1]);
        let weights = upload(&gpu, HalfType::F16, packer, format, shape, &mut rng);
        assert_eq!(weights.linear.format(), want, "{format:?}");
        // Dense values are rounded to halves.
        let tolerance = if want == WeightFormat::Dense { 5e-4 } else { 1e-6 };
        for (got, want) in on_device(&gpu, &weights.linear).into_iter().zip(&weights.values) {
            assert!((f64::from(got) - want).abs() <= tolerance * want.abs(), "{format:?} {got}");
        }
    }
}

#[test]
fn inputs_that_are_not_whole_groups_are_refused() {
    let gpu = gpu();
    let refused = CudaLinear::random(&gpu, HalfType::F16, FORMATS[7], [2, 96], 1);
    let sentence = refused.unwrap_err().to_string();
    assert!(sentence.contains("96 inputs") && sentence.contains("64"), "{sentence}");
}

#[test]
fn random_weights_have_the_variance_of_one_over_their_inputs() {
    let gpu = gpu();
    let (num_outputs, num_inputs) = (64, 256);
    for half in HALVES {
        for format in FORMATS {
            let make = |seed| {
                let shape = [num_outputs, num_inputs];
                let linear = CudaLinear::random(&gpu, half, format, shape, seed).unwrap();
                on_device(&gpu, &linear)
            };
            let (values, others) = (make(1), make(2));
            let len = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / len;
            let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / len;
            let same: usize = values.iter().zip(&others).filter(|(a, b)| a == b).count();
            let what =
                format!("{half:?} {format:?}: mean {mean}, square {square}, {same} the same");
            assert!((square * num_inputs as f64 - 1.0).abs() < 0.05, "{what}");
            // NF4's codebook is not symmetric.
            assert!(mean.abs() * (num_inputs as f64).sqrt() < 0.1, "{what}");
            assert!((same as f64) < 0.25 * len, "{what}");
            assert_eq!(values, make(1));
        }
    }
}
