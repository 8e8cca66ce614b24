//! Where the time of a step goes, and how far each operation is from the roofline:
//! `cargo bench -p weft-runner --bench step -- MODEL [--json FILE] [--only NAME] [--repeats N]`.
//!
//! In: a GGUF file or a Hugging Face directory, such as the one that `weft pull` prints. Out: for decode steps without and with adapters and for a prefill,
//! each operation's median milliseconds, share, bytes and operations per second, and share of what the
//! machine can do, which is measured first; as a table, and as JSON for `benches/roofline.py`.
//!
//! The decoder runs over a device that times the CPU device's operations, so what is timed is what is
//! served. An operation of linears contains their adapters' updates: what those cost is the difference to
//! the same step without adapters.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use weft_kernels::attention::{AttentionItem, AttentionShape};
use weft_kernels::kv::{BLOCK_SIZE, KvSlot};
use weft_kernels::{Arena, Isa, KvDtype, PackedLinear, PlacedAdapter, ThreadPool, peak};
use weft_model::cpu::CpuTensor;
use weft_model::device::TensorKind;
use weft_model::{
    AdapterSegment, CpuDevice, Decoder, Device, ForwardBatch, LoadOptions, LoadedModel, Projection,
};
use weft_runner::{KvCacheDtype, pool_layout};
use weft_types::{
    AdapterTensor, BaseModelSpec, BlockId, ContentHash, Dtype, HeapPages, LowRankUpdate,
    LoweredAdapter, Module, PackedAdapter, PackedMatrix, Packer, Site,
};

/// Tokens before the one that a decode computes.
const CONTEXT: usize = 160;
const MOST_ROWS: usize = 128;
const MOST_SEQUENCES: usize = 16;
const REPEATS: usize = 25;

/// What a step did under one name.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    calls: usize,
    seconds: f64,
    bytes: usize,
    /// Multiplications and additions.
    ops: usize,
}

type Works = Rc<RefCell<BTreeMap<&'static str, Work>>>;

/// The CPU device under a stopwatch.
#[derive(Debug)]
struct Timed {
    device: CpuDevice,
    works: Works,
}

impl Timed {
    fn time<R>(
        &mut self,
        name: &'static str,
        bytes: usize,
        ops: usize,
        run: impl FnOnce(&mut CpuDevice) -> R,
    ) -> R {
        let began = Instant::now();
        let result = run(&mut self.device);
        let seconds = began.elapsed().as_secs_f64();
        let mut works = self.works.borrow_mut();
        let work = works.entry(name).or_default();
        *work = Work {
            calls: work.calls + 1,
            seconds: work.seconds + seconds,
            bytes: work.bytes + bytes,
            ops: work.ops + ops,
        };
        result
    }
}

/// Numbers of activations, in bytes.
fn bytes_of(tensor: &CpuTensor) -> usize {
    size_of_val(tensor.data())
}

impl Device for Timed {
    type Tensor = CpuTensor;
    type Linear = PackedLinear;
    type Vector = Vec<f32>;
    type Adapter = PlacedAdapter;

    fn tensor(&mut self, kind: TensorKind, max_rows: usize, width: usize) -> CpuTensor {
        self.device.tensor(kind, max_rows, width)
    }

    fn embed(&mut self, batch: &ForwardBatch, table: &PackedLinear, out: &mut CpuTensor) {
        let row_bytes = table.num_bytes() / table.num_outputs();
        let bytes = batch.num_rows() * row_bytes;
        self.time("embed", bytes, 0, |device| device.embed(batch, table, out));
    }

    fn rms_norm(&mut self, x: &CpuTensor, weight: &Vec<f32>, eps: f32, out: &mut CpuTensor) {
        let (bytes, ops) = (2 * bytes_of(x), 4 * x.data().len());
        self.time("norms", bytes, ops, |device| device.rms_norm(x, weight, eps, out));
    }

    fn head_norm(&mut self, x: &mut CpuTensor, weight: &Vec<f32>, eps: f32) {
        let (bytes, ops) = (2 * bytes_of(x), 4 * x.data().len());
        self.time("norms", bytes, ops, |device| device.head_norm(x, weight, eps));
    }

    fn project(
        &mut self,
        x: &CpuTensor,
        segments: &[AdapterSegment],
        projections: &mut [Projection<'_, Self>],
    ) {
        let num_rows = x.data().len() / x.width();
        let name = match projections[0].site {
            Site::Layer { module: Module::Q, .. } => "linears q k v",
            Site::Layer { module: Module::O, .. } => "linear o",
            Site::Layer { module: Module::Gate, .. } => "linears gate up",
            Site::Layer { .. } => "linear down",
            _ => "output head",
        };
        let (mut bytes, mut ops) = (0, 0);
        for projection in projections.iter() {
            let weight = projection.weight;
            bytes += weight.num_bytes();
            ops += 2 * num_rows * weight.num_inputs() * weight.num_outputs();
            for segment in segments {
                let adapter = segment.adapter.as_ref();
                let Some(update) = adapter.and_then(|adapter| adapter.at(projection.site)) else {
                    continue;
                };
                let (a, b) = (&update.packed().a, &update.packed().b);
                let size = |matrix: &PackedMatrix| matrix.rows * matrix.row_bytes();
                bytes += size(a) + size(b);
                ops += 2 * segment.rows.len() * (a.rows * a.cols + b.rows * b.cols);
            }
        }
        self.time(name, bytes, ops, |device| {
            let mut projections = projections.iter_mut().map(|projection| Projection {
                weight: projection.weight,
                bias: projection.bias,
                site: projection.site,
                accumulate: projection.accumulate,
                out: &mut *projection.out,
            });
            match (projections.next(), projections.next(), projections.next()) {
                (Some(a), Some(b), Some(c)) => device.project(x, segments, &mut [a, b, c]),
                (Some(a), Some(b), None) => device.project(x, segments, &mut [a, b]),
                (Some(a), ..) => device.project(x, segments, &mut [a]),
                (None, ..) => {}
            }
        });
    }

    fn rotate_and_store(
        &mut self,
        batch: &ForwardBatch,
        layer: usize,
        head_dim: usize,
        q: &mut CpuTensor,
        k: &mut CpuTensor,
        v: &CpuTensor,
    ) {
        let bytes = 2 * bytes_of(q) + 3 * bytes_of(k) + 2 * bytes_of(v);
        self.time("rope, store k v", bytes, 0, |device| {
            device.rotate_and_store(batch, layer, head_dim, q, k, v);
        });
    }

    fn attention(
        &mut self,
        batch: &ForwardBatch,
        layer: usize,
        shape: &AttentionShape,
        q: &CpuTensor,
        out: &mut CpuTensor,
    ) {
        let (mut bytes, mut ops) = (2 * bytes_of(q), 0);
        for item in &batch.attention {
            let positions = item.position + item.num_rows;
            bytes += 2 * 2 * positions * shape.num_kv_heads * shape.head_dim;
            ops += 4 * item.num_rows * positions * shape.num_heads * shape.head_dim;
        }
        self.time("attention", bytes, ops, |device| device.attention(batch, layer, shape, q, out));
    }

    fn gated_activation(&mut self, gate: &mut CpuTensor, up: &CpuTensor) {
        let bytes = 3 * bytes_of(up);
        self.time("activation", bytes, 0, |device| device.gated_activation(gate, up));
    }

    fn gather(&mut self, batch: &ForwardBatch, x: &CpuTensor, out: &mut CpuTensor) {
        self.time("gather", 0, 0, |device| device.gather(batch, x, out));
    }

    fn slice(&mut self, x: &CpuTensor, range: Range<usize>, out: &mut CpuTensor) {
        self.time("gather", 0, 0, |device| device.slice(x, range, out));
    }
}

/// What is run.
struct Case {
    name: &'static str,
    num_sequences: usize,
    /// Of each sequence; one is a decode.
    tokens: usize,
    /// Ranks of the adapters, one a sequence, in turn.
    ranks: &'static [usize],
}

const CASES: [Case; 7] = [
    Case { name: "decode, 1 row", num_sequences: 1, tokens: 1, ranks: &[] },
    Case { name: "decode, 1 row, r=8", num_sequences: 1, tokens: 1, ranks: &[8] },
    Case { name: "decode, 16 rows", num_sequences: 16, tokens: 1, ranks: &[] },
    Case { name: "decode, 16 rows of 16 adapters, r=8", num_sequences: 16, tokens: 1, ranks: &[8] },
    Case {
        name: "decode, 16 rows of 16 adapters, r=8, 16, 64",
        num_sequences: 16,
        tokens: 1,
        ranks: &[8, 16, 64],
    },
    Case { name: "prefill, 128 rows", num_sequences: 1, tokens: 128, ranks: &[] },
    Case { name: "prefill, 128 rows, r=16", num_sequences: 1, tokens: 128, ranks: &[16] },
];

struct Roofs {
    bytes_per_s: f64,
    /// Of each instruction set that has integer products.
    int8_ops_per_s: Vec<(Isa, f64)>,
}

impl Roofs {
    fn measure(pool: &ThreadPool) -> Self {
        let buffer = vec![1u64; 1 << 26];
        let rates = Isa::available().into_iter();
        let rates = rates.filter_map(|isa| Some((isa, peak::int8_ops_per_s(pool, isa, 5)?)));
        Self {
            bytes_per_s: peak::read_bytes_per_s(pool, &buffer, 5),
            int8_ops_per_s: rates.collect(),
        }
    }

    /// Seconds that `work` takes at the least, and whether it is for its operations. The roof is that of
    /// vector instructions, which every operation can use.
    fn bound(&self, work: &Work) -> (f64, bool) {
        let by_bytes = work.bytes as f64 / self.bytes_per_s;
        let rate = self.int8_ops_per_s.first().map_or(f64::INFINITY, |&(_, rate)| rate);
        let by_ops = work.ops as f64 / rate;
        (by_bytes.max(by_ops), by_ops > by_bytes)
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut path, mut json_path, mut only, mut repeats) = (None, None, None, REPEATS);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json_path = Some(args.next().expect("--json FILE")),
            "--only" => only = Some(args.next().expect("--only NAME")),
            "--repeats" => {
                repeats = args.next().and_then(|n| n.parse().ok()).expect("--repeats N");
            }
            _ => path = Some(PathBuf::from(arg)),
        }
    }
    let Some(path) = path else {
        eprintln!(
            "usage: cargo bench -p weft-runner --bench step -- MODEL [--json FILE] [--only NAME]"
        );
        std::process::exit(2);
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let roofs = Roofs::measure(&ThreadPool::new(num_threads));
    println!("{num_threads} threads read {:.1} GB/s", roofs.bytes_per_s / 1e9);
    for (isa, rate) in &roofs.int8_ops_per_s {
        println!("{isa}: {:.0} billion 8-bit operations/s", rate / 1e9);
    }
    let mut bench = Bench::new(&path, num_threads);
    let mut cases = Vec::new();
    let mut plain: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    for case in CASES.iter().filter(|case| only.as_ref().is_none_or(|only| only == case.name)) {
        let (seconds, works) = bench.run(case, repeats);
        let shape = (case.num_sequences, case.tokens);
        let base = *plain.entry(shape).or_insert(seconds);
        println!("\n{}", table(case, seconds, base, &works, &roofs));
        cases.push(json!({
            "name": case.name, "rows": case.num_sequences * case.tokens, "ranks": case.ranks,
            "ms": 1e3 * seconds, "tax": seconds / base - 1.0,
            "ops": works.iter().map(|(name, work)| row(name, work, &roofs)).collect::<Vec<_>>(),
        }));
    }
    if let Some(json_path) = json_path {
        let int8 = roofs.int8_ops_per_s.iter();
        let int8: BTreeMap<String, f64> =
            int8.map(|(isa, rate)| (isa.to_string(), *rate)).collect();
        let report = json!({
            "model": path.file_name().map(|name| name.to_string_lossy()), "threads": num_threads,
            "isa": Isa::detect().to_string(), "read_bytes_per_s": roofs.bytes_per_s,
            "int8_ops_per_s": int8, "context": CONTEXT, "cases": cases,
        });
        let text = serde_json::to_string_pretty(&report).expect("numbers and names");
        std::fs::write(&json_path, text + "\n").expect("the JSON is written");
    }
}

fn row(name: &str, work: &Work, roofs: &Roofs) -> Value {
    let (bound, by_ops) = roofs.bound(work);
    json!({
        "op": name, "calls": work.calls, "ms": 1e3 * work.seconds, "bytes": work.bytes,
        "ops": work.ops, "bound_ms": 1e3 * bound, "bound_by": if by_ops { "operations" } else { "bytes" },
    })
}

fn table(
    case: &Case,
    seconds: f64,
    base: f64,
    works: &BTreeMap<&'static str, Work>,
    roofs: &Roofs,
) -> String {
    let mut total = Work::default();
    for work in works.values() {
        total.seconds += work.seconds;
        total.bytes += work.bytes;
        total.ops += work.ops;
    }
    let mut text = format!("{}: {:.2} ms", case.name, 1e3 * seconds);
    if seconds != base {
        let _ = write!(text, ", {:+.0} % of the base's", 100.0 * (seconds / base - 1.0));
    }
    text += "\n| operation | ms | share | GB/s | GOP/s | bound, ms | of the bound |\n";
    text += "|---|---|---|---|---|---|---|\n";
    let rows = works.iter().map(|(name, work)| (*name, *work)).chain([("all", total)]);
    for (name, work) in rows {
        let (bound, _) = roofs.bound(&work);
        let _ = writeln!(
            text,
            "| {name} | {:.3} | {:.0} % | {:.1} | {:.0} | {:.3} | {:.0} % |",
            1e3 * work.seconds,
            100.0 * work.seconds / total.seconds,
            work.bytes as f64 / work.seconds / 1e9,
            work.ops as f64 / work.seconds / 1e9,
            1e3 * bound,
            100.0 * bound / work.seconds,
        );
    }
    text
}

/// A model, sequences with a context, and adapters on the device.
struct Bench {
    decoder: Decoder<Timed>,
    works: Works,
    shape: AttentionShape,
    vocab_size: usize,
    adapters: BTreeMap<usize, Vec<Arc<PlacedAdapter>>>,
}

/// Of each sequence.
const BLOCKS: usize = (CONTEXT + MOST_ROWS) / BLOCK_SIZE + 1;

impl Bench {
    fn new(path: &std::path::Path, num_threads: usize) -> Self {
        let model = LoadedModel::load(path, &LoadOptions::default()).expect("the model is served");
        let spec = model.spec().clone();
        let chunk_bytes = pool_layout(&model.config, KvCacheDtype::F16);
        let packed: Vec<(usize, PackedAdapter)> = [8, 16, 64]
            .into_iter()
            .map(|rank| {
                let packer = Packer::in_pages_of(Arc::new(HeapPages), chunk_bytes);
                let packed = PackedAdapter::pack_with(packer, &adapter(&spec, rank));
                (rank, packed.expect("it fits its pages"))
            })
            .collect();
        let first_adapter_chunk = MOST_SEQUENCES * BLOCKS;
        let chunks_of_all: usize = packed.iter().map(|(_, adapter)| adapter.num_chunks).sum();
        let arena = Arena::new(first_adapter_chunk + MOST_SEQUENCES * chunks_of_all, chunk_bytes);
        let max_len = BLOCKS * BLOCK_SIZE;
        let mut device = CpuDevice::new(
            &model.config,
            ThreadPool::new(num_threads),
            KvDtype::F16,
            arena,
            max_len,
        );
        let mut next = first_adapter_chunk;
        let mut adapters: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for _ in 0..MOST_SEQUENCES {
            for (rank, packed) in &packed {
                let chunks = block_ids(next..next + packed.num_chunks);
                next += packed.num_chunks;
                let placed = PlacedAdapter::copy(packed, device.lend(&chunks));
                adapters.entry(*rank).or_default().push(Arc::new(placed));
            }
        }
        let works = Works::default();
        let timed = Timed { device, works: Rc::clone(&works) };
        let weights = Arc::clone(&model.weights);
        let decoder = Decoder::new(model.config, weights, timed, MOST_ROWS, MOST_SEQUENCES);
        let shape = decoder.attention_shape(0);
        let mut bench = Self { decoder, works, shape, vocab_size: spec.vocab_size, adapters };
        for sequence in 0..MOST_SEQUENCES {
            for start in (0..CONTEXT).step_by(MOST_ROWS) {
                let tokens = MOST_ROWS.min(CONTEXT - start);
                let mut batch = ForwardBatch::default();
                bench.push(&mut batch, sequence, start..start + tokens, None);
                bench.decoder.forward(&batch);
            }
        }
        bench
    }

    /// Rows of a sequence.
    fn push(
        &self,
        batch: &mut ForwardBatch,
        sequence: usize,
        positions: Range<usize>,
        adapter: Option<Arc<PlacedAdapter>>,
    ) {
        let (first_row, first_block) = (batch.num_rows(), batch.block_tables.len());
        let blocks = sequence * BLOCKS..(sequence + 1) * BLOCKS;
        batch.block_tables.extend(block_ids(blocks.clone()));
        for position in positions.clone() {
            let token = (sequence * 7919 + position * 104_729) % self.vocab_size;
            batch.tokens.push(token as u32);
            batch.positions.push(position as u32);
            let block = BlockId((blocks.start + position / BLOCK_SIZE) as u32);
            batch.slots.push(KvSlot { block, offset: (position % BLOCK_SIZE) as u32 });
        }
        for start in (0..positions.len()).step_by(self.shape.rows_per_item()) {
            batch.attention.push(AttentionItem {
                first_row: first_row + start,
                num_rows: self.shape.rows_per_item().min(positions.len() - start),
                position: positions.start + start,
                first_block,
            });
        }
        let rows = first_row..batch.num_rows();
        let logit_row = batch.logit_rows.len();
        batch.logit_rows.push(rows.end - 1);
        batch
            .logit_segments
            .push(AdapterSegment { rows: logit_row..logit_row + 1, adapter: adapter.clone() });
        batch.segments.push(AdapterSegment { rows, adapter });
    }

    /// Median seconds of a step and of its operations.
    fn run(&mut self, case: &Case, repeats: usize) -> (f64, BTreeMap<&'static str, Work>) {
        let mut batch = ForwardBatch::default();
        for sequence in 0..case.num_sequences {
            let rank = sequence.checked_rem(case.ranks.len()).map(|index| case.ranks[index]);
            let adapter = rank.map(|rank| Arc::clone(&self.adapters[&rank][sequence]));
            let start = if case.tokens == 1 { CONTEXT } else { 0 };
            self.push(&mut batch, sequence, start..start + case.tokens, adapter);
        }
        let mut runs = Vec::new();
        for repeat in 0..=repeats {
            self.works.borrow_mut().clear();
            let began = Instant::now();
            self.decoder.forward(&batch);
            let _ = self.decoder.logits(&batch, 0..case.num_sequences);
            let seconds = began.elapsed().as_secs_f64();
            // The first touches memory that nobody has used.
            if repeat > 0 {
                runs.push((seconds, self.works.borrow().clone()));
            }
        }
        let seconds = median(runs.iter().map(|(seconds, _)| *seconds));
        let mut works = runs[0].1.clone();
        for (name, work) in &mut works {
            work.seconds = median(runs.iter().map(|(_, works)| works[name].seconds));
        }
        (seconds, works)
    }
}

/// A LoRA in f16 of all linears of all layers.
fn adapter(spec: &BaseModelSpec, rank: usize) -> LoweredAdapter {
    let tensor = |rows: usize, cols: usize| {
        let halves = (0..rows * cols).map(|i| 0x2000 + (i * 7919 % 1024) as u16);
        let data: Vec<u8> = halves.flat_map(u16::to_le_bytes).collect();
        AdapterTensor { dtype: Dtype::F16, rows, cols, data: data.into(), row_scales: None }
    };
    let mut low_rank = Vec::new();
    for layer in 0..spec.num_layers as u32 {
        for module in Module::ALL {
            let shape = spec.linear(module);
            low_rank.push(LowRankUpdate {
                site: Site::Layer { layer, module },
                scale: 0.01,
                a: tensor(rank, shape.num_inputs),
                b: tensor(rank, shape.num_outputs),
            });
        }
    }
    low_rank.sort_by_key(|update| update.site);
    LoweredAdapter {
        content_hash: ContentHash([rank as u8; 32]),
        low_rank,
        embedding: None,
        vectors: Vec::new(),
        bottlenecks: Vec::new(),
        token_rows: None,
        kv_prefix: None,
        num_virtual_tokens: 0,
        invocation_tokens: None,
    }
}

fn block_ids(range: Range<usize>) -> Vec<BlockId> {
    range.map(|block| BlockId(block as u32)).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
