//! Who is inside a job. In: owners, one at a time, that open and close it, and workers that come and go.
//! Out: a worker inside sees the job of the owner that opened it, and an owner that has closed it knows
//! that nobody is inside or will be. Knows nothing of what a job is.
//!
//! A worker says that it is inside in a place of its own, then looks whether the gate is still open; an
//! owner closes the gate, then looks who is inside. Between the two is a full fence on either side, so
//! that at least one of them sees the other. So coming and going costs no worker a cache line that other
//! workers write, and one that the system does not run is not waited for.
//!
//! Sleeping workers are woken as a tree: an owner wakes a few, each of those a few more. Nobody is woken
//! for a job that has no part for it.

use super::wait::Wait;
use std::cell::UnsafeCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::Thread;

/// How many a thread wakes.
const FAN_OUT: usize = 4;

/// Keeps what different threads write on different cache lines; processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

/// See the module.
pub(super) struct Gate<J> {
    front: Padded<Front<J>>,
    is_owned: Padded<AtomicBool>,
    workers: Box<[Padded<Worker>]>,
}

/// All that waiting workers look at. Written twice a run.
struct Front<J> {
    /// `epoch << EPOCH_SHIFT | participants << PARTICIPANTS_SHIFT | OPEN? | STOP?`
    state: AtomicU64,
    /// Written by an owner while the gate is closed and nobody inside, read by workers inside.
    job: UnsafeCell<Option<J>>,
}

#[derive(Default)]
struct Worker {
    is_inside: AtomicBool,
    is_parked: AtomicBool,
    /// Set by the worker before it parks for the first time.
    thread: OnceLock<Thread>,
}

const OPEN: u64 = 1;
const STOP: u64 = 2;
const PARTICIPANTS_SHIFT: u32 = 2;
const MAX_PARTICIPANTS: u64 = (1 << 14) - 1;
const EPOCH_SHIFT: u32 = 16;

// SAFETY: `job` is the only field without its own synchronisation: the module says who reads and
// writes it when. It is copied between threads, hence `Send`.
unsafe impl<J: Copy + Send> Sync for Gate<J> {}

impl<J> std::fmt::Debug for Gate<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("state", &self.front.0.state).finish_non_exhaustive()
    }
}

impl<J: Copy + Send> Gate<J> {
    /// For so many workers, numbered from 1; number 0 is whoever owns the gate.
    pub(super) fn new(num_workers: usize) -> Self {
        assert!((num_workers as u64) < MAX_PARTICIPANTS, "{num_workers} threads are too many");
        Self {
            front: Padded(Front { state: AtomicU64::new(0), job: UnsafeCell::new(None) }),
            is_owned: Padded::default(),
            workers: (0..num_workers).map(|_| Padded::default()).collect(),
        }
    }

    /// The gate, if nobody owns it.
    pub(super) fn try_own(&self) -> Option<Owner<'_, J>> {
        let is_owned = &self.is_owned.0;
        // Nested runs look without taking the line from the owner.
        let is_taken = is_owned.load(Ordering::Relaxed) || is_owned.swap(true, Ordering::Acquire);
        (!is_taken).then(|| Owner { gate: self })
    }

    /// Lets worker `index` do its share of jobs, as `body` says with each job, until
    /// [`Self::stop`]. Others are woken for a job only while it still `has_work`.
    pub(super) fn work(&self, index: usize, has_work: impl Fn() -> bool, body: impl Fn(J)) {
        let _ = self.worker(index).thread.set(std::thread::current());
        let mut seen = 0;
        let mut done_epoch = 0;
        let mut wait = Wait::default();
        loop {
            let state = self.front.0.state.load(Ordering::Relaxed);
            if state & STOP != 0 {
                return;
            }
            if state != seen {
                // Something goes on: the next job may be for this worker.
                seen = state;
                wait = Wait::default();
            }
            let epoch = state >> EPOCH_SHIFT;
            if state & OPEN != 0 && epoch != done_epoch && index < participants(state) {
                if let Some(inside) = self.try_enter(index, state) {
                    done_epoch = epoch;
                    if has_work() {
                        self.wake_from(index, participants(state));
                    }
                    body(inside.job);
                }
                wait = Wait::default();
            } else if wait.is_over() {
                self.park(index, state);
                wait = Wait::default();
            } else {
                wait.spin_or_yield();
            }
        }
    }

    /// Ends [`Self::work`] of all workers. Nobody owns the gate.
    pub(super) fn stop(&self) {
        self.front.0.state.fetch_or(STOP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for worker in &self.workers {
            worker.0.wake();
        }
    }

    fn try_enter(&self, index: usize, state: u64) -> Option<Inside<'_, J>> {
        let worker = self.worker(index);
        worker.is_inside.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.front.0.state.load(Ordering::Acquire) != state {
            worker.is_inside.store(false, Ordering::Relaxed);
            return None;
        }
        // SAFETY: the gate was open after this worker had said that it is inside, so no owner
        // writes until it has left.
        let job = unsafe { *self.front.0.job.get() }.expect("an open job was written");
        Some(Inside { worker, job })
    }

    /// Sleeps, unless the state has changed.
    fn park(&self, index: usize, state: u64) {
        let worker = self.worker(index);
        worker.is_parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.front.0.state.load(Ordering::Relaxed) == state {
            std::thread::park();
        }
        worker.is_parked.store(false, Ordering::Relaxed);
    }

    /// Wakes those sleepers below `participants` that are this thread's to wake. The state was read
    /// or written before.
    fn wake_from(&self, index: usize, participants: usize) {
        let first = index * FAN_OUT + 1;
        if first < participants {
            fence(Ordering::SeqCst);
            for child in first..(first + FAN_OUT).min(participants) {
                self.worker(child).wake();
            }
        }
    }

    fn worker(&self, index: usize) -> &Worker {
        &self.workers[index - 1].0
    }
}

impl Worker {
    fn wake(&self) {
        if self.is_parked.load(Ordering::Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

fn participants(state: u64) -> usize {
    (state >> PARTICIPANTS_SHIFT & MAX_PARTICIPANTS) as usize
}

/// A worker in a job; dropping it leaves.
struct Inside<'a, J> {
    worker: &'a Worker,
    job: J,
}

impl<J> Drop for Inside<'_, J> {
    fn drop(&mut self) {
        self.worker.is_inside.store(false, Ordering::Release);
    }
}

/// The one who may open the gate; dropping it lets others.
pub(super) struct Owner<'a, J> {
    gate: &'a Gate<J>,
}

impl<J: Copy + Send> Owner<'_, J> {
    /// Number of the next job.
    pub(super) fn next_epoch(&self) -> u64 {
        (self.gate.front.0.state.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1
    }

    /// Lets the threads below `participants`, of which this one is the first, into `job` until the
    /// result is dropped: that waits until all have left.
    pub(super) fn open(&mut self, job: J, participants: usize) -> Open<'_, J> {
        let Front { state, job: place } = &self.gate.front.0;
        let epoch = self.next_epoch();
        // SAFETY: this thread owns the gate, the last job was closed and nobody is inside.
        unsafe { *place.get() = Some(job) };
        let open = epoch << EPOCH_SHIFT | (participants as u64) << PARTICIPANTS_SHIFT | OPEN;
        state.store(open, Ordering::Release);
        self.gate.wake_from(0, participants);
        Open { gate: self.gate, participants }
    }
}

impl<J> Drop for Owner<'_, J> {
    fn drop(&mut self) {
        self.gate.is_owned.0.store(false, Ordering::Release);
    }
}

/// An open gate.
pub(super) struct Open<'a, J> {
    gate: &'a Gate<J>,
    participants: usize,
}

impl<J> Drop for Open<'_, J> {
    fn drop(&mut self) {
        let state = &self.gate.front.0.state;
        state.store(state.load(Ordering::Relaxed) & !OPEN, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut wait = Wait::default();
        for worker in &self.gate.workers[..self.participants - 1] {
            while worker.0.is_inside.load(Ordering::Acquire) {
                wait.spin_or_yield();
            }
        }
    }
}
