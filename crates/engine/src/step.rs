//! The loop. In: commands. Out: events to the streams. One thread owns all of it; it waits only
//! when there is nothing to compute. While a device computes a step by itself, the loop tells the
//! clients of the step before and takes in new requests.

use crate::adapted_prompt::AdaptedPrompt;
use crate::adapter_sources::AdapterSources;
use crate::command::{Command, Outlet, Submission};
use crate::execute::{begin, execute, guard};
use crate::loads::Loads;
use crate::loop_times::{LoopState, LoopTimes};
use crate::shared::{Phase, Shared};
use crate::stats::ActiveAdapters;
use crate::stream::is_last;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use weft_scheduler::{AdapterSpec, NewSequence, Scheduler, SchedulerConfig, SequenceEvent};
use weft_types::{
    AdapterId, AdapterRef, ExecuteError, Executor, SeqId, SequenceSpec, StepOutput, StepPlan,
    TokenEvent,
};

/// How often the loop looks for the end of a load when it has nothing to compute.
const LOAD_POLL: Duration = Duration::from_micros(50);

/// Everything that the loop thread owns.
pub(crate) struct Engine {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    /// One for each sequence that the scheduler knows.
    outlets: FxHashMap<SeqId, Outlet>,
    /// Adapters of those sequences, from which they are copied to the device.
    adapters: AdapterSources,
    loads: Loads,
    loaded: Vec<AdapterId>,
    /// Whether adapters came, left or were pinned since `shared.stats` was written.
    adapters_changed: bool,
    /// The roster that `shared.stats` shows.
    shown_roster: u64,
    plan: StepPlan,
    output: StepOutput,
    events: Vec<SequenceEvent>,
    closed: Vec<SeqId>,
    /// What was traced so far.
    traced: LoopTimes,
}

impl Engine {
    pub(crate) fn new(
        executor: Box<dyn Executor>,
        scheduling: SchedulerConfig,
        inbox: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        let plan = StepPlan::for_limits(&shared.limits);
        Self {
            executor,
            scheduler: Scheduler::new(scheduling),
            inbox,
            shared,
            outlets: FxHashMap::default(),
            adapters: AdapterSources::default(),
            loads: Loads::default(),
            loaded: Vec::new(),
            adapters_changed: false,
            shown_roster: 0,
            plan,
            output: StepOutput::default(),
            events: Vec::new(),
            closed: Vec::new(),
            traced: LoopTimes::default(),
        }
    }

    /// Steps until told to stop, or until no handle is left and all is done.
    pub(crate) fn run(mut self) {
        // Should it panic, that was reported, and the thread runs where it likes.
        let _ = guard(|| self.executor.stay_on_thread());
        self.turn_to(LoopState::Plan);
        while self.step().is_continue() {}
        self.tell_clients();
        self.fail_all("the server is shutting down");
    }

    fn step(&mut self) -> ControlFlow<()> {
        self.apply_commands()?;
        self.note_loaded();
        self.scheduler.expire(self.shared.now_ms(), &mut self.events);
        self.scheduler.plan(&mut self.plan);
        self.move_adapters();
        let began = Instant::now();
        self.turn_to(LoopState::Execute);
        let begun = begin(&mut *self.executor, &self.plan);
        self.turn_to(LoopState::Tell);
        self.tell_clients();
        self.turn_to(LoopState::Plan);
        self.admit_arrived();
        if !self.plan.is_empty() {
            self.turn_to(LoopState::Execute);
            let result =
                begun.and_then(|()| execute(&mut *self.executor, &self.plan, &mut self.output));
            self.turn_to(LoopState::Plan);
            self.commit(result, began);
            self.trace_step();
        }
        ControlFlow::Continue(())
    }

    fn turn_to(&self, state: LoopState) {
        self.shared.stats.clock.turn_to(state);
    }

    /// Says where the time since the last step went, to who wants to know of every step.
    fn trace_step(&mut self) {
        if tracing::enabled!(tracing::Level::TRACE) {
            let now = self.shared.stats.loop_times();
            let LoopTimes { execute, plan, tell, idle } = now.since(&self.traced);
            self.traced = now;
            let (sequences, tokens) = (self.plan.sequences.len(), self.plan.tokens.len());
            tracing::trace!(sequences, tokens, ?execute, ?plan, ?tell, ?idle, "step");
        }
    }

    /// What the step of the plan came to.
    fn commit(&mut self, result: Result<(), ExecuteError>, began: Instant) {
        self.shared.stats.count_step(result.is_ok());
        match result {
            Ok(()) => {
                self.scheduler.note_step(&self.plan, began.elapsed());
                self.scheduler.commit(&self.plan, &mut self.output, &mut self.events);
            }
            Err(error) => self.scheduler.fail(&self.plan, &error, &mut self.events),
        }
    }

    /// Sends what has happened so far.
    fn tell_clients(&mut self) {
        self.publish_stats();
        self.send_events();
    }

    /// Takes in requests while a step is computed.
    fn admit_arrived(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.apply(command);
        }
    }

    /// Reads what has come, and waits for something if there is nothing to compute.
    fn apply_commands(&mut self) -> ControlFlow<()> {
        let is_last_handle_gone = loop {
            let may_wait = self.scheduler.is_empty() && self.shared.phase() == Phase::Open;
            let command = if may_wait {
                self.tell_clients();
                self.audit();
                self.turn_to(LoopState::Idle);
                let command = self.inbox.recv().map_err(|_| TryRecvError::Disconnected);
                self.turn_to(LoopState::Plan);
                command
            } else {
                self.inbox.try_recv()
            };
            match command {
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty) => break false,
                Err(TryRecvError::Disconnected) => break true,
            }
        };
        let phase = self.shared.phase();
        let is_ending = is_last_handle_gone || phase == Phase::Draining;
        if phase == Phase::Stopping || is_ending && self.scheduler.is_empty() {
            return ControlFlow::Break(());
        }
        self.cancel_closed();
        ControlFlow::Continue(())
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.admit(*submission),
            Command::Pin(content, is_pinned) => {
                self.scheduler.set_pinned(content, is_pinned);
                self.adapters_changed = true;
            }
            Command::Discard(content) => {
                self.scheduler.discard(content);
                self.adapters_changed = true;
            }
            Command::Wake => {}
        }
    }

    fn admit(&mut self, submission: Submission) {
        let Submission { id, request, prompt, deadline_ms, mut outlet } = submission;
        let AdaptedPrompt { tokens, num_virtual, active_from } = prompt;
        // An adapter that is active nowhere is not needed on the device.
        let lease = outlet.lease.as_ref().filter(|_| active_from.is_some());
        let active_from = active_from.unwrap_or_default();
        let new = NewSequence {
            id,
            prompt: Arc::clone(&tokens),
            num_virtual_tokens: num_virtual,
            active_from,
            stop: request.stop.clone(),
            adapter: lease.map(|lease| AdapterSpec {
                hash: lease.content_hash(),
                num_chunks: lease.weights().num_chunks,
                rank: lease.weights().max_rank(),
            }),
            tenant: request.queueing.tenant,
            priority: request.queueing.priority,
            deadline_ms,
            cache_salt: request.cache_salt,
            uses_cache: request.sampling.prompt_logprobs.is_none(),
        };
        let adapter = match self.scheduler.add(new) {
            Ok(adapter) => adapter,
            Err(error) => {
                return outlet.end(TokenEvent::Failed(ExecuteError { message: error.to_string() }));
            }
        };
        let named = adapter.zip(outlet.lease.as_ref());
        let spec = SequenceSpec {
            prompt: tokens,
            sampling: request.sampling,
            stop_token_ids: request.stop.stop_token_ids,
            min_tokens: request.stop.min_tokens,
            adapter: named.map(|(id, lease)| AdapterRef {
                num_virtual_tokens: num_virtual,
                active_from,
                ..AdapterRef::new(id, lease.content_hash())
            }),
        };
        if let Err(error) = guard(|| self.executor.add_sequence(id, spec)) {
            self.scheduler.abort(id);
            self.forget(id);
            return outlet.end(TokenEvent::Failed(error));
        }
        if let Some((id, lease)) = named {
            self.adapters.add(id, lease.weights());
        }
        outlet.adapter = adapter;
        self.outlets.insert(id, outlet);
    }

    /// Tells the scheduler which adapters have come.
    fn note_loaded(&mut self) {
        if !self.scheduler.is_loading() {
            return;
        }
        let (executor, loaded) = (&mut self.executor, &mut self.loaded);
        if let Err(error) = guard(|| executor.finished_loads(loaded)) {
            self.loads.lose(error);
        }
        for id in self.loaded.drain(..) {
            if self.loads.end(id) {
                self.scheduler.adapter_loaded(id);
                self.adapters_changed = true;
            }
        }
        if self.loads.has_doubtful() {
            self.fail_waiting(|loads, id| loads.doubt(id).cloned());
        }
    }

    /// Begins what the plan wants moved, and waits a moment if there is nothing else to do.
    fn move_adapters(&mut self) {
        for &id in &self.plan.evictions {
            let _ = guard(|| self.executor.unload_adapter(id));
        }
        let loads = std::mem::take(&mut self.plan.loads);
        for load in &loads {
            let id = load.adapter;
            let Some(source) = self.adapters.get(id) else {
                debug_assert!(false, "{load:?} is for nobody");
                continue;
            };
            match guard(|| self.executor.load_adapter(load, source)) {
                Ok(()) => self.loads.begin(id),
                Err(error) => self.undo_load(id, &error),
            }
        }
        self.plan.loads = loads;
        if self.plan.is_empty() && self.scheduler.is_loading() {
            self.turn_to(LoopState::Idle);
            std::thread::sleep(LOAD_POLL);
        }
    }

    /// The executor panicked instead of beginning a load, and knows nothing of it: those who wait for
    /// it fail, and its chunks go back, so that the next who asks for the adapter has another try.
    fn undo_load(&mut self, id: AdapterId, error: &ExecuteError) {
        self.fail_waiting(|_, adapter| (adapter == id).then(|| error.clone()));
        self.scheduler.load_refused(id);
        self.adapters_changed = true;
    }

    /// Fails the sequences for whose adapter `why` has a sentence. None of them runs.
    fn fail_waiting(&mut self, why: impl Fn(&Loads, AdapterId) -> Option<ExecuteError>) {
        for (&seq, outlet) in &self.outlets {
            if let Some(error) = outlet.adapter.and_then(|id| why(&self.loads, id))
                && self.scheduler.abort(seq)
            {
                self.events.push(SequenceEvent { seq, event: TokenEvent::Failed(error) });
            }
        }
    }

    /// When nothing is left to do, all that was lent must have come back.
    fn audit(&mut self) {
        if let Err(message) = self.scheduler.check_integrity() {
            self.shared.stats.report_damage(&message);
        }
    }

    /// Aborts the sequences whose client has gone.
    fn cancel_closed(&mut self) {
        let is_closed = |(id, outlet): (&SeqId, &Outlet)| outlet.events.is_closed().then_some(*id);
        self.closed.extend(self.outlets.iter().filter_map(is_closed));
        while let Some(id) = self.closed.pop() {
            self.scheduler.abort(id);
            self.forget(id);
            self.take_outlet(id);
        }
    }

    fn take_outlet(&mut self, id: SeqId) -> Option<Outlet> {
        let outlet = self.outlets.remove(&id)?;
        outlet.adapter.iter().for_each(|&adapter| self.adapters.remove(adapter));
        Some(outlet)
    }

    /// Before the events are sent, so that who has seen an event finds its effect counted.
    fn publish_stats(&mut self) {
        let stats = &self.shared.stats;
        let adapters_changed = std::mem::take(&mut self.adapters_changed);
        stats.publish(&self.scheduler, self.shared.now_ms(), adapters_changed);
        if self.shown_roster != self.scheduler.roster_version() {
            self.shown_roster = self.scheduler.roster_version();
            stats.publish_adapters(ActiveAdapters {
                running: self.names_of(self.scheduler.running()),
                waiting: self.names_of(self.scheduler.waiting()),
            });
        }
    }

    fn names_of(&self, ids: impl Iterator<Item = SeqId>) -> Vec<String> {
        let lease_of = |id: SeqId| self.outlets.get(&id)?.lease.as_ref();
        let names: BTreeSet<&str> = ids.filter_map(lease_of).map(|lease| lease.name()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    fn send_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for SequenceEvent { seq, event } in events.drain(..) {
            if is_last(&event) {
                self.forget(seq);
                if let Some(outlet) = self.take_outlet(seq) {
                    outlet.end(event);
                }
            } else if let Some(outlet) = self.outlets.get(&seq) {
                let sent = outlet.events.try_send(event);
                let is_full = matches!(sent, Err(tokio::sync::mpsc::error::TrySendError::Full(_)));
                debug_assert!(!is_full, "{seq:?} caused more events than it can");
            }
        }
        self.events = events;
    }

    /// Ends every sequence, read or unread.
    fn fail_all(mut self, message: &str) {
        let failed = || TokenEvent::Failed(ExecuteError { message: message.to_owned() });
        for (id, outlet) in std::mem::take(&mut self.outlets) {
            self.scheduler.abort(id);
            self.forget(id);
            outlet.end(failed());
        }
        self.publish_stats();
        for command in self.inbox.try_iter() {
            if let Command::Submit(submission) = command {
                submission.outlet.end(failed());
            }
        }
    }

    fn forget(&mut self, id: SeqId) {
        // Should it panic, that was reported; there is nobody left to tell.
        let _ = guard(|| self.executor.remove_sequence(id));
    }
}
