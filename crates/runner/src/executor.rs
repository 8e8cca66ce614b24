//! The executor: a decoder on a device, and the sampling state of the live sequences.

use crate::copier::Copier;
use crate::layout::{KvCacheDtype, RunnerConfig, RunnerError};
use crate::prepare::{PlacedAdapters, Prepared};
use crate::sequence::SequenceState;
use crate::step_device::{Picked, StepDevice, Wanted};
use rustc_hash::{FxHashMap, FxHashSet};
use std::ops::Range;
use std::sync::Arc;
use weft_kernels::{Arena, ThreadPool};
use weft_model::{CpuDevice, Decoder, LoadedModel};
use weft_types::{
    AdapterId, AdapterLoad, AdapterRef, ExecuteError, Executor, ExecutorLimits, PackedAdapter,
    SeqId, SequenceOutput, SequenceSpec, StepOutput, StepPlan,
};

/// Rows of one pass over the output head.
const MAX_LOGIT_ROWS: usize = 64;

/// A model ready to run steps.
#[derive(Debug)]
pub struct ModelExecutor<D: StepDevice> {
    decoder: Decoder<D>,
    limits: ExecutorLimits,
    sequences: FxHashMap<SeqId, SequenceState>,
    adapters: PlacedAdapters<D::Adapter>,
    copier: Copier<D::Chunks, D::Adapter>,
    /// Adapters unloaded before their copies ended.
    unwanted: FxHashSet<AdapterId>,
    /// Adapters whose copies failed.
    failed: FxHashSet<AdapterId>,
    prepared: Prepared<D::Adapter>,
    picked: Vec<Picked>,
    /// Whether the step was begun, as far as its first rows of logits.
    is_begun: bool,
}

/// On the CPU.
pub type CpuExecutor = ModelExecutor<CpuDevice>;

impl ModelExecutor<CpuDevice> {
    /// Makes the memory pool and the threads.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn new(model: LoadedModel, config: &RunnerConfig) -> Result<Self, RunnerError> {
        let asked = config.kv_dtype.unwrap_or_else(|| KvCacheDtype::default_on_cpu(&model));
        let kv_dtype = asked.on_cpu()?;
        let limits = config.limits(&model.config, asked)?;
        let num_threads = match config.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let device = CpuDevice::new(
            &model.config,
            ThreadPool::on_cores(num_threads, config.cores.clone()),
            kv_dtype,
            Arena::new(limits.num_blocks, limits.chunk_bytes),
            limits.max_model_len,
        )
        .with_activations(config.activations)
        .with_isa(config.isa);
        let decoder = Decoder::new(
            model.config,
            model.weights,
            device,
            limits.max_num_batched_tokens,
            limits.max_num_seqs.min(MAX_LOGIT_ROWS),
        );
        Self::with_decoder(decoder, limits)
    }
}

impl<D: StepDevice<Adapter: Send + 'static>> ModelExecutor<D> {
    pub(crate) fn with_decoder(
        decoder: Decoder<D>,
        limits: ExecutorLimits,
    ) -> Result<Self, RunnerError> {
        Ok(Self {
            decoder,
            limits,
            sequences: FxHashMap::default(),
            adapters: PlacedAdapters::default(),
            copier: Copier::start(D::place).map_err(RunnerError::Thread)?,
            unwanted: FxHashSet::default(),
            failed: FxHashSet::default(),
            prepared: Prepared::default(),
            picked: Vec::new(),
            is_begun: false,
        })
    }

    /// Computes the layers, and the first rows of logits.
    fn forward(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        self.check(plan)?;
        let shape = self.decoder.attention_shape(0);
        self.prepared.fill(plan, &self.sequences, &self.adapters, &shape);
        self.decoder.forward(&self.prepared.batch);
        self.decoder.device_mut().check()?;
        self.begin_pick(plan, self.logit_range(0))
    }

    /// Rows of one pass over the output head.
    fn logit_range(&self, start: usize) -> Range<usize> {
        start..(start + self.decoder.max_logit_rows()).min(self.prepared.logit_rows.len())
    }

    /// Whether all that is planned was announced and is on the device.
    fn check(&self, plan: &StepPlan) -> Result<(), ExecuteError> {
        for planned in &plan.sequences {
            let message = match self.sequences.get(&planned.seq) {
                None => format!("{:?} was planned but never announced", planned.seq),
                Some(state) => match state.spec.adapter {
                    Some(adapter) if !self.is_placed(adapter) => {
                        format!("the adapter {} is not on the device", adapter.content_hash)
                    }
                    _ => continue,
                },
            };
            return Err(ExecuteError { message });
        }
        Ok(())
    }

    fn is_placed(&self, adapter: AdapterRef) -> bool {
        let placed = self.adapters.get(&adapter.id);
        placed.is_some_and(|placed| D::layout(placed).content_hash == adapter.content_hash)
    }

    /// Computes the rows `range` of the batch's logits.
    fn begin_pick(&mut self, plan: &StepPlan, range: Range<usize>) -> Result<(), ExecuteError> {
        if range.is_empty() {
            return Ok(());
        }
        let rows = &self.prepared.logit_rows[range.clone()];
        let (logits, device) = self.decoder.logits(&self.prepared.batch, range);
        let sequences = &self.sequences;
        let state = |planned: usize| &sequences[&plan.sequences[planned].seq];
        device.begin_pick(logits, Wanted { rows, state: &state })?;
        device.check()
    }

    /// Reads what is wanted of them.
    fn pick(&mut self, plan: &StepPlan, range: Range<usize>) -> Result<(), ExecuteError> {
        let rows = &self.prepared.logit_rows[range];
        self.picked.clear();
        self.picked.resize_with(rows.len(), Picked::default);
        let (logits, device) = self.decoder.last_logits();
        let sequences = &self.sequences;
        let state = |planned: usize| &sequences[&plan.sequences[planned].seq];
        device.pick(logits, Wanted { rows, state: &state }, &mut self.picked)?;
        device.check()
    }
}

impl<D: StepDevice> Executor for ModelExecutor<D>
where
    D: std::fmt::Debug,
    D::Adapter: Send + Sync + 'static,
    D::Tensor: Send,
    D::Linear: Send + Sync,
    D::Vector: Send + Sync,
{
    fn limits(&self) -> ExecutorLimits {
        self.limits.clone()
    }

    fn stay_on_thread(&mut self) {
        self.decoder.device_mut().stay_on_thread();
    }

    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>) {
        debug_assert_eq!(load.chunks.len(), adapter.num_chunks, "one chunk for each page");
        let chunks = self.decoder.device_mut().lend_chunks(&load.chunks);
        self.copier.load(load.adapter, adapter, chunks);
    }

    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>) {
        while let Some((id, adapter)) = self.copier.next_placed() {
            if self.unwanted.remove(&id) {
                continue;
            }
            finished.push(id);
            match adapter {
                Some(adapter) => drop(self.adapters.insert(id, Arc::new(adapter))),
                // Its requests fail at their first step, and do not wait for ever.
                None => drop(self.failed.insert(id)),
            }
        }
    }

    fn unload_adapter(&mut self, adapter: AdapterId) {
        // A step that failed midway may have left its batch.
        self.prepared.clear();
        if self.adapters.remove(&adapter).is_none() && !self.failed.remove(&adapter) {
            debug_assert!(false, "{adapter:?} is not on the device");
            self.unwanted.insert(adapter);
        }
    }

    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec) {
        self.sequences.insert(seq, SequenceState::new(spec));
    }

    fn remove_sequence(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn begin(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        if D::RUNS_BEHIND {
            self.forward(plan)?;
            self.is_begun = true;
        }
        Ok(())
    }

    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError> {
        output.sequences.clear();
        output.sequences.resize_with(plan.sequences.len(), SequenceOutput::default);
        if !std::mem::take(&mut self.is_begun) {
            self.forward(plan)?;
        }
        let num_rows = self.prepared.logit_rows.len();
        for start in (0..num_rows).step_by(self.decoder.max_logit_rows()) {
            let range = self.logit_range(start);
            if start > 0 {
                self.begin_pick(plan, range.clone())?;
            }
            self.pick(plan, range.clone())?;
            for (row, picked) in self.prepared.logit_rows[range].iter().zip(&mut self.picked) {
                let output = &mut output.sequences[row.planned];
                output.prompt_logprobs.extend(picked.prompt_logprobs.take());
                if !picked.is_finite {
                    let message = "the model's output is not finite: the weights of the base or \
                                   of the adapter overflow on this input";
                    output.failed = Some(ExecuteError { message: message.into() });
                }
                if let Some(drawn) = picked.drawn.take() {
                    let state = self.sequences.get_mut(&plan.sequences[row.planned].seq);
                    state.expect("looked up above").push(drawn.token);
                    output.token = Some(drawn.token);
                    output.logprobs = drawn.logprobs;
                }
            }
        }
        self.prepared.clear();
        Ok(())
    }
}
