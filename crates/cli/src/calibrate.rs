//! `weft bench calibrate`: a model in, what its steps and loads cost out. Runs hand-made steps on
//! the real executor; the simulator fits the cost model to their times.

use crate::args::BenchCalibrateArgs;
use crate::device::{self, BuiltExecutor};
use crate::output::write_json;
use crate::progress::count_bar;
use crate::serve::find_model;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_bench::{AdapterRecipe, write_adapter};
use weft_simulator::{Errors, FittedCosts, LoadPoint, StepPoint, fit_costs};
use weft_types::{
    AdapterId, AdapterLoad, AdapterRef, BaseModelSpec, BlockId, ContentHash, Executor, Module,
    PackedAdapter, Packer, PlannedSequence, SamplingParams, SeqId, SequenceSpec, StepOutput,
    StepPlan,
};

/// Of the adapters in steps.
const RANKS: [usize; 3] = [8, 16, 64];
/// Sequences that decode.
const DECODES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Tokens of a prefill.
const PREFILLS: [usize; 6] = [16, 32, 64, 128, 256, 512];
/// Distinct adapters of a step.
const ADAPTERS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const MOST_DECODES: usize = DECODES[DECODES.len() - 1];
const LONGEST_PREFILL: usize = PREFILLS[PREFILLS.len() - 1];
const MOST_ADAPTERS: usize = ADAPTERS[ADAPTERS.len() - 1];
/// Tokens before the one that a decode computes.
const CONTEXT: usize = 64;
/// Longer loads are given up.
const MAX_LOAD: Duration = Duration::from_secs(60);

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    num_sequences: usize,
    /// Of each sequence; one is a decode.
    tokens: usize,
    num_adapters: usize,
    rank: usize,
}

impl Shape {
    fn point(self, times: Vec<f64>) -> StepPoint {
        StepPoint {
            num_tokens: self.num_sequences * self.tokens,
            sum_rank: self.num_adapters * self.rank,
            seconds: median(times),
        }
    }
}

/// What was measured, and the cost model that follows.
pub struct Calibration {
    device: String,
    steps: Vec<(Shape, StepPoint)>,
    loads: Vec<LoadPoint>,
    /// The result.
    pub fit: FittedCosts,
}

/// Measures, fits, and writes the file that was asked for.
///
/// # Errors
/// If the model cannot be loaded, a step fails or the file cannot be written.
pub fn run(args: &BenchCalibrateArgs) -> Result<Calibration> {
    ensure!(args.repeats > 0, "--repeats must be at least 1");
    let source = find_model(Some(&args.model))?;
    let BuiltExecutor { executor, spec, chunk_bytes, pages, facts, .. } =
        device::build_executor(&source.path, &args.engine, RANKS[2])?;
    let packer = || Packer::in_pages_of(Arc::clone(&pages), chunk_bytes);
    let packed = RANKS
        .iter()
        .map(|&rank| random_adapter(&spec, rank, &Module::ALL, packer()))
        .collect::<Result<Vec<_>>>()?;
    let mut bench = Bench::new(executor, spec, packed, args.repeats);
    let shapes = bench.shapes();
    let bar = count_bar((args.repeats * shapes.len()) as u64, "calibrating");
    let loads = bench.time_loads(packer)?;
    bench.begin_contexts()?;
    // Round by round: what disturbs the machine for a second meets each kind of step once.
    let mut times = vec![Vec::with_capacity(args.repeats); shapes.len()];
    for _ in 0..args.repeats {
        for (&shape, times) in shapes.iter().zip(&mut times) {
            times.push(bench.time_step(shape)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let steps: Vec<(Shape, StepPoint)> =
        shapes.into_iter().zip(times).map(|(shape, times)| (shape, shape.point(times))).collect();
    let errors = if args.relative { Errors::Relative } else { Errors::Absolute };
    let points: Vec<StepPoint> = steps.iter().map(|&(_, point)| point).collect();
    let fit = fit_costs(&points, &loads, errors);
    if let Some(path) = &args.json {
        write_json(path, &fit.costs)?;
    }
    let device = format!("{}, {}", source.default_name, facts.device);
    Ok(Calibration { device, steps, loads, fit })
}

fn random_adapter(
    spec: &BaseModelSpec,
    rank: usize,
    modules: &[Module],
    packer: Packer,
) -> Result<PackedAdapter> {
    let dir = tempfile::tempdir()?;
    let recipe = AdapterRecipe { rank, modules: modules.to_vec(), seed: rank as u64 };
    write_adapter(dir.path(), spec, &recipe)?;
    let lowered = load_peft_dir(dir.path(), spec, &LoadLimits::default())?;
    Ok(PackedAdapter::pack_with(packer, &lowered)?)
}

/// The executor, and how its memory is shared: contexts of sequences first, adapters behind.
struct Bench {
    executor: Box<dyn Executor>,
    spec: BaseModelSpec,
    /// One of each of [`RANKS`].
    packed: Vec<PackedAdapter>,
    repeats: usize,
    blocks_per_sequence: usize,
    num_sequences: usize,
    /// Adapters on the device, and of which rank.
    resident: Vec<(usize, AdapterRef)>,
    next_id: u64,
    output: StepOutput,
}

impl Bench {
    fn new(
        executor: Box<dyn Executor>,
        spec: BaseModelSpec,
        packed: Vec<PackedAdapter>,
        repeats: usize,
    ) -> Self {
        let limits = executor.limits();
        let longest = limits.max_num_batched_tokens.min(limits.max_model_len).max(1);
        let prefill_blocks = LONGEST_PREFILL.min(longest).div_ceil(limits.block_size);
        let blocks_per_sequence = (CONTEXT + 1).div_ceil(limits.block_size);
        // Half of the memory is for adapters. The longest prefill has the first sequences' blocks.
        let half = limits.num_blocks / 2;
        let num_sequences = (half.max(prefill_blocks) / blocks_per_sequence)
            .min(limits.max_num_seqs)
            .min(limits.max_num_batched_tokens)
            .min(MOST_DECODES);
        Self {
            executor,
            spec,
            packed,
            repeats,
            blocks_per_sequence,
            num_sequences,
            resident: Vec::new(),
            next_id: 0,
            output: StepOutput::default(),
        }
    }

    /// Blocks of the sequences' contexts: adapters are behind them.
    fn num_context_blocks(&self) -> usize {
        let prefill = LONGEST_PREFILL.div_ceil(self.executor.limits().block_size);
        (self.num_sequences * self.blocks_per_sequence).max(prefill)
    }

    /// Blocks behind those.
    fn num_adapter_blocks(&self) -> usize {
        self.executor.limits().num_blocks.saturating_sub(self.num_context_blocks())
    }

    /// The steps that fit into the executor's limits, without adapters first, then by rank.
    fn shapes(&self) -> Vec<Shape> {
        let limits = self.executor.limits();
        let room = self.num_adapter_blocks();
        let longest = limits.max_num_batched_tokens.min(limits.max_model_len);
        let prefills: Vec<usize> = PREFILLS.into_iter().filter(|&n| n <= longest).collect();
        let decodes = DECODES.into_iter().filter(|&n| n <= self.num_sequences);
        let plain = Shape { num_sequences: 1, tokens: 1, num_adapters: 0, rank: 0 };
        let mut shapes: Vec<Shape> =
            decodes.map(|num_sequences| Shape { num_sequences, ..plain }).collect();
        shapes.extend(prefills.iter().map(|&tokens| Shape { tokens, ..plain }));
        for (rank, packed) in RANKS.into_iter().zip(&self.packed) {
            let fits = |&n: &usize| n * packed.num_chunks <= room;
            for num_sequences in [8, 32].into_iter().filter(|&n| n <= self.num_sequences) {
                let adapters = ADAPTERS.into_iter().filter(fits).filter(|&n| n <= num_sequences);
                shapes.extend(adapters.map(|num_adapters| Shape {
                    num_sequences,
                    num_adapters,
                    rank,
                    ..plain
                }));
            }
            let some = prefills.iter().filter(|&&n| n == 64 || n == 256);
            shapes.extend(some.filter(|_| fits(&1)).map(|&tokens| Shape {
                tokens,
                num_adapters: 1,
                rank,
                ..plain
            }));
        }
        shapes
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Copies an adapter to the device, under an identity of its own. Returns how long it took.
    fn load(&mut self, packed: &PackedAdapter, first_chunk: usize) -> Result<(AdapterRef, f64)> {
        let number = self.new_id();
        let mut packed = packed.clone();
        let mut hash = [0xCA; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        Arc::make_mut(&mut packed.layout).content_hash = ContentHash(hash);
        let adapter = AdapterRef::new(AdapterId(u32::try_from(number)?), packed.content_hash);
        let chunks = block_ids(first_chunk, packed.num_chunks)?;
        let load = AdapterLoad { adapter: adapter.id, chunks: chunks.into() };
        let mut finished = Vec::new();
        let began = Instant::now();
        self.executor.load_adapter(&load, Arc::new(packed));
        loop {
            self.executor.finished_loads(&mut finished);
            let took = began.elapsed();
            if finished.contains(&adapter.id) {
                return Ok((adapter, took.as_secs_f64()));
            }
            ensure!(took < MAX_LOAD, "the copy of an adapter does not end");
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// Times copies of adapters of several sizes.
    fn time_loads(&mut self, packer: impl Fn() -> Packer) -> Result<Vec<LoadPoint>> {
        let room = self.num_adapter_blocks();
        let mut sizes: Vec<PackedAdapter> = self.packed.clone();
        for rank in [8, 32] {
            sizes.push(random_adapter(&self.spec, rank, &[Module::Q, Module::V], packer())?);
        }
        sizes.retain(|packed| packed.num_chunks <= room);
        sizes.sort_by_key(|packed| packed.num_chunks);
        let mut points = Vec::new();
        for packed in &sizes {
            let mut times = Vec::new();
            // The first touches memory that nobody has used.
            for repeat in 0..=self.repeats {
                let (adapter, seconds) = self.load(packed, self.num_context_blocks())?;
                self.executor.unload_adapter(adapter.id);
                if repeat > 0 {
                    times.push(seconds);
                }
            }
            points.push(LoadPoint { num_chunks: packed.num_chunks, seconds: median(times) });
        }
        Ok(points)
    }

    /// Brings as many adapters of `rank` to the device as any step has, unless they are there.
    fn make_resident(&mut self, rank: usize) -> Result<()> {
        if self.resident.first().is_some_and(|&(resident, _)| resident == rank) {
            return Ok(());
        }
        for (_, adapter) in std::mem::take(&mut self.resident) {
            self.executor.unload_adapter(adapter.id);
        }
        let index = RANKS.iter().position(|&known| known == rank).context("an unknown rank")?;
        let packed = self.packed[index].clone();
        let room = self.num_adapter_blocks();
        for i in 0..MOST_ADAPTERS.min(room / packed.num_chunks.max(1)) {
            let first = self.num_context_blocks() + i * packed.num_chunks;
            let (adapter, _) = self.load(&packed, first)?;
            self.resident.push((rank, adapter));
        }
        Ok(())
    }

    /// Writes keys and values that decodes then read.
    fn begin_contexts(&mut self) -> Result<()> {
        let longest = self.executor.limits().max_num_batched_tokens;
        for index in 0..self.num_sequences {
            let seq = self.add_sequence(None)?;
            for start in (0..CONTEXT).step_by(longest) {
                let tokens = (CONTEXT - start).min(longest);
                let plan = self.plan(&[(seq, index)], start, tokens)?;
                self.execute(&plan)?;
            }
            self.executor.remove_sequence(seq);
        }
        Ok(())
    }

    fn add_sequence(&mut self, adapter: Option<AdapterRef>) -> Result<SeqId> {
        let seq = SeqId(self.new_id());
        let prompt = (0..=LONGEST_PREFILL.max(CONTEXT)).map(|i| self.token(seq, i));
        let spec = SequenceSpec {
            prompt: prompt.collect::<Result<_>>()?,
            sampling: SamplingParams::greedy(),
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            adapter,
        };
        self.executor.add_sequence(seq, spec);
        Ok(seq)
    }

    /// Any token: which one, no time depends on.
    fn token(&self, seq: SeqId, position: usize) -> Result<u32> {
        let number = seq.0 as usize * 7919 + position * 104_729;
        Ok(u32::try_from(number % self.spec.vocab_size)?)
    }

    /// A step in which each sequence computes `tokens` from `start` on, in the blocks of its index.
    fn plan(&self, sequences: &[(SeqId, usize)], start: usize, tokens: usize) -> Result<StepPlan> {
        let mut plan = StepPlan::default();
        let num_blocks = (start + tokens).div_ceil(self.executor.limits().block_size);
        for &(seq, index) in sequences {
            let first = plan.tokens.len();
            for position in start..start + tokens {
                plan.tokens.push(self.token(seq, position)?);
            }
            let blocks = plan.block_tables.len();
            plan.block_tables.extend(block_ids(index * self.blocks_per_sequence, num_blocks)?);
            plan.sequences.push(PlannedSequence {
                seq,
                start,
                tokens: first..plan.tokens.len(),
                blocks: blocks..plan.block_tables.len(),
                sample: true,
            });
        }
        Ok(plan)
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<f64> {
        let began = Instant::now();
        self.executor.execute(plan, &mut self.output)?;
        let seconds = began.elapsed().as_secs_f64();
        match self.output.sequences.iter().find_map(|sequence| sequence.failed.as_ref()) {
            Some(error) => bail!("a step failed: {error}"),
            None => Ok(seconds),
        }
    }

    /// Runs a step twice, and times the second.
    fn time_step(&mut self, shape: Shape) -> Result<f64> {
        if shape.num_adapters > 0 {
            self.make_resident(shape.rank)?;
        }
        let mut sequences = Vec::new();
        for index in 0..shape.num_sequences {
            let adapter = index.checked_rem(shape.num_adapters).map(|i| self.resident[i].1);
            sequences.push((self.add_sequence(adapter)?, index));
        }
        let start = if shape.tokens == 1 { CONTEXT } else { 0 };
        let plan = self.plan(&sequences, start, shape.tokens)?;
        self.execute(&plan)?;
        let seconds = self.execute(&plan)?;
        for (seq, _) in sequences {
            self.executor.remove_sequence(seq);
        }
        Ok(seconds)
    }
}

fn block_ids(first: usize, num: usize) -> Result<Vec<BlockId>> {
    (first..first + num).map(|block| Ok(BlockId(u32::try_from(block)?))).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let costs = &self.fit.costs;
        let row = |f: &mut fmt::Formatter<'_>, what: String, measured: f64, fitted: f64| {
            let error = 100.0 * (fitted / measured - 1.0);
            let (measured, fitted) = (1e3 * measured, 1e3 * fitted);
            writeln!(f, "  {what:<36} {measured:>9.2} ms {fitted:>9.2} ms {error:>+7.1} %")
        };
        writeln!(
            f,
            "{}\n\n  {:<36} {:>12} {:>12} {:>9}",
            self.device, "", "measured", "fitted", "error"
        )?;
        for (shape, point) in &self.steps {
            let what = match shape.tokens {
                1 => format!("{} decodes", shape.num_sequences),
                tokens => format!("prefill of {tokens}"),
            };
            let adapters = match shape.num_adapters {
                0 => String::new(),
                1 => format!(", 1 adapter of rank {}", shape.rank),
                num => format!(", {num} adapters of rank {}", shape.rank),
            };
            let fitted = costs.step(point.num_tokens, point.sum_rank);
            row(f, what + &adapters, point.seconds, fitted)?;
        }
        for load in &self.loads {
            let what = format!("load of {} chunks", load.num_chunks);
            row(f, what, load.seconds, costs.load(load.num_chunks))?;
        }
        writeln!(f, "\nR² {:.4} of steps, {:.4} of loads", self.fit.step_r2, self.fit.load_r2)?;
        writeln!(f, "{}", serde_json::to_string_pretty(costs).map_err(|_| fmt::Error)?)
    }
}
