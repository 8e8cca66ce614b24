//! A pool without work takes (nearly) no processor time. Alone in its process, whose time is measured.

#![cfg(target_os = "linux")]

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use weft_kernels::ThreadPool;

/// Processor time of all threads of this process.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("clocks go forward")
}

#[test]
fn eight_threads_without_work_sleep_and_wake_again() {
    let pool = ThreadPool::new(8);
    let run = || pool.run(1000, 1, |items| drop(std::hint::black_box(items)));
    (0..100).for_each(|_| run());
    // They have stopped by now, on however busy a machine: seven that do not would use all of it.
    std::thread::sleep(Duration::from_millis(300));
    let began = cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time() - began;
    assert!(used < Duration::from_millis(50), "an idle pool used {used:?} of a second");
    run();
}
