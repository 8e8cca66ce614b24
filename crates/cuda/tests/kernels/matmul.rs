//! Linears of every format against their reference.

use crate::support::{
    HALVES, Rng, assert_close, from_half, gpu, halves, precision, to_f64, to_halves,
};
use crate::weights::{FORMATS, Weights, weights};
use weft_cuda::ops::matmul::{self, Linear, Output};
use weft_cuda::weights::{CudaLinear, WeightFormat};
use weft_cuda::{Buffer, DevicePtr, Gpu, HalfType};

/// x on the device, and as numbers.
fn activations(gpu: &Gpu, half: HalfType, len: usize, rng: &mut Rng) -> (Buffer<u16>, Vec<f64>) {
    let bits = to_halves(half, &rng.floats(len));
    let values = bits.iter().map(|&bits| from_half(half, bits)).collect();
    (gpu.upload(&bits).expect("the device works"), values)
}

/// How far sums may be off, in f32: dense weights are multiplied exactly, others rounded to 16 bits.
fn tolerance(half: HalfType, format: WeightFormat) -> f64 {
    if format == WeightFormat::Dense { 1e-5 } else { precision(half) }
}

/// One linear into f32 with all that can be asked for, and into 16 bits, against the reference.
fn check(gpu: &Gpu, half: HalfType, weights: &Weights, num_rows: usize, rng: &mut Rng) {
    let linear = &weights.linear;
    let (num_outputs, num_inputs) = (linear.num_outputs(), linear.num_inputs());
    let (x, values) = activations(gpu, half, num_rows * num_inputs, rng);
    let what = format!("{half:?} {:?} {num_rows} x [{num_outputs}, {num_inputs}]", linear.format());
    let tolerance = tolerance(half, linear.format());

    let bias = rng.floats(num_outputs);
    let device_bias = gpu.upload(&bias).expect("the device works");
    let before = rng.floats(num_rows * num_outputs);
    let sums = gpu.upload(&before).expect("the device works");
    let out = Linear { weight: linear, bias: device_bias.ptr(), out: Output::AddF32(sums.ptr()) };
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { matmul::linear(gpu, x.ptr(), num_rows, &[out]) }.expect("the device works");
    let mut want = matmul::reference(&values, &weights.values, num_inputs, Some(&bias));
    want.iter_mut().zip(&before).for_each(|(want, &before)| *want += f64::from(before));
    assert_close(
        &to_f64(&sums.read(0..sums.len()).expect("the device works")),
        &want,
        tolerance,
        &what,
    );

    let sums = gpu.alloc::<u16>(num_rows * num_outputs).expect("the device works");
    let out = Linear { weight: linear, bias: DevicePtr::NULL, out: Output::Half(sums.ptr()) };
    // SAFETY: as above.
    unsafe { matmul::linear(gpu, x.ptr(), num_rows, &[out]) }.expect("the device works");
    let want = matmul::reference(&values, &weights.values, num_inputs, None);
    assert_close(&halves(half, &sums), &want, tolerance + precision(half), &what);
}

fn check_format(format: WeightFormat, seed: u64) {
    let (gpu, mut rng) = (gpu(), Rng::new(seed));
    let num_rows = [1, 3, 8, 17, 64, 65, 130];
    let shapes = match format {
        WeightFormat::Dense => [[40, 200], [21, 72], [16, 640]],
        WeightFormat::Codebook(_) => [[40, 192], [21, 64], [16, 640]],
        _ => [[40, 160], [21, 32], [16, 640]],
    };
    for half in HALVES {
        let weights = shapes.map(|shape| weights(&gpu, half, format, shape, &mut rng));
        for (index, num_rows) in num_rows.into_iter().enumerate() {
            // The long one for few rows only.
            let shape = if num_rows > 17 { index % 2 } else { index % 3 };
            check(&gpu, half, &weights[shape], num_rows, &mut rng);
        }
    }
}

#[test]
fn dense_linears_match_their_reference() {
    check_format(FORMATS[0], 31);
}

#[test]
fn four_bit_linears_match_their_reference() {
    check_format(FORMATS[1], 32);
    check_format(FORMATS[9], 47);
}

#[test]
fn eight_bit_linears_match_their_reference() {
    for (index, format) in FORMATS[2..7].iter().enumerate() {
        check_format(*format, 33 + index as u64);
    }
    check_format(FORMATS[10], 50);
}

#[test]
fn codebook_linears_match_their_reference() {
    check_format(FORMATS[7], 38);
    check_format(FORMATS[8], 39);
}

#[test]
fn dense_inputs_need_not_be_aligned() {
    let (gpu, mut rng) = (gpu(), Rng::new(41));
    for (num_rows, shape) in [(2, [18, 7]), (12, [16, 67]), (40, [7, 129]), (70, [33, 67])] {
        let weights = weights(&gpu, HalfType::F16, WeightFormat::Dense, shape, &mut rng);
        check(&gpu, HalfType::F16, &weights, num_rows, &mut rng);
    }
}

#[test]
fn blocks_beyond_the_first_take_their_own_outputs() {
    let (gpu, mut rng) = (gpu(), Rng::new(42));
    for num_rows in [5, 40, 66] {
        let weights = weights(&gpu, HalfType::Bf16, WeightFormat::W4, [168, 64], &mut rng);
        check(&gpu, HalfType::Bf16, &weights, num_rows, &mut rng);
    }
}

#[test]
fn linears_of_the_same_inputs_share_a_launch() {
    let (gpu, mut rng) = (gpu(), Rng::new(43));
    let half = HalfType::F16;
    // The last is of another kernel, and comes in a launch of its own.
    let formats = [FORMATS[2], FORMATS[5], FORMATS[4], FORMATS[1]];
    let outputs = [40, 24, 9, 17];
    for num_rows in [3, 50, 66] {
        let (x, values) = activations(&gpu, half, num_rows * 96, &mut rng);
        let all: Vec<Weights> = formats
            .iter()
            .zip(outputs)
            .map(|(&format, n)| weights(&gpu, half, format, [n, 96], &mut rng))
            .collect();
        let out: Vec<Buffer<f32>> =
            outputs.iter().map(|n| gpu.alloc(num_rows * n).unwrap()).collect();
        let linears: Vec<Linear<'_>> = all
            .iter()
            .zip(&out)
            .map(|(weights, out)| Linear {
                weight: &weights.linear,
                bias: DevicePtr::NULL,
                out: Output::F32(out.ptr()),
            })
            .collect();
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { matmul::linear(&gpu, x.ptr(), num_rows, &linears) }.unwrap();
        for (weights, out) in all.iter().zip(&out) {
            let want = matmul::reference(&values, &weights.values, 96, None);
            let got = to_f64(&out.read(0..out.len()).unwrap());
            let what = format!("{:?} {num_rows}", weights.linear.format());
            assert_close(&got, &want, precision(half), &what);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_the_others_are() {
    let (gpu, mut rng) = (gpu(), Rng::new(44));
    let linear = CudaLinear::random(&gpu, HalfType::F16, WeightFormat::W4, [24, 192], 5).unwrap();
    for num_rows in [8, 65] {
        let own = to_halves(HalfType::F16, &rng.floats(192));
        let mut rows = |at: usize, others: f32| {
            let mut x: Vec<f32> = rng.floats(num_rows * 192);
            x.iter_mut().for_each(|x| *x *= others);
            let mut bits = to_halves(HalfType::F16, &x);
            bits[at * 192..][..192].copy_from_slice(&own);
            let x = gpu.upload(&bits).unwrap();
            let out = gpu.alloc::<f32>(num_rows * 24).unwrap();
            let task =
                Linear { weight: &linear, bias: DevicePtr::NULL, out: Output::F32(out.ptr()) };
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { matmul::linear(&gpu, x.ptr(), num_rows, &[task]) }.unwrap();
            out.read(at * 24..at * 24 + 24).unwrap()
        };
        assert_eq!(rows(2, 1.0), rows(2, 100.0));
        assert_eq!(rows(2, 1.0), rows(5, 0.0));
    }
}
