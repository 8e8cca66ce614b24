//! A thread pool for work measured in microseconds.
//!
//! `run` splits a range of items over the caller and the workers and returns when all are done.
//! Items are claimed from a shared counter. The caller waits only for workers that are *inside* the
//! job: one that the system has not scheduled yet finds the job closed and has cost nothing, so on
//! a busy machine the pool falls back to the speed of the threads that do run.
//!
//! Between jobs workers spin for a little while, since the next one usually follows at once, then
//! yield, then park.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Spins before the first yield: some tens of microseconds, longer than threads wait for each other
/// between the parts of a step. Whoever yields may get the processor back only after as long.
const SPINS_BEFORE_YIELD: u32 = 1000;
/// Yields before a worker parks: some tens of microseconds.
const YIELDS_BEFORE_PARK: u32 = 100;

/// Workers that help the calling thread. Dropping it ends them.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// The current job and who is in it.
struct Shared {
    /// `epoch << 32 | OPEN? | number of workers inside`
    state: AtomicU64,
    /// Written by the owner while the job is closed and empty, read by workers inside.
    job: UnsafeCell<Option<Job>>,
    next_item: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(Range<usize>) + Sync),
    num_items: usize,
    grain: usize,
}

// SAFETY: `job` is the only field without its own synchronisation. The owner (whoever set OWNED) writes it only when no worker is
// inside and none can enter; workers read it only inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointee of a job is `Sync`.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool of `num_threads` in all: the caller and `num_threads - 1` workers.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_item: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..num_threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("weft-kernel-{index}"))
                    .spawn(move || shared.work())
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, workers }
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
        if self.workers.is_empty() || num_items <= grain || !self.shared.try_own() {
            if num_items > 0 {
                body(0..num_items);
            }
            return;
        }
        let body: &(dyn Fn(Range<usize>) + Sync) = &body;
        // SAFETY: only the lifetime changes. Workers use the pointer only inside the job, and this
        // function does not return before it is closed and empty.
        let body: &'static (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(body) };
        let job = Job { body, num_items, grain };
        self.shared.open(job);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.claim(job)));
        if own.is_err() {
            // Nobody need go on with the rest.
            self.shared.next_item.store(num_items, Ordering::Relaxed);
        }
        self.shared.close();
        let worker_panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!worker_panicked, "a kernel thread panicked");
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// Set in `state` while a caller owns the job slot.
const OWNED: u64 = 1 << 30;

impl Shared {
    fn try_own(&self) -> bool {
        self.state.fetch_or(OWNED, Ordering::Acquire) & OWNED == 0
    }

    fn open(&self, job: Job) {
        // SAFETY: this thread owns the slot, the last job is closed and nobody is inside.
        unsafe { *self.job.get() = Some(job) };
        self.next_item.store(0, Ordering::Relaxed);
        self.state.fetch_add(EPOCH | OPEN, Ordering::Release);
    }

    /// Lets nobody in any more, waits until all have left, and gives the slot back.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut wait = Wait::default();
        while self.state.load(Ordering::Acquire) & INSIDE & !OWNED != 0 {
            wait.spin_or_yield();
        }
        self.state.fetch_and(!OWNED, Ordering::Release);
    }

    fn work(&self) {
        let mut seen_epoch = 0;
        let mut wait = Wait::default();
        while !self.stop.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Relaxed);
            if state & OPEN == 0 || state / EPOCH == seen_epoch {
                if wait.num_yields < YIELDS_BEFORE_PARK {
                    wait.spin_or_yield();
                } else {
                    std::thread::park();
                    wait = Wait::default();
                }
                continue;
            }
            let enter = self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if enter.is_err() {
                continue;
            }
            seen_epoch = state / EPOCH;
            // SAFETY: this thread is inside, so the owner does not write.
            let job = unsafe { *self.job.get() }.expect("an open job was written");
            if catch_unwind(AssertUnwindSafe(|| self.claim(job))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::Release);
            wait = Wait::default();
        }
    }

    fn claim(&self, job: Job) {
        loop {
            let start = self.next_item.fetch_add(job.grain, Ordering::Relaxed);
            if start >= job.num_items {
                return;
            }
            // SAFETY: this thread is the owner or inside, so `run` has not returned.
            let body = unsafe { &*job.body };
            body(start..(start + job.grain).min(job.num_items));
        }
    }
}

/// Waiting that starts eager and turns polite: a spinning thread may hold the very core that the
/// awaited one needs.
#[derive(Default)]
struct Wait {
    num_spins: u32,
    num_yields: u32,
}

impl Wait {
    fn spin_or_yield(&mut self) {
        if self.num_spins < SPINS_BEFORE_YIELD {
            self.num_spins += 1;
            std::hint::spin_loop();
        } else {
            self.num_yields += 1;
            std::thread::yield_now();
        }
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

/// A mutable slice that several threads write in disjoint parts.
#[derive(Clone, Copy, Debug)]
pub struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Borrows `slice` for disjoint writes.
    #[must_use]
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` elements at `start`, without a borrow of those that are never accessed.
    ///
    /// # Safety
    /// The memory is valid for `'a`, and elements accessed through the result are accessed through
    /// nothing else meanwhile.
    pub(crate) unsafe fn from_raw(start: *mut T, len: usize) -> Self {
        Self { start, len, borrow: PhantomData }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites one element.
    ///
    /// # Safety
    /// No other thread may access the element at once.
    ///
    /// # Panics
    /// When `index` is out of bounds.
    pub unsafe fn write(&self, index: usize, value: T)
    where
        T: Copy,
    {
        assert!(index < self.len, "index out of bounds");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { self.start.add(index).write(value) };
    }

    /// The elements of `range`, to be read by any number of threads.
    ///
    /// # Safety
    /// No thread may write them at once.
    ///
    /// # Panics
    /// When `range` is out of bounds.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range out of bounds");
        // SAFETY: in bounds by the assertion, only read by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two threads may hold overlapping ranges at once.
    ///
    /// # Panics
    /// When `range` is out of bounds.
    #[must_use]
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range out of bounds");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_and_concurrent_runs_complete() {
        let pool = ThreadPool::new(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, 1, |outer| {
                            pool.run(outer.len() * 3, 1, |inner| {
                                sum.fetch_add(inner.len(), Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 15);
    }

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for num_threads in 1..5 {
            let pool = ThreadPool::new(num_threads);
            for num_items in [0, 1, 7, 1000] {
                let counts: Vec<AtomicUsize> =
                    (0..num_items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_items, 3, |range| {
                    for item in range {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_any_thread_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(2);
        for item in [0, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, 1, |range| assert!(range.start != item, "item {item}"));
            }));
            assert!(result.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, 1, |range| {
            sum.fetch_add(range.start, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
