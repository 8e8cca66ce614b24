//! Low-rank updates in decode (BGMV) and in prefill (SGMV), and gains. A set is all adapters of a batch
//! at other addresses.

use super::Work;
use super::inputs::{
    Deviation, Rng, Sets, from_f32_bytes, from_half_bytes, from_halves, precision, sample,
};
use super::session::{Case, Session};
use super::workload::Workload;
use crate::adapter_table::{self, Gain};
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::gains::apply_gains;
use crate::ops::lora::{self, LoraInput, LoraTarget, OutType};
use crate::work_list::{LoraPiece, MAX_DECODE_ROWS, MIN_PREFILL_SEGMENT, WorkList};
use std::fmt;
use weft_types::{
    AdapterTensor, BaseModelSpec, Dtype, LowRankUpdate, LoweredAdapter, Module, PackedAdapter,
    Site, SiteVectors,
};

/// Bytes of a page; a row of any matrix fits.
const PAGE_BYTES: usize = 1 << 20;
const NUM_LAYERS: usize = 1;
/// Rows that are compared.
const CHECKED_ROWS: usize = 4;

/// Linears that share their input, as a layer has them.
const GROUPS: [(&str, &[Module]); 4] = [
    ("q k v", &[Module::Q, Module::K, Module::V]),
    ("o", &[Module::O]),
    ("gate up", &[Module::Gate, Module::Up]),
    ("down", &[Module::Down]),
];

/// Ranks of adapters, in turn.
#[derive(Clone, Copy)]
struct Ranks(&'static [usize]);

const RANKS: [Ranks; 2] = [Ranks(&[16]), Ranks(&[8, 16, 32, 64])];
const LARGE_RANK: Ranks = Ranks(&[64]);

impl Ranks {
    fn of(self, index: usize) -> usize {
        self.0[index % self.0.len()]
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "r{}", ranks.join(","))
    }
}

fn site(module: Module) -> Site {
    Site::Layer { layer: 0, module }
}

fn site_index(module: Module) -> u32 {
    adapter_table::site_index(site(module), NUM_LAYERS)
}

fn tensor(rng: &mut Rng, rows: usize, cols: usize) -> AdapterTensor {
    let bits = rng.halves(HalfType::F16, rows * cols);
    let data = bytemuck::cast_slice(&bits).into();
    AdapterTensor { dtype: Dtype::F16, rows, cols, data, row_scales: None }
}

fn values(tensor: &AdapterTensor) -> Vec<f64> {
    from_half_bytes(HalfType::F16, &tensor.data)
}

/// An adapter for some linears of a layer.
fn adapter(
    rng: &mut Rng,
    spec: &BaseModelSpec,
    modules: &[Module],
    index: usize,
    rank: usize,
) -> LoweredAdapter {
    let update = |&module: &Module| {
        let shape = spec.linear(module);
        LowRankUpdate {
            site: site(module),
            // Another for each adapter, so that one taken for another shows.
            scale: 0.5 + (index % 7) as f32 / 8.0,
            a: tensor(rng, rank, shape.num_inputs),
            b: tensor(rng, rank, shape.num_outputs),
        }
    };
    let low_rank = modules.iter().map(update).collect();
    LoweredAdapter { low_rank, ..LoweredAdapter::default() }
}

/// An adapter in device memory.
struct Placed {
    table: Buffer<u8>,
    _pages: Vec<Buffer<u8>>,
}

impl Placed {
    fn new(gpu: &Gpu, packed: &PackedAdapter) -> Result<Self, DriverError> {
        let pages: Vec<_> =
            packed.pages.iter().map(|page| gpu.upload(page)).collect::<Result<_, _>>()?;
        let mut table = gpu.alloc::<u8>(adapter_table::table_bytes(&packed.layout, NUM_LAYERS))?;
        let address = |page: usize| pages[page].ptr();
        let bytes = adapter_table::build(&packed.layout, NUM_LAYERS, address, table.ptr());
        table.write(0, &bytes)?;
        Ok(Self { table, _pages: pages })
    }
}

/// A batch: adapters, which rows they have, and all of that on the device for each set.
struct Batch {
    lowered: Vec<LoweredAdapter>,
    /// Rows of each adapter.
    segments: Vec<usize>,
    /// Holds the memory that pieces name.
    _placed: Vec<Vec<Placed>>,
    pieces: Vec<Buffer<LoraPiece>>,
    num_pieces: usize,
    max_rank: usize,
}

/// Which kernels a batch is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decode,
    Prefill,
}

/// Bytes of A and B of all adapters.
fn adapter_bytes(
    spec: &BaseModelSpec,
    modules: &[Module],
    ranks: impl Iterator<Item = usize>,
) -> usize {
    let of_rank: usize = modules
        .iter()
        .map(|&module| {
            let shape = spec.linear(module);
            (shape.num_inputs + shape.num_outputs) * size_of::<u16>()
        })
        .sum();
    ranks.map(|rank| rank * of_rank).sum()
}

impl Batch {
    fn new(
        gpu: &Gpu,
        spec: &BaseModelSpec,
        modules: &[Module],
        (segments, ranks): (Vec<usize>, Ranks),
        (kind, num_sets): (Kind, usize),
    ) -> Result<Self, DriverError> {
        let mut rng = Rng::new(12);
        let lowered: Vec<LoweredAdapter> = (0..segments.len())
            .map(|index| adapter(&mut rng, spec, modules, index, ranks.of(index)))
            .collect();
        Self::of(gpu, lowered, segments, (kind, num_sets))
    }

    /// These adapters, with so many rows each.
    fn of(
        gpu: &Gpu,
        lowered: Vec<LoweredAdapter>,
        segments: Vec<usize>,
        (kind, num_sets): (Kind, usize),
    ) -> Result<Self, DriverError> {
        let pack = |lowered| {
            PackedAdapter::pack(lowered, PAGE_BYTES).map_err(|error| DriverError(error.to_string()))
        };
        let packed: Vec<_> = lowered.iter().map(pack).collect::<Result<_, _>>()?;
        let (mut placed, mut pieces, mut num_pieces) = (Vec::new(), Vec::new(), 0);
        for _ in 0..num_sets {
            let adapters: Vec<Placed> =
                packed.iter().map(|packed| Placed::new(gpu, packed)).collect::<Result<_, _>>()?;
            let (mut list, mut row) = (WorkList::default(), 0);
            list.build(segments.iter().zip(&adapters).map(|(&num_rows, adapter)| {
                row += num_rows;
                (row - num_rows..row, adapter.table.ptr())
            }));
            let of_kind = match kind {
                Kind::Decode => split_for_decode(&list),
                Kind::Prefill => list.prefill().to_vec(),
            };
            num_pieces = of_kind.len();
            pieces.push(gpu.upload(&of_kind)?);
            placed.push(adapters);
        }
        let max_rank = lowered.iter().map(LoweredAdapter::max_rank).max().unwrap_or(0);
        Ok(Self { lowered, segments, _placed: placed, pieces, num_pieces, max_rank })
    }

    /// The adapter that a row has.
    fn owner(&self, row: usize) -> &LoweredAdapter {
        let mut end = 0;
        let index = self.segments.iter().position(|num_rows| {
            end += num_rows;
            row < end
        });
        &self.lowered[index.unwrap_or(0)]
    }
}

/// Long segments go to the prefill kernels in a step; here the others are measured with them, too.
fn split_for_decode(list: &WorkList) -> Vec<LoraPiece> {
    let max_rows = MAX_DECODE_ROWS as u32;
    let mut pieces = list.decode().to_vec();
    for piece in list.prefill() {
        pieces.extend((0..piece.num_rows).step_by(max_rows as usize).map(|first| LoraPiece {
            first_row: piece.first_row + first,
            num_rows: max_rows.min(piece.num_rows - first),
            ..*piece
        }));
    }
    pieces
}

/// Batches that decode: all workloads and ranks. `distinct` is DESIGN's worst case.
pub(super) fn bgmv(session: &mut Session<'_>) -> Result<(), DriverError> {
    for (name, modules) in GROUPS {
        for num_rows in session.decode_rows() {
            // One row is the same in all workloads; other groups are measured in one batch.
            let all = num_rows > 1 && (modules[0] == Module::Q || num_rows == 32);
            for workload in Workload::ALL {
                for ranks in RANKS {
                    let is_first = workload == Workload::Distinct && ranks.0.len() == 1;
                    // Of one adapter, the first rank is the only one.
                    if workload == Workload::Identical && ranks.0.len() > 1 {
                        continue;
                    }
                    if all || is_first {
                        let segments = workload.segments(num_rows);
                        let what = format!("BGMV {name} {workload} {ranks}");
                        update(session, (what, modules), (segments, ranks), Kind::Decode)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Prompts: one adapter, and as many as a chunk can be shared by. And batches that decode with one
/// adapter, which a step of that many rows gives to these kernels.
pub(super) fn sgmv(session: &mut Session<'_>) -> Result<(), DriverError> {
    let num_rows = session.prefill_rows();
    for num_rows in session.decode_rows().into_iter().filter(|&rows| rows >= MIN_PREFILL_SEGMENT) {
        let what = format!("SGMV q k v identical {}", RANKS[0]);
        update(session, (what, GROUPS[0].1), (vec![num_rows], RANKS[0]), Kind::Prefill)?;
    }
    for (name, modules) in GROUPS {
        for (num_adapters, all_ranks) in [(1, [RANKS[0], LARGE_RANK]), (4, RANKS)] {
            for ranks in all_ranks {
                let rows_of_each = num_rows / num_adapters;
                let mut segments = vec![rows_of_each; num_adapters];
                segments[0] += num_rows - num_adapters * rows_of_each;
                let what = format!("SGMV {name} of {num_adapters} {ranks}");
                update(session, (what, modules), (segments, ranks), Kind::Prefill)?;
            }
        }
    }
    Ok(())
}

fn update(
    session: &mut Session<'_>,
    (op, modules): (String, &[Module]),
    (segments, ranks): (Vec<usize>, Ranks),
    kind: Kind,
) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let num_rows: usize = segments.iter().sum();
    let num_inputs = spec.linear(modules[0]).num_inputs;
    let num_outputs: usize = modules.iter().map(|&module| spec.linear(module).num_outputs).sum();
    let shape = format!("[{num_rows}, {num_inputs}] → {num_outputs}");
    if !session.wants(&op, &shape) {
        return Ok(());
    }
    let weight_bytes = adapter_bytes(&spec, modules, (0..segments.len()).map(|i| ranks.of(i)));
    let num_sets = session.num_sets(weight_bytes);
    let flops: usize = segments
        .iter()
        .enumerate()
        .map(|(i, &rows)| 2 * rows * ranks.of(i) * (num_inputs * modules.len() + num_outputs))
        .sum();
    let batch = Batch::new(&gpu, &spec, modules, (segments, ranks), (kind, num_sets))?;
    let bits = Rng::new(13).halves(half, num_rows * num_inputs);
    let x = gpu.upload(&bits)?;
    // The residual stream is f32.
    let is_f32 = matches!(modules[0], Module::O | Module::Down);
    let (out_type, value_bytes) =
        if is_f32 { (OutType::F32, size_of::<f32>()) } else { (OutType::Half, size_of::<u16>()) };
    let outs: Vec<Buffer<u8>> = modules
        .iter()
        .map(|&module| {
            gpu.upload(&vec![0; num_rows * spec.linear(module).num_outputs * value_bytes])
        })
        .collect::<Result<_, _>>()?;
    let targets: Vec<LoraTarget> = modules
        .iter()
        .zip(&outs)
        .map(|(&module, out)| LoraTarget {
            site: site_index(module),
            num_outputs: spec.linear(module).num_outputs,
            out: out.ptr(),
        })
        .collect();
    let h = gpu.alloc::<f32>(lora::scratch_len(num_rows, batch.max_rank, num_inputs))?;
    let launch = |set: usize| {
        let input = LoraInput {
            pieces: batch.pieces[set].ptr(),
            num_pieces: batch.num_pieces,
            x: x.ptr(),
            num_inputs,
            num_rows,
            max_rank: batch.max_rank,
            h: h.ptr(),
        };
        // SAFETY: the buffers are as long as the shapes say, the adapters are there.
        unsafe {
            match kind {
                Kind::Decode => lora::bgmv(&gpu, (half, out_type), &input, &targets),
                Kind::Prefill => lora::sgmv(&gpu, (half, out_type), &input, &targets),
            }
        }
    };
    let error = || {
        let mut largest = 0f64;
        for (&module, out) in modules.iter().zip(&outs) {
            let bytes = out.read(0..out.len())?;
            let got = if is_f32 { from_f32_bytes(&bytes) } else { from_half_bytes(half, &bytes) };
            let num_outputs = spec.linear(module).num_outputs;
            for row in sample(num_rows, CHECKED_ROWS) {
                let Some(update) = batch.owner(row).at(site(module)) else { continue };
                let x = from_halves(half, &bits[row * num_inputs..][..num_inputs]);
                let scales = vec![update.scale; update.rank()];
                let want = lora::reference(&x, &values(&update.a), &values(&update.b), &scales);
                largest =
                    largest.max(Deviation::of(&got[row * num_outputs..][..num_outputs], &want));
            }
        }
        Ok(largest)
    };
    // In decode, rows of x and y are in the cache; a prompt's are many.
    let activation_bytes = match kind {
        Kind::Decode => 0,
        Kind::Prefill => num_rows * (num_inputs * size_of::<u16>() + 2 * num_outputs * value_bytes),
    };
    let work = Work { bytes: (weight_bytes + activation_bytes) as f64, flops: flops as f64 };
    let tolerance = 3.0 * precision(half);
    session.measure(Case { op, shape, tolerance, work, num_sets }, launch, error)
}

/// Input gains of one adapter that all rows have.
pub(super) fn gains(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let width = spec.hidden_size;
    for (num_rows, kind) in [(32, Kind::Decode), (session.prefill_rows(), Kind::Prefill)] {
        let (op, shape) = ("gains", format!("[{num_rows}, {width}]"));
        if !session.wants(op, &shape) {
            continue;
        }
        let num_bytes = 2 * num_rows * width * size_of::<u16>();
        let num_sets = session.num_sets(num_bytes);
        let mut rng = Rng::new(14);
        let gain = rng.floats(width);
        let input = Some(gain.clone().into_boxed_slice());
        let vectors = vec![SiteVectors { site: site(Module::Q), input, output: None, shift: None }];
        let lowered = vec![LoweredAdapter { vectors, ..LoweredAdapter::default() }];
        let batch = Batch::of(&gpu, lowered, vec![num_rows], (kind, 1))?;
        let index = site_index(Module::Q);
        let x = rng.halves(half, num_rows * width);
        let device_x = Sets::new(&gpu, num_sets, &x)?;
        let launch = |set| {
            let pieces = (batch.pieces[0].ptr(), batch.num_pieces);
            let operand: (DevicePtr, usize) = (device_x.ptr(set), width);
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { apply_gains(&gpu, Some(half), pieces, (index, Gain::In), operand) }
        };
        let error = || {
            let old = from_halves(half, &x);
            let factor = |i: usize| f64::from(gain[i % width]);
            let want: Vec<f64> = old.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
            Ok(Deviation::of(&from_halves(half, &device_x.read()?), &want))
        };
        let (tolerance, work) = (2.0 * precision(half), Work::bytes(num_bytes));
        session.measure(Case { op: op.into(), shape, tolerance, work, num_sets }, launch, error)?;
    }
    Ok(())
}
