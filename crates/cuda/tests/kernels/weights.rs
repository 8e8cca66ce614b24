//! Weights of every format on the device, with their values in f64.

use crate::support::{HALVES, Rng, from_half, gpu, to_half};
use weft_cuda::weights::{CudaLinear, FP4_CODEBOOK, NF4_CODEBOOK, WeightFormat};
use weft_cuda::{Gpu, HalfType, ops::embedding};
use weft_kernels::pack::{Packer, QuantizedRow};
use weft_kernels::weight::Format;

/// All formats.
pub(crate) const FORMATS: [WeightFormat; 9] = [
    WeightFormat::Dense,
    WeightFormat::W4,
    WeightFormat::W8 { group: 32, offset: 128, has_min: false },
    WeightFormat::W8 { group: 32, offset: 16, has_min: false },
    WeightFormat::W8 { group: 32, offset: 0, has_min: true },
    WeightFormat::W8 { group: 16, offset: 32, has_min: false },
    WeightFormat::W8 { group: 16, offset: 3, has_min: true },
    WeightFormat::Nf4,
    WeightFormat::Fp4,
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
        WeightFormat::Nf4 | WeightFormat::Fp4 => {
            let len = shape[0] * shape[1];
            let codes: Vec<u8> = (0..len).map(|_| rng.below(16) as u8).collect();
            let absmax: Vec<f32> = (0..len / 64).map(|_| 0.1 + rng.float().abs()).collect();
            let (book, linear) = if format == WeightFormat::Nf4 {
                (NF4_CODEBOOK, CudaLinear::from_nf4(gpu, half, shape, &codes, &absmax))
            } else {
                (FP4_CODEBOOK, CudaLinear::from_fp4(gpu, half, shape, &codes, &absmax))
            };
            let value = |(i, &code): (usize, &u8)| {
                f64::from(book[usize::from(code)]) * f64::from(absmax[i / 64])
            };
            let values = codes.iter().enumerate().map(value).collect();
            Weights { linear: linear.expect("the device works"), values }
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
    let mut packer = Packer::new(format, num_outputs, num_inputs);
    for row in 0..num_outputs {
        if !format.is_integer() {
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
}

#[test]
fn inputs_that_are_not_whole_groups_are_refused() {
    let gpu = gpu();
    let refused = CudaLinear::from_nf4(&gpu, HalfType::F16, [2, 96], &[0; 192], &[1.0; 3]);
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
