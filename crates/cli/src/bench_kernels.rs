//! `weft bench kernels`: flags in, a line for each kernel as it is measured, JSON at the end. What is
//! measured, and how, is [`weft_cuda::bench`]'s.

use crate::args::BenchKernelsArgs;
use crate::args::serve::DeviceChoice;
use crate::output::{print, write_json};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use weft_cuda::bench::{KernelBench, KernelRow, Rates, run as run_kernels};
use weft_cuda::devices;
use weft_model::ModelConfig;

/// All that was found, as JSON has it.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    /// Whether times are there: an emulated GPU has none.
    measured: bool,
    shapes: String,
    copy_gb_per_s: Option<f64>,
    matmul_tflop_per_s: Option<f64>,
    num_wrong: usize,
    kernels: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    op: String,
    shape: String,
    /// None if a value was no number.
    error: Option<f64>,
    tolerance: f64,
    is_right: bool,
    ms: Option<f64>,
    gb_per_s: Option<f64>,
    tflop_per_s: Option<f64>,
    bound_ms: Option<f64>,
    percent_of_bound: Option<f64>,
}

impl Row {
    fn new(row: &KernelRow, rates: Option<&Rates>) -> Self {
        let per_second = |amount: f64| row.ms.map(|ms| amount / (1e-3 * ms));
        Self {
            op: row.op.clone(),
            shape: row.shape.clone(),
            error: row.error.is_finite().then_some(row.error),
            tolerance: row.tolerance,
            is_right: row.is_right(),
            ms: row.ms,
            gb_per_s: per_second(row.work.bytes).map(|rate| rate / 1e9),
            tflop_per_s: per_second(row.work.flops).map(|rate| rate / 1e12),
            bound_ms: rates.map(|rates| rates.bound_ms(row.work)),
            percent_of_bound: rates
                .and_then(|rates| rates.share_of_bound(row))
                .map(|share| 100.0 * share),
        }
    }

    fn line(&self, is_compute_bound: bool) -> String {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let rate = match (is_compute_bound, self.tflop_per_s, self.gb_per_s) {
            (true, Some(rate), _) => format!("{rate:.1} TFLOP/s"),
            (false, _, Some(rate)) => format!("{rate:.0} GB/s"),
            _ => "-".to_owned(),
        };
        let error = self.error.map_or_else(|| "NaN".to_owned(), |error| format!("{error:.1e}"));
        line([
            &self.op,
            &self.shape,
            &error,
            &number(self.ms, 4),
            &rate,
            &number(self.bound_ms, 4),
            &number(self.percent_of_bound, 0),
            if self.is_right { "" } else { "WRONG" },
        ])
    }
}

fn line([op, shape, error, ms, rate, bound, percent, mark]: [&str; 8]) -> String {
    let line = format!(
        "{op:<36} {shape:<32} {error:>9} {ms:>9} {rate:>14} {bound:>9} {percent:>5} {mark}"
    );
    line.trim_end().to_owned() + "\n"
}

/// Measures, and says so line by line. `true` if all kernels are right.
///
/// # Errors
/// A sentence about the GPU, the shapes or the flags; or a failure of the driver.
pub fn run(args: &BenchKernelsArgs) -> Result<bool> {
    if args.device == DeviceChoice::Cpu {
        bail!("`weft bench kernels` measures kernels of a GPU; leave out --device cpu");
    }
    let gpu = devices::open(0).context("--device cuda")?;
    let config = ModelConfig::read(&args.shapes).context("--shapes")?;
    let facts = gpu.driver().facts();
    let mut report = Report {
        device: facts.name.clone(),
        measured: gpu.driver().has_clock() && args.repeats > 0,
        shapes: args.shapes.display().to_string(),
        copy_gb_per_s: None,
        matmul_tflop_per_s: None,
        num_wrong: 0,
        kernels: Vec::new(),
    };
    print(format!("{}, shapes of {}\n", report.device, report.shapes))?;
    if !report.measured {
        let why = if args.repeats == 0 { "--repeats is 0" } else { "an emulated GPU has no clock" };
        print(format!("{why}: nothing is measured, only errors are looked at\n"))?;
    }
    let bench =
        KernelBench { spec: config.spec, filter: args.filter.clone(), repeats: args.repeats };
    let head = ["kernel", "shape", "max error", "ms", "rate", "bound ms", "%", ""];
    // A reader that has gone is no reason to stop, and any other failure is told once, at the end.
    let mut printed = Ok(());
    let (mut kernels, rates) = (Vec::new(), std::cell::Cell::new(None));
    let summary = run_kernels(
        &gpu,
        &bench,
        |measured| rates.set(Some(*measured)),
        |row| {
            let rates = rates.get();
            let is_compute_bound = rates.is_some_and(|rates| rates.is_compute_bound(row.work));
            let row = Row::new(row, rates.as_ref());
            let mut text = String::new();
            if kernels.is_empty() {
                if let Some(rates) = rates {
                    text = format!(
                        "copy {:.0} GB/s, matrix products {:.1} TFLOP/s: bounds come of these\n",
                        rates.bytes_per_s / 1e9,
                        rates.flops_per_s / 1e12
                    );
                }
                text += &line(head);
            }
            text += &row.line(is_compute_bound);
            kernels.push(row);
            let written = print(text);
            if printed.is_ok() {
                printed = written;
            }
        },
    )?;
    printed?;
    ensure!(
        summary.num_rows > 0,
        "--filter {}: no kernel and shape contains that",
        args.filter.as_deref().unwrap_or_default()
    );
    report.copy_gb_per_s = summary.rates.map(|rates| rates.bytes_per_s / 1e9);
    report.matmul_tflop_per_s = summary.rates.map(|rates| rates.flops_per_s / 1e12);
    report.num_wrong = summary.num_wrong;
    report.kernels = kernels;
    print(match summary.num_wrong {
        0 => format!("{} rows, all right\n", summary.num_rows),
        num_wrong => format!("{num_wrong} of {} rows are WRONG\n", summary.num_rows),
    })?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(summary.num_wrong == 0)
}
