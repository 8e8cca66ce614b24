//! The quantized matmul alone: `cargo bench -p weft-kernels --bench matmul`.
//!
//! Prints billions of multiply-adds per second of each instruction set and number of rows, the
//! median of some runs on one thread, for a weight of the demo base's size.

use std::hint::black_box;
use std::time::Instant;
use weft_kernels::codebook::Codebook;
use weft_kernels::coded::CodedRow;
use weft_kernels::matmul::{Input, Job, matmul};
use weft_kernels::pack::{Packer, QuantizedRow};
use weft_kernels::quantize::QuantizedRows;
use weft_kernels::weight::Format;
use weft_kernels::{Isa, PackedLinear, ThreadPool};

const NUM_OUTPUTS: usize = 1536;
const NUM_INPUTS: usize = 576;
const ROWS: [usize; 8] = [1, 4, 5, 6, 8, 16, 64, 128];

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
            let speeds = ROWS.map(|rows| format!("{:.1}", speed(isa, &weight, rows)));
            println!("| {name}, {isa} | {} |", speeds.join(" | "));
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

fn speed(isa: Isa, weight: &PackedLinear, num_rows: usize) -> f64 {
    let pool = ThreadPool::new(1);
    let x: Vec<f32> = (0..num_rows * NUM_INPUTS).map(|i| (i % 101) as f32 - 50.0).collect();
    let mut quantized = QuantizedRows::default();
    quantized.quantize(&pool, isa, &x, NUM_INPUTS);
    let mut y = vec![0.0; num_rows * NUM_OUTPUTS];
    let mut seconds: Vec<f64> = (0..25)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..4 {
                let input = Input { rows: &x, quantized: &quantized, num_rows };
                let job = Job { weight, bias: None, accumulate: false, out: black_box(&mut y) };
                matmul(&pool, isa, input, &mut [job]);
            }
            began.elapsed().as_secs_f64() / 4.0
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    (num_rows * NUM_OUTPUTS * NUM_INPUTS) as f64 / seconds[seconds.len() / 2] / 1e9
}
