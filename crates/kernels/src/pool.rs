//! A thread pool for work measured in microseconds.
//!
//! `run` splits a range of items over the caller and the workers and returns when all are done.
//! Workers spin for a little while after a run, since the next one usually follows at once, and
//! park when it does not. Items are claimed from a shared counter, so a thread that the system
//! preempts does not hold up the rest for longer than one claim.

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Spins between a run and parking: some tens of microseconds.
const NUM_SPINS: u32 = 5_000;

/// Workers that help the calling thread. Dropping it ends them.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Incremented when a job is published; workers wait for a change.
    epoch: AtomicU64,
    /// The published job: valid while `num_active > 0`.
    job: std::sync::Mutex<Option<Job>>,
    next_item: AtomicUsize,
    /// Workers that have not finished the current job.
    num_active: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(Range<usize>) + Sync),
    num_items: usize,
    grain: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("num_items", &self.num_items).finish_non_exhaustive()
    }
}

// SAFETY: the pointee is `Sync`, and `run` keeps it alive until every worker is done with it.
unsafe impl Send for Job {}

impl ThreadPool {
    /// A pool of `num_threads` in all: the caller and `num_threads - 1` workers.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: std::sync::Mutex::new(None),
            next_item: AtomicUsize::new(0),
            num_active: AtomicUsize::new(0),
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
    /// # Panics
    /// When `body` panics, after all threads have left it.
    pub fn run(&self, num_items: usize, grain: usize, body: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        if self.workers.is_empty() || num_items <= grain {
            if num_items > 0 {
                body(0..num_items);
            }
            return;
        }
        let body: &(dyn Fn(Range<usize>) + Sync) = &body;
        // SAFETY: only the lifetime changes. Workers use the pointer between the epoch's change
        // and their decrement of `num_active`, and this function outlives both.
        let body: &'static (dyn Fn(Range<usize>) + Sync) = unsafe { std::mem::transmute(body) };
        let job = Job { body, num_items, grain };
        *self.shared.job.lock().expect("no panic while locked") = Some(job);
        self.shared.next_item.store(0, Ordering::Relaxed);
        self.shared.num_active.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.claim(job)));
        while self.shared.num_active.load(Ordering::Acquire) > 0 {
            std::hint::spin_loop();
        }
        let worker_panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        assert!(!worker_panicked, "a kernel thread panicked");
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

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_change(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let job = self.job.lock().expect("no panic while locked").expect("published");
            if catch_unwind(AssertUnwindSafe(|| self.claim(job))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.num_active.fetch_sub(1, Ordering::Release);
        }
    }

    fn wait_for_change(&self, seen: u64) -> u64 {
        let mut num_spins = 0;
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            if num_spins < NUM_SPINS {
                num_spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
    }

    fn claim(&self, job: Job) {
        loop {
            let start = self.next_item.fetch_add(job.grain, Ordering::Relaxed);
            if start >= job.num_items {
                return;
            }
            // SAFETY: `run` waits for this thread before the body is dropped.
            let body = unsafe { &*job.body };
            body(start..(start + job.grain).min(job.num_items));
        }
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
