//! Binds a thread to a processor. In: the processor's number. Out: nothing: a system that refuses, as
//! when the process may not use that processor, leaves the thread where it was. Does not choose.

/// From now on the calling thread, and those that it starts, run on `core` alone.
#[cfg(target_os = "linux")]
pub(super) fn bind_this_thread(core: usize) {
    use rustix::thread::{CpuSet, sched_setaffinity};
    if core < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(core);
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn bind_this_thread(_: usize) {}
