//! Linears of all formats, as a layer has them: those that share their input in one launch.

use super::Work;
use super::inputs::{Deviation, Rng, Sets, from_halves, precision, sample, to_f64};
use super::session::{Case, Session};
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::embedding;
use crate::ops::matmul::{Linear, Output, linear, reference};
use crate::weights::{CudaLinear, WeightFormat};
use weft_kernels::codebook::Codebook;
use weft_types::Module;

/// Sums of so many products in f32, however they are ordered.
const SUM_TOLERANCE: f64 = 2e-4;
/// Outputs that are compared: rows, and outputs of a row.
const CHECKED_ROWS: usize = 4;
const CHECKED_OUTPUTS: usize = 24;

const FORMATS: [(&str, WeightFormat); 4] = [
    ("dense", WeightFormat::Dense),
    ("W4", WeightFormat::W4),
    ("W8", WeightFormat::W8 { group: 32, offset: 128, has_min: false }),
    ("NF4", WeightFormat::Codebook(Codebook::Nf4)),
];

/// Linears of one launch: their name, inputs, the outputs of each, whether these are f32.
struct Group {
    name: &'static str,
    num_inputs: usize,
    outputs: Vec<usize>,
    is_f32: bool,
}

fn groups(session: &Session<'_>) -> Vec<Group> {
    let spec = &session.spec;
    let group = |name, modules: &[Module], is_f32| Group {
        name,
        num_inputs: spec.linear(modules[0]).num_inputs,
        outputs: modules.iter().map(|&module| spec.linear(module).num_outputs).collect(),
        is_f32,
    };
    vec![
        group("q k v", &[Module::Q, Module::K, Module::V], false),
        group("o", &[Module::O], true),
        group("gate up", &[Module::Gate, Module::Up], false),
        group("down", &[Module::Down], true),
    ]
}

/// See the module. The output head is dense or of 8 bits, and decodes.
pub(super) fn linears(session: &mut Session<'_>) -> Result<(), DriverError> {
    let head = Group {
        name: "head",
        num_inputs: session.spec.hidden_size,
        outputs: vec![session.spec.vocab_size],
        is_f32: true,
    };
    let all_rows: Vec<usize> = session.all_rows().collect();
    for (format_name, format) in FORMATS {
        for group in groups(session) {
            linears_of(session, &group, (format_name, format), &all_rows)?;
        }
        if matches!(format, WeightFormat::Dense | WeightFormat::W8 { .. }) {
            linears_of(session, &head, (format_name, format), &session.decode_rows())?;
        }
    }
    Ok(())
}

/// One set of weights.
fn weights(
    gpu: &Gpu,
    half: HalfType,
    format: WeightFormat,
    group: &Group,
    set: usize,
) -> Result<Vec<CudaLinear>, DriverError> {
    let part = |(index, &num_outputs): (usize, &usize)| {
        let seed = (set * 8 + index) as u32;
        CudaLinear::random(gpu, half, format, [num_outputs, group.num_inputs], seed)
    };
    group.outputs.iter().enumerate().map(part).collect()
}

fn linears_of(
    session: &mut Session<'_>,
    group: &Group,
    (format_name, format): (&str, WeightFormat),
    all_rows: &[usize],
) -> Result<(), DriverError> {
    let (gpu, half, num_inputs) = (session.gpu.clone(), session.half, group.num_inputs);
    let num_outputs: usize = group.outputs.iter().sum();
    let op = format!("linear {format_name} {}", group.name);
    let shape_of = |num_rows: usize| format!("[{num_rows}, {num_inputs}] → {num_outputs}");
    let wanted: Vec<usize> = all_rows
        .iter()
        .copied()
        .filter(|&num_rows| session.wants(&op, &shape_of(num_rows)))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let first = weights(&gpu, half, format, group, 0)?;
    let weight_bytes: usize = first.iter().map(CudaLinear::num_bytes).sum();
    let num_sets = session.num_sets(weight_bytes);
    let mut sets = vec![first];
    for set in 1..num_sets {
        sets.push(weights(&gpu, half, format, group, set)?);
    }
    for num_rows in wanted {
        let bits = Rng::new(7).halves(half, num_rows * num_inputs);
        let x = Sets::new(&gpu, 1, &bits)?;
        let outputs = Outputs::new(&gpu, group, num_rows)?;
        let launch = |set: usize| {
            let linears: Vec<Linear<'_>> = sets[set]
                .iter()
                .zip(outputs.operands())
                .map(|(weight, out)| Linear { weight, bias: DevicePtr::NULL, out })
                .collect();
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { linear(&gpu, x.ptr(0), num_rows, &linears) }
        };
        let out_bytes = if group.is_f32 { size_of::<f32>() } else { size_of::<u16>() };
        let activation_bytes = bits.len() * size_of::<u16>() + num_rows * num_outputs * out_bytes;
        let work = Work {
            bytes: (weight_bytes + activation_bytes) as f64,
            flops: 2.0 * num_rows as f64 * num_inputs as f64 * num_outputs as f64,
        };
        // Weights that are no floats are rounded to 16 bits before they are multiplied.
        let rounded =
            f64::from(u8::from(format != WeightFormat::Dense)) + f64::from(u8::from(!group.is_f32));
        let case = Case {
            op: op.clone(),
            shape: shape_of(num_rows),
            tolerance: SUM_TOLERANCE + rounded * precision(half),
            work,
            num_sets,
        };
        let error = || {
            let mut deviation = Deviation::default();
            for (part, weight) in sets[0].iter().enumerate() {
                let columns = sample(weight.num_outputs(), CHECKED_OUTPUTS);
                let weight_rows = rows_of(&gpu, weight, &columns)?;
                let got = outputs.read(part, half)?;
                for row in sample(num_rows, CHECKED_ROWS) {
                    let x = from_halves(half, &bits[row * num_inputs..][..num_inputs]);
                    let want = reference(&x, &weight_rows, num_inputs, None);
                    let got: Vec<f64> = columns
                        .iter()
                        .map(|&column| got[row * weight.num_outputs() + column])
                        .collect();
                    deviation.add(&got, &want);
                }
            }
            Ok(deviation.value())
        };
        session.measure(case, launch, error)?;
    }
    Ok(())
}

/// Some rows of a weight, as the embedding kernel, which has a test of its own, reads them.
fn rows_of(gpu: &Gpu, weight: &CudaLinear, rows: &[usize]) -> Result<Vec<f64>, DriverError> {
    let tokens: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let tokens = gpu.upload(&tokens)?;
    let out = gpu.alloc::<f32>(rows.len() * weight.num_inputs())?;
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { embedding::embed(gpu, weight, (tokens.ptr(), out.ptr()), rows.len())? };
    Ok(to_f64(&out.read(0..out.len())?))
}

/// What a launch writes: a buffer a linear, of 16 bits or added to f32.
enum Outputs {
    Half(Vec<Buffer<u16>>),
    F32(Vec<Buffer<f32>>),
}

impl Outputs {
    fn new(gpu: &Gpu, group: &Group, num_rows: usize) -> Result<Self, DriverError> {
        let lens = group.outputs.iter().map(|num_outputs| num_rows * num_outputs);
        Ok(if group.is_f32 {
            Self::F32(lens.map(|len| gpu.upload(&vec![0.0; len])).collect::<Result<_, _>>()?)
        } else {
            Self::Half(lens.map(|len| gpu.alloc(len)).collect::<Result<_, _>>()?)
        })
    }

    fn operands(&self) -> Vec<Output> {
        match self {
            Self::Half(parts) => parts.iter().map(|out| Output::Half(out.ptr())).collect(),
            Self::F32(parts) => parts.iter().map(|out| Output::AddF32(out.ptr())).collect(),
        }
    }

    fn read(&self, part: usize, half: HalfType) -> Result<Vec<f64>, DriverError> {
        Ok(match self {
            Self::Half(parts) => from_halves(half, &parts[part].read(0..parts[part].len())?),
            Self::F32(parts) => to_f64(&parts[part].read(0..parts[part].len())?),
        })
    }
}
