//! The quantized matmul alone: `cargo bench -p weft-kernels --bench matmul`.
//!
//! Prints billions of multiply-adds per second of each instruction set and number of rows on one thread,
//! for a weight of the demo base's size, and of each kind of activations where these meet integers: the
//! median of some runs, in which kinds take turns. Activations are quantized beforehand; that alone is
//! the last table, in billions of numbers per second.

use std::hint::black_box;
use std::time::Instant;
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::matmul::{Input, Job, matmul};
use weft_kernels::pack::{Packer, QuantizedRow};
use weft_kernels::quantize::{Activations, QuantizedRows};
use weft_kernels::weight::Format;
use weft_kernels::{Isa, PackedLinear, ThreadPool};

const NUM_OUTPUTS: usize = 1536;
const NUM_INPUTS: usize = 576;
const ROWS: [usize; 9] = [1, 4, 5, 8, 10, 12, 16, 64, 128];
const KINDS: [Activations; 3] = [Activations::Int12, Activations::Int8, Activations::F32];

fn main() {
    let formats = [
        ("W4", Format::W4),
        ("W8", Format::W8 { group: 32, offset: 128, has_min: false }),
        ("W8 of 16", Format::W8 { group: 16, offset: 32, has_min: false }),
        ("NF4", Format::Codebook { book: Codebook::Nf4, group: 64 }),
        ("4 bits, zeros", Format::ZeroPoint { bits: 4, group: 64 }),
        ("8 bits, zeros", Format::ZeroPoint { bits: 8, group: NUM_INPUTS }),
        ("F32", Format::F32),
    ];
    println!("billions of multiply-adds per second, one thread, {NUM_OUTPUTS} x {NUM_INPUTS}\n");
    println!("| | {} |", ROWS.map(|rows| format!("{rows} rows")).join(" | "));
    println!("|---{}|", "|---".repeat(ROWS.len()));
    for (name, format) in formats {
        let weight = weight(format);
        for isa in Isa::available() {
            let kinds: &[Activations] = if format.is_integer() { &KINDS } else { &KINDS[2..] };
            let speeds = ROWS.map(|rows| speeds(isa, kinds, &weight, rows));
            for (index, kind) in kinds.iter().enumerate() {
                let speeds = speeds.each_ref().map(|of_kinds| format!("{:.1}", of_kinds[index]));
                println!("| {name}, {isa}, {kind} | {} |", speeds.join(" | "));
            }
        }
    }
    println!("\n| quantized | {} |", ROWS.map(|rows| format!("{rows} rows")).join(" | "));
    println!("|---{}|", "|---".repeat(ROWS.len()));
    for isa in Isa::available() {
        for kind in &KINDS[..2] {
            let speeds = ROWS.map(|rows| format!("{:.2}", quantized_per_second(isa, *kind, rows)));
            println!("| {isa}, {kind} | {} |", speeds.join(" | "));
        }
    }
}

fn weight(format: Format) -> PackedLinear {
    let codes: Vec<u8> = (0..NUM_INPUTS).map(|k| (k * 7 % 16) as u8).collect();
    let scales = vec![0.01; NUM_INPUTS / format.group()];
    let mins = if format == Format::W4 { vec![-0.08; scales.len()] } else { Vec::new() };
    let mut packer = Packer::new(format, NUM_OUTPUTS, NUM_INPUTS);
    let zeros = vec![8; scales.len()];
    for row in 0..NUM_OUTPUTS {
        match format {
            Format::W4 | Format::W8 { .. } => {
                packer.set_quantized(
                    row,
                    QuantizedRow { codes: &codes, scales: &scales, mins: &mins },
                );
            }
            Format::Codebook { .. } => {
                packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &[] });
            }
            Format::ZeroPoint { .. } => {
                packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
            }
            _ => packer.set_float(row, &vec![0.5; NUM_INPUTS]),
        }
    }
    packer.finish()
}

fn input(num_rows: usize) -> Vec<f32> {
    (0..num_rows * NUM_INPUTS).map(|i| (i % 101) as f32 - 50.0).collect()
}

/// Of each kind.
fn speeds(isa: Isa, kinds: &[Activations], weight: &PackedLinear, num_rows: usize) -> Vec<f64> {
    let pool = ThreadPool::new(1);
    let x = input(num_rows);
    let mut quantized: Vec<_> = kinds.iter().map(|&kind| QuantizedRows::new(kind)).collect();
    quantized.iter_mut().for_each(|rows| rows.quantize(&pool, isa, &x, NUM_INPUTS));
    let mut y = vec![0.0; num_rows * NUM_OUTPUTS];
    let mut seconds = vec![Vec::new(); kinds.len()];
    for _ in 0..25 {
        for (quantized, seconds) in quantized.iter().zip(&mut seconds) {
            let began = Instant::now();
            for _ in 0..4 {
                let input = Input { rows: &x, quantized, num_rows };
                let job = Job { weight, bias: None, accumulate: false, out: black_box(&mut y) };
                matmul(&pool, isa, input, &mut [job]);
            }
            seconds.push(began.elapsed().as_secs_f64() / 4.0);
        }
    }
    let num_products = (num_rows * NUM_OUTPUTS * NUM_INPUTS) as f64;
    seconds.into_iter().map(|seconds| num_products / median(seconds) / 1e9).collect()
}

fn quantized_per_second(isa: Isa, kind: Activations, num_rows: usize) -> f64 {
    let (pool, x) = (ThreadPool::new(1), input(num_rows));
    let mut rows = QuantizedRows::new(kind);
    let seconds = (0..51).map(|_| {
        let began = Instant::now();
        rows.quantize(&pool, isa, black_box(&x), NUM_INPUTS);
        began.elapsed().as_secs_f64()
    });
    x.len() as f64 / median(seconds.collect()) / 1e9
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
