//! The loop. In: commands. Out: events to the streams. One thread owns all of it; it waits only
//! when there is nothing to compute.

use crate::command::{Command, Outlet, Submission};
use crate::execute::{execute, guard};
use crate::shared::{Phase, Shared};
use crate::stats::ActiveAdapters;
use crate::stream::is_last;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use weft_scheduler::{NewSequence, Scheduler, SchedulerConfig, SequenceEvent};
use weft_types::{ExecuteError, Executor, SeqId, SequenceSpec, StepOutput, StepPlan, TokenEvent};

/// Everything that the loop thread owns.
pub(crate) struct Engine {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    /// One for each sequence that the scheduler knows.
    outlets: FxHashMap<SeqId, Outlet>,
    /// The roster that `shared.stats` shows.
    shown_roster: u64,
    plan: StepPlan,
    output: StepOutput,
    events: Vec<SequenceEvent>,
    closed: Vec<SeqId>,
}

impl Engine {
    pub(crate) fn new(
        executor: Box<dyn Executor>,
        enable_prefix_caching: bool,
        inbox: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        let config = SchedulerConfig { limits: shared.limits.clone(), enable_prefix_caching };
        Self {
            executor,
            scheduler: Scheduler::new(config),
            inbox,
            shared,
            outlets: FxHashMap::default(),
            shown_roster: 0,
            plan: StepPlan::default(),
            output: StepOutput::default(),
            events: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Steps until told to stop, or until no handle is left and all is done.
    pub(crate) fn run(mut self) {
        while self.step().is_continue() {}
        self.fail_all("the server is shutting down");
    }

    fn step(&mut self) -> ControlFlow<()> {
        self.apply_commands()?;
        self.scheduler.plan(&mut self.plan);
        if !self.plan.is_empty() {
            let result = execute(&mut *self.executor, &self.plan, &mut self.output);
            self.shared.stats.count_step(result.is_ok());
            match result {
                Ok(()) => self.scheduler.commit(&self.plan, &mut self.output, &mut self.events),
                Err(error) => self.scheduler.fail(&self.plan, &error, &mut self.events),
            }
        }
        self.publish_stats();
        self.send_events();
        ControlFlow::Continue(())
    }

    /// Reads what has come, and waits for something if there is nothing to compute.
    fn apply_commands(&mut self) -> ControlFlow<()> {
        let is_last_handle_gone = loop {
            let may_wait = self.scheduler.is_empty() && self.shared.phase() == Phase::Open;
            let command = if may_wait {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match command {
                Ok(Command::Submit(submission)) => self.admit(*submission),
                Ok(Command::Wake) => {}
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

    fn admit(&mut self, submission: Submission) {
        let Submission { id, request, outlet } = submission;
        let lease = outlet.lease.as_ref();
        let new = NewSequence {
            id,
            prompt: Arc::clone(&request.prompt),
            stop: request.stop.clone(),
            adapter: lease.map(|lease| lease.content_hash()),
            cache_salt: request.cache_salt,
            uses_cache: request.sampling.prompt_logprobs.is_none(),
        };
        let spec = SequenceSpec {
            prompt: request.prompt,
            sampling: request.sampling,
            stop_token_ids: request.stop.stop_token_ids,
            min_tokens: request.stop.min_tokens,
            adapter: lease.map(|lease| Arc::clone(lease.weights())),
        };
        let added = guard(|| self.executor.add_sequence(id, spec)).and_then(|()| {
            let added = self.scheduler.add(new);
            added.map_err(|error| ExecuteError { message: error.to_string() })
        });
        match added {
            Ok(()) => drop(self.outlets.insert(id, outlet)),
            Err(error) => {
                self.forget(id);
                outlet.end(TokenEvent::Failed(error));
            }
        }
    }

    /// Aborts the sequences whose client has gone.
    fn cancel_closed(&mut self) {
        let is_closed = |(id, outlet): (&SeqId, &Outlet)| outlet.events.is_closed().then_some(*id);
        self.closed.extend(self.outlets.iter().filter_map(is_closed));
        while let Some(id) = self.closed.pop() {
            self.scheduler.abort(id);
            self.forget(id);
            self.outlets.remove(&id);
        }
    }

    /// Before the events are sent, so that who has seen an event finds its effect counted.
    fn publish_stats(&mut self) {
        let stats = &self.shared.stats;
        stats.publish(&self.scheduler);
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
                if let Some(outlet) = self.outlets.remove(&seq) {
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
