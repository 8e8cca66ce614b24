//! Work that gives way to everything else: on a thread of low priority, so that reading and
//! converting an adapter takes the processor's idle moments and not those of running requests.

use std::panic::resume_unwind;
use std::thread::Builder;
use std::time::Duration;

/// A tenth of a processor that others want all of: a load ends, and they hardly notice.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Runs `work` and waits for it. Where no thread can be had, or none of low priority, it runs all
/// the same.
pub(crate) fn politely<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut work = Some(work);
    let done = std::thread::scope(|scope| {
        let run = || {
            give_way();
            work.take().map(|work| work())
        };
        let thread = Builder::new().name("weft-load".to_owned()).spawn_scoped(scope, run).ok()?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    match (done, work) {
        (Some(done), _) => done,
        (None, Some(work)) => work(),
        (None, None) => unreachable!("work that was taken was done, or has panicked"),
    }
}

/// Between two parts of such work, each of some tens of microseconds: lets others run. Low priority
/// alone would not do: a thread that yields to this one gets the processor back only with the next
/// tick of the clock, milliseconds later.
pub(crate) fn pause() {
    std::thread::yield_now();
}

#[cfg(target_os = "linux")]
fn give_way() {
    // Linux gives priorities to threads. If it refuses, the work is only less polite.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}

#[cfg(not(target_os = "linux"))]
fn give_way() {}

/// Processor time of this thread since it began.
#[cfg(target_os = "linux")]
pub(crate) fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Not known here: loads are not paced.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_cpu_time() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_elsewhere_and_panics_come_back() {
        let here = std::thread::current().id();
        let (there, sum) = politely(|| (std::thread::current().id(), 1 + 1));
        assert!(there != here && sum == 2);
        let panic = std::panic::catch_unwind(|| politely(|| panic!("broken")));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"broken"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_thread_has_low_priority_and_the_caller_keeps_its_own() {
        let own = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = own();
        assert_eq!(politely(own), NICENESS);
        assert_eq!(own(), before);
    }
}
