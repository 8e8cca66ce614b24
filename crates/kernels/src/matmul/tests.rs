//! Every instruction set against the double-precision reference, and against itself alone.

use super::*;
use crate::codebook::Codebook;
use crate::coded::CodedRow;
use crate::pack::{Packer, QuantizedRow};
use crate::quantize::Activations;
use crate::weight::GROUP;

pub(crate) const FORMATS: [Format; 13] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::W4,
    Format::W8 { group: 32, offset: 128, has_min: false },
    Format::W8 { group: 32, offset: 16, has_min: false },
    Format::W8 { group: 32, offset: 0, has_min: true },
    Format::W8 { group: 16, offset: 32, has_min: false },
    Format::Codebook { book: Codebook::Nf4, group: 32 },
    Format::Codebook { book: Codebook::Fp4, group: 16 },
    Format::ZeroPoint { bits: 4, group: 32 },
    Format::ZeroPoint { bits: 8, group: 32 },
    Format::ZeroPoint { bits: 8, group: 8 },
];

const ACTIVATIONS: [Activations; 3] = [Activations::Int12, Activations::Int8, Activations::F32];

/// A repeatable stream of numbers in [-1, 1).
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn random_linear(format: Format, num_outputs: usize, num_inputs: usize) -> PackedLinear {
    fill(Packer::new(format, num_outputs, num_inputs), format, num_outputs, num_inputs)
}

fn fill(mut packer: Packer, format: Format, num_outputs: usize, num_inputs: usize) -> PackedLinear {
    let mut next = noise(7);
    for row in 0..num_outputs {
        if format.is_float() {
            let values: Vec<f32> = (0..num_inputs).map(|_| next()).collect();
            packer.set_float(row, &values);
            continue;
        }
        if let Some((bits, has_zeros)) = format.coded() {
            let mut codes = |len: usize| -> Vec<u8> {
                (0..len).map(|_| ((next() + 1.0) * 0.5 * (1 << bits) as f32) as u8).collect()
            };
            let num_groups = num_inputs / format.group();
            let (codes, zeros) = (codes(num_inputs), codes(if has_zeros { num_groups } else { 0 }));
            let scales: Vec<f32> = (0..num_groups).map(|_| next() / 8.0).collect();
            packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
            continue;
        }
        let (max_code, has_min) = match format {
            Format::W8 { offset: 128, .. } => (255.0, false),
            Format::W8 { offset, has_min, .. } => (f32::from(offset.max(16)) * 2.0 - 1.0, has_min),
            _ => (15.0, true),
        };
        let codes: Vec<u8> =
            (0..num_inputs).map(|_| ((next() + 1.0) * 0.5 * (max_code + 0.99)) as u8).collect();
        let num_groups = num_inputs / format.group();
        let scales: Vec<f32> = (0..num_groups).map(|_| (next() + 1.1) / max_code).collect();
        let mins: Vec<f32> =
            if has_min { (0..num_groups).map(|_| next()).collect() } else { vec![] };
        packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
    }
    packer.finish()
}

fn run(isa: Isa, weight: &PackedLinear, x: &[f32], num_threads: usize) -> Vec<f32> {
    run_with(Activations::Int12, isa, weight, x, num_threads)
}

fn run_with(
    activations: Activations,
    isa: Isa,
    weight: &PackedLinear,
    x: &[f32],
    num_threads: usize,
) -> Vec<f32> {
    let pool = ThreadPool::new(num_threads);
    let num_rows = x.len() / weight.num_inputs();
    let mut quantized = QuantizedRows::new(activations);
    if weight.format().is_integer() {
        quantized.quantize(&pool, isa, x, weight.num_inputs());
    }
    let mut y = vec![0.0; num_rows * weight.num_outputs()];
    let input = Input { rows: x, quantized: &quantized, num_rows };
    matmul(&pool, isa, input, &mut [Job { weight, bias: None, accumulate: false, out: &mut y }]);
    y
}

fn as_quantized(
    activations: Activations,
    format: Format,
    x: &[f32],
    num_inputs: usize,
) -> Vec<f32> {
    if !format.is_integer() || activations == Activations::F32 {
        return x.to_vec();
    }
    let mut rows = QuantizedRows::new(activations);
    rows.quantize(&ThreadPool::new(1), Isa::Portable, x, num_inputs);
    let codes = rows.codes.iter().enumerate();
    codes.map(|(i, &code)| f32::from(code) * rows.scales[i / GROUP]).collect()
}

#[test]
fn every_format_matches_the_f64_reference_on_every_instruction_set() {
    for format in FORMATS {
        for (num_outputs, num_inputs, num_rows) in
            [(16, 32, 1), (50, 96, 3), (33, 160, 15), (8, 32, 8)]
        {
            let weight = random_linear(format, num_outputs, num_inputs);
            let mut next = noise(3);
            let x: Vec<f32> = (0..num_rows * num_inputs).map(|_| next() * 4.0).collect();
            // What quantization loses has its own test.
            for activations in ACTIVATIONS {
                let want = reference(&as_quantized(activations, format, &x, num_inputs), &weight);
                let square = want.iter().map(|y| y * y).sum::<f64>();
                let size = (square / want.len() as f64).sqrt();
                for isa in Isa::available() {
                    let got = run_with(activations, isa, &weight, &x, 2);
                    for (got, want) in got.iter().zip(&want) {
                        let error = (f64::from(*got) - want).abs() / size;
                        let what = format!("{format:?} {isa} {activations}");
                        assert!(error < 2e-6, "{what}: {got} is not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let (num_outputs, num_inputs, num_rows) = (70, 128, 23);
    let mut next = noise(11);
    let x: Vec<f32> = (0..num_rows * num_inputs).map(|_| next()).collect();
    for format in FORMATS {
        let weight = random_linear(format, num_outputs, num_inputs);
        for (isa, activations) in
            Isa::available().into_iter().flat_map(|isa| ACTIVATIONS.map(|one| (isa, one)))
        {
            let together = run_with(activations, isa, &weight, &x, 2);
            for (x, want) in x.chunks_exact(num_inputs).zip(together.chunks_exact(num_outputs)) {
                let alone = run_with(activations, isa, &weight, x, 1);
                assert_eq!(alone, want, "{format:?} {isa} {activations}");
            }
        }
    }
}

#[test]
fn several_jobs_share_an_input_and_may_add_to_their_output() {
    let pool = ThreadPool::new(2);
    let isa = Isa::detect();
    let (a, b) = (random_linear(Format::W4, 40, 64), random_linear(Format::F32, 24, 64));
    let mut next = noise(5);
    let x: Vec<f32> = (0..3 * 64).map(|_| next()).collect();
    let mut quantized = QuantizedRows::default();
    quantized.quantize(&pool, isa, &x, 64);
    let bias: Vec<f32> = (0..24).map(|n| n as f32).collect();
    let (mut y_a, mut y_b) = (vec![1.0; 3 * 40], vec![0.0; 3 * 24]);
    matmul(
        &pool,
        isa,
        Input { rows: &x, quantized: &quantized, num_rows: 3 },
        &mut [
            Job { weight: &a, bias: None, accumulate: true, out: &mut y_a },
            Job { weight: &b, bias: Some(&bias), accumulate: false, out: &mut y_b },
        ],
    );
    let alone_a = run(isa, &a, &x, 1);
    let alone_b = run(isa, &b, &x, 1);
    assert!(y_a.iter().zip(&alone_a).all(|(y, alone)| *y == 1.0 + alone));
    assert!(y_b.iter().zip(&alone_b).enumerate().all(|(i, (y, alone))| *y == alone + bias[i % 24]));
}

#[test]
fn amx_and_avx512_give_the_same_bits_for_any_number_of_rows() {
    let sets = Isa::available();
    if !sets.contains(&Isa::Amx) {
        println!("this machine has no AMX");
        return;
    }
    let num_inputs = 96;
    for format in FORMATS {
        let weight = random_linear(format, 40, num_inputs);
        for num_rows in [1, 5, 6, 7, 15, 16, 17, 21, 22, 32, 37, 50] {
            let mut next = noise(num_rows as u32);
            let x: Vec<f32> = (0..num_rows * num_inputs).map(|_| next() * 9.0).collect();
            for activations in ACTIVATIONS {
                let want = run_with(activations, Isa::Avx512, &weight, &x, 1);
                let got = run_with(activations, Isa::Amx, &weight, &x, 2);
                assert_eq!(got, want, "{format:?}, {num_rows} rows, {activations}");
            }
        }
    }
}

/// The largest codes of both signs with the largest of the weights, so that a sum that saturates or wraps
/// would show: all sets fuse the same operations, but the portable one.
#[test]
fn integer_sums_of_the_largest_codes_are_exact_on_every_instruction_set() {
    let (num_outputs, num_inputs, num_rows) = (16, 64, 19);
    let signs =
        |t: usize, k: usize| if t == 0 || !(k / 2 + t).is_multiple_of(3) { 1.0 } else { -1.0 };
    let x: Vec<f32> =
        (0..num_rows * num_inputs).map(|i| signs(i / num_inputs, i % num_inputs)).collect();
    for format in FORMATS.into_iter().filter(|format| format.is_integer()) {
        let (largest, has_min) = match format {
            Format::W8 { offset: 16 | 32, has_min, .. } => (63, has_min),
            Format::W8 { has_min, .. } => (if has_min { 127 } else { 255 }, has_min),
            _ => (15, true),
        };
        let codes = vec![largest; num_inputs];
        let scales = vec![1.0; num_inputs / format.group()];
        let mins = vec![0.0; if has_min { scales.len() } else { 0 }];
        let mut packer = Packer::new(format, num_outputs, num_inputs);
        for row in 0..num_outputs {
            packer.set_quantized(row, QuantizedRow { codes: &codes, scales: &scales, mins: &mins });
        }
        let weight = packer.finish();
        for activations in [Activations::Int12, Activations::Int8] {
            let want = run_with(activations, Isa::Portable, &weight, &x, 1);
            for isa in Isa::available() {
                let got = run_with(activations, isa, &weight, &x, 1);
                for (got, want) in got.iter().zip(&want) {
                    let error = (got - want).abs() / want.abs().max(1.0);
                    assert!(error < 1e-6, "{format:?} {isa} {activations}: {got} is not {want}");
                }
            }
        }
    }
}

#[test]
fn avx2_and_avx512_give_the_same_bits() {
    let sets = Isa::available();
    if sets.len() < 3 {
        println!("this machine has no AVX-512");
        return;
    }
    for format in FORMATS.into_iter().filter(|format| format.is_integer()) {
        let weight = random_linear(format, 40, 96);
        let mut next = noise(17);
        let x: Vec<f32> = (0..11 * 96).map(|_| next() * 5.0).collect();
        for activations in ACTIVATIONS {
            let want = run_with(activations, sets[1], &weight, &x, 1);
            for &isa in &sets[2..] {
                let got = run_with(activations, isa, &weight, &x, 1);
                assert_eq!(got, want, "{format:?} {isa} {activations}");
            }
        }
    }
}

/// Where multiplication and addition are fused in all sets, no set differs from the portable one.
#[cfg(target_arch = "aarch64")]
#[test]
fn all_sets_give_the_bits_of_the_portable_one_for_any_number_of_rows() {
    let num_inputs = 96;
    for format in FORMATS {
        let weight = random_linear(format, 40, num_inputs);
        for num_rows in 1..=11 {
            let mut next = noise(num_rows as u32);
            let x: Vec<f32> = (0..num_rows * num_inputs).map(|_| next() * 9.0).collect();
            let want = run(Isa::Portable, &weight, &x, 1);
            for isa in Isa::available() {
                assert_eq!(run(isa, &weight, &x, 2), want, "{format:?}, {num_rows} rows, {isa}");
            }
        }
    }
}

#[test]
fn inputs_in_another_order_are_found_where_they_are() {
    let (num_outputs, num_inputs, num_rows) = (40, 96, 11);
    let mut next = noise(13);
    let x: Vec<f32> = (0..num_rows * num_inputs).map(|_| next()).collect();
    // 29 and 96 have no divisor in common.
    let order: Vec<u32> = (0..num_inputs as u32).map(|k| (k * 29 + 5) % 96).collect();
    let mut gathered = x.clone();
    for (to, from) in gathered.chunks_exact_mut(num_inputs).zip(x.chunks_exact(num_inputs)) {
        to.iter_mut().zip(&order).for_each(|(to, &input)| *to = from[input as usize]);
    }
    for format in FORMATS.into_iter().filter(|format| format.coded().is_some()) {
        let in_order = random_linear(format, num_outputs, num_inputs);
        let packer = Packer::with_order(format, num_outputs, num_inputs, order.clone());
        let ordered = fill(packer, format, num_outputs, num_inputs);
        for isa in Isa::available() {
            let got = run(isa, &ordered, &x, 2);
            assert_eq!(got, run(isa, &in_order, &gathered, 1), "{format:?} {isa}");
            let want = reference(&x, &ordered);
            let size = want.iter().map(|y| y * y).sum::<f64>().sqrt() / (want.len() as f64).sqrt();
            for (got, want) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() / size < 2e-6, "{format:?} {isa}");
            }
        }
    }
}
