//! A thread pool for work measured in microseconds.
//!
//! `run` splits a range of items over the caller and the workers and returns when all are done.
//! Each thread begins with its own share, the same from run to run, and then helps others
//! (`pool/parts.rs`). The caller waits only for workers that are *inside* the job
//! (`pool/gate.rs`): one that the system has not scheduled yet finds the job closed and has cost
//! nothing, so on a busy machine the pool falls back to the speed of the threads that do run.
//!
//! Between jobs workers spin for a little while, since the next one usually follows at once, then
//! yield, then park (`pool/wait.rs`): an idle pool takes no processor time.

mod disjoint;
mod gate;
mod parts;
mod pin;
mod wait;

pub use disjoint::DisjointMut;
use gate::Gate;
use parts::{Parts, Split};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Workers that help the calling thread. Dropping it ends them.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Of each thread, the caller first; empty: wherever the system likes.
    cores: Vec<usize>,
}

#[derive(Debug)]
struct Shared {
    gate: Gate<Job>,
    parts: Parts,
    panicked: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(Range<usize>) + Sync),
    split: Split,
}

// SAFETY: the pointee is `Sync`.
unsafe impl Send for Job {}

impl ThreadPool {
    /// A pool of `num_threads` in all: the caller and `num_threads - 1` workers.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        Self::on_cores(num_threads, Vec::new())
    }

    /// As [`Self::new`], with worker i bound to logical processor `cores[i]` (in turn, if there are
    /// fewer), and the caller, once it says so by [`Self::bind_caller`], to the first. None binds
    /// nobody. Where the system binds no threads, or refuses, they run as ever.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    #[must_use]
    pub fn on_cores(num_threads: usize, cores: Vec<usize>) -> Self {
        let num_workers = num_threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: Gate::new(num_workers),
            parts: Parts::new(num_workers + 1),
            panicked: AtomicBool::new(false),
        });
        let workers = (1..=num_workers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
                let work = move || {
                    core.into_iter().for_each(pin::bind_this_thread);
                    shared.work(index);
                };
                let name = format!("weft-kernel-{index}");
                let spawned = std::thread::Builder::new().name(name).spawn(work);
                spawned.expect("the system can start a thread")
            })
            .collect();
        Self { shared, workers, cores }
    }

    /// Binds the calling thread, which is about to make all calls of [`Self::run`], to the first of the
    /// pool's cores, if it was given some.
    pub fn bind_caller(&self) {
        self.cores.first().copied().into_iter().for_each(pin::bind_this_thread);
    }

    /// Threads that share a run, the caller included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` with ranges that cover `0..num_items`, each item once, about `grain` at a time.
    ///
    /// A call from within `body`, or from a second thread while one runs, does all its work itself.
    ///
    /// # Panics
    /// When `body` panics, after all threads have left it.
    pub fn run(&self, num_items: usize, grain: usize, body: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        let is_shared = !self.workers.is_empty() && num_items > grain;
        let Some(mut owner) = is_shared.then(|| self.shared.gate.try_own()).flatten() else {
            if num_items > 0 {
                body(0..num_items);
            }
            return;
        };
        let parts = &self.shared.parts;
        let split = Split::new(num_items, grain, self.num_threads(), owner.next_epoch());
        parts.begin(&split);
        let own = {
            let body: &(dyn Fn(Range<usize>) + Sync) = &body;
            // SAFETY: only the lifetime changes. Workers use the pointer only inside the job, and
            // dropping `_open`, before `body` ends, waits until they have left.
            let body: &'static (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(body) };
            let _open = owner.open(Job { body, split }, split.num_participants);
            let own = catch_unwind(AssertUnwindSafe(|| parts.work(&split, 0, body)));
            if own.is_err() {
                parts.give_up();
            }
            own
        };
        // Only a panic writes it, so looking costs nothing.
        let panicked = &self.shared.panicked;
        let worker_panicked =
            panicked.load(Ordering::Relaxed) && panicked.swap(false, Ordering::Relaxed);
        drop(owner);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!worker_panicked, "a kernel thread panicked");
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.gate.stop();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let has_work = || self.parts.has_work();
        self.gate.work(index, has_work, |job| {
            // SAFETY: this thread is inside, so `run` has not returned.
            let body = unsafe { &*job.body };
            let done = catch_unwind(AssertUnwindSafe(|| self.parts.work(&job.split, index, body)));
            if done.is_err() {
                self.parts.give_up();
                self.panicked.store(true, Ordering::Relaxed);
            }
        });
    }
}

impl ThreadPool {
    /// Calls `body(i, row i of data, out[i])` for every row, in parallel.
    ///
    /// # Panics
    /// When `data` is not `out.len()` rows of `width`.
    pub fn zip_rows<T: Send, R: Send>(
        &self,
        data: &mut [T],
        width: usize,
        out: &mut [R],
        body: impl Fn(usize, &mut [T], &mut R) + Sync,
    ) {
        assert_eq!(data.len(), out.len() * width);
        let num_rows = out.len();
        let (data, out) = (DisjointMut::new(data), DisjointMut::new(out));
        self.run(num_rows, 1, |rows| {
            for row in rows {
                // SAFETY: each row is claimed once.
                let (data, out) = unsafe {
                    (data.slice(row * width..(row + 1) * width), out.slice(row..row + 1))
                };
                body(row, data, &mut out[0]);
            }
        });
    }
}

#[cfg(test)]
mod tests;
