//! The pool on 1 to 64 threads, far more than the machine has.

use super::*;
use std::sync::atomic::AtomicUsize;

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
            let counts: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
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

/// A generator of test sizes: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn runs_of_any_size_on_one_to_sixty_four_threads_do_each_item_once() {
    let mut random = Random(0x5eed);
    for num_threads in [1, 2, 3, 5, 8, 16, 33, 64] {
        let pool = ThreadPool::new(num_threads);
        for round in 0..60 {
            if round % 20 == 19 {
                // Long enough for workers to sleep.
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            let (num_items, grain) = (random.below(400), random.below(9));
            let mut counts = vec![0_u32; num_items];
            let places = DisjointMut::new(&mut counts);
            let longest = AtomicUsize::new(0);
            pool.run(num_items, grain, |range| {
                longest.fetch_max(range.len(), Ordering::Relaxed);
                // SAFETY: each item is claimed once; if not, the counts say so.
                unsafe { places.slice(range) }.iter_mut().for_each(|count| *count += 1);
            });
            assert!(counts.iter().all(|&count| count == 1), "{num_threads} threads, {counts:?}");
            let is_shared = num_threads > 1 && num_items > grain.max(1);
            assert!(!is_shared || longest.into_inner() <= grain.max(1));
        }
    }
}

#[test]
fn nested_runs_panics_and_many_callers_at_once_leave_the_pool_whole() {
    for num_threads in [2, 7, 64] {
        let pool = ThreadPool::new(num_threads);
        let pool = &pool;
        let sum = AtomicUsize::new(0);
        let sum = &sum;
        std::thread::scope(|scope| {
            for caller in 0..3 {
                scope.spawn(move || {
                    let mut random = Random(caller + 1);
                    for _ in 0..40 {
                        let (num_items, bad) = (1 + random.below(90), random.below(400));
                        let ran = catch_unwind(AssertUnwindSafe(|| {
                            pool.run(num_items, 1, |range| {
                                assert!(!range.contains(&bad), "told to");
                                pool.run(range.len() * 2, 1, |inner| {
                                    sum.fetch_add(inner.len(), Ordering::Relaxed);
                                });
                            });
                        }));
                        assert_eq!(ran.is_err(), bad < num_items);
                    }
                });
            }
        });
        sum.store(0, Ordering::Relaxed);
        pool.run(1000, 1, |range| {
            sum.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 1000);
    }
}

#[test]
fn what_a_run_writes_is_seen_by_the_caller_and_by_the_next_run() {
    let pool = ThreadPool::new(8);
    let mut values = vec![0_usize; 64];
    for round in 1..500 {
        let cells = DisjointMut::new(&mut values);
        pool.run(64, 1, |range| {
            // SAFETY: each item is claimed once.
            for value in unsafe { cells.slice(range) } {
                assert_eq!(*value, round - 1);
                *value = round;
            }
        });
        assert!(values.iter().all(|&value| value == round));
    }
}

#[test]
fn a_thread_begins_with_the_same_items_in_every_run() {
    // Items wait until all threads have come, so that nobody helps others before that.
    let pool = ThreadPool::new(4);
    let begin = |num_items: usize| {
        let first: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
        let barrier = std::sync::Barrier::new(4);
        pool.run(num_items, num_items / 4, |range| {
            let thread = std::thread::current().name().map(str::to_owned).unwrap_or_default();
            let index = thread.strip_prefix("weft-kernel-").map_or(0, |n| n.parse().unwrap());
            first[range.start].store(index + 1, Ordering::Relaxed);
            barrier.wait();
        });
        first.into_iter().map(AtomicUsize::into_inner).collect::<Vec<_>>()
    };
    for _ in 0..20 {
        assert_eq!(begin(4), [1, 2, 3, 4]);
        let mut spread = vec![0; 40];
        (0..4).for_each(|thread| spread[10 * thread] = thread + 1);
        assert_eq!(begin(40), spread);
    }
}
