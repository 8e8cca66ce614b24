//! Which processors the threads that compute are bound to. In: `--pin-threads`, how many threads there
//! are, and what the system says of its processors. Out: a processor for each thread, or none for all.
//!
//! A physical core before the second of its hyperthreads: two threads that compute on one core share its
//! vector units. Binding helps where a thread has its processor to itself, and keeps what it left in
//! that core's caches. Where others need the same processors, HTTP's threads among them, it takes away
//! the system's means to move one of the two elsewhere, so by default nobody is bound there.

use crate::args::serve::PinThreads;
use anyhow::{Result, bail};
use std::ops::RangeInclusive;
use std::path::Path;

/// Processors of threads that compute, the loop's first; empty: bound to none.
///
/// # Errors
/// A sentence, when `--pin-threads on` is impossible here.
pub(crate) fn choose(asked: PinThreads, num_threads: usize) -> Result<Vec<usize>> {
    if asked == PinThreads::Off {
        return Ok(Vec::new());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = allowed_from(&status);
    let usable = crate::machine::num_cores();
    let siblings = |core: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        std::fs::read_to_string(Path::new(&path)).ok()
    };
    choose_among(asked, num_threads, usable, cores_first(&allowed, siblings))
}

/// `usable`: what a cgroup's quota leaves of the processors `ordered`.
fn choose_among(
    asked: PinThreads,
    num_threads: usize,
    usable: usize,
    mut ordered: Vec<usize>,
) -> Result<Vec<usize>> {
    let num_allowed = ordered.len();
    match asked {
        PinThreads::On if num_allowed == 0 => bail!(
            "--pin-threads on needs /proc/self/status to say which processors this process may use; \
             say --pin-threads off"
        ),
        PinThreads::On if num_threads > num_allowed => bail!(
            "--pin-threads on gives each of {num_threads} threads a processor, but this process may \
             use {num_allowed}; say --threads {num_allowed}, or --pin-threads off"
        ),
        PinThreads::On => {}
        // Whole processors, and one more for everything else that the server does.
        PinThreads::Auto if usable >= num_allowed && num_threads < num_allowed => {}
        PinThreads::Auto | PinThreads::Off => return Ok(Vec::new()),
    }
    ordered.truncate(num_threads);
    Ok(ordered)
}

/// The first hyperthread of each core, then the second of each, and so on.
fn cores_first(allowed: &[usize], siblings: impl Fn(usize) -> Option<String>) -> Vec<usize> {
    let mut ordered: Vec<(usize, usize)> = allowed
        .iter()
        .map(|&core| {
            let of_core = siblings(core).map(|list| parse_list(&list)).unwrap_or_default();
            let earlier = |&sibling: &usize| sibling < core && allowed.contains(&sibling);
            (of_core.into_iter().filter(earlier).count(), core)
        })
        .collect();
    ordered.sort_unstable();
    ordered.into_iter().map(|(_, core)| core).collect()
}

/// `Cpus_allowed_list` of `/proc/self/status`; empty if there is none.
fn allowed_from(status: &str) -> Vec<usize> {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map(parse_list).unwrap_or_default()
}

/// The system's lists: `0-3,8,10-11`. Empty if it is none.
fn parse_list(list: &str) -> Vec<usize> {
    let range = |item: &str| -> Option<RangeInclusive<usize>> {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.parse().ok()?..=last.parse().ok().filter(|&last: &usize| last < 1 << 16)?)
    };
    let ranges: Option<Vec<_>> = list.trim().split(',').map(range).collect();
    ranges.into_iter().flatten().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_lists_are_read() {
        assert_eq!(parse_list(" 0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(allowed_from("Cpus_allowed:\tf\nCpus_allowed_list:\t2-3\n"), [2, 3]);
        for none in ["", "x", "1-", "0-99999999999"] {
            assert_eq!(parse_list(none), [0; 0], "{none:?}");
        }
    }

    #[test]
    fn physical_cores_come_before_their_second_threads() {
        let pairs = |core: usize| Some(format!("{},{}\n", core % 4, core % 4 + 4));
        assert_eq!(cores_first(&[0, 1, 2, 3, 4, 5, 6, 7], pairs), [0, 1, 2, 3, 4, 5, 6, 7]);
        let neighbours = |core: usize| Some(format!("{}-{}", core / 2 * 2, core / 2 * 2 + 1));
        assert_eq!(cores_first(&[0, 1, 2, 3], neighbours), [0, 2, 1, 3]);
        // A core of which this process may use only the second thread is a core like others.
        assert_eq!(cores_first(&[1, 2, 3], neighbours), [1, 2, 3]);
        assert_eq!(cores_first(&[5, 7], |_| None), [5, 7]);
    }

    #[test]
    fn threads_are_bound_by_default_only_where_a_processor_is_left() {
        let cores = |asked, num_threads, usable| {
            choose_among(asked, num_threads, usable, vec![0, 2, 1, 3]).map_err(|e| e.to_string())
        };
        assert_eq!(cores(PinThreads::Auto, 3, 4), Ok(vec![0, 2, 1]));
        assert_eq!(cores(PinThreads::Auto, 4, 4), Ok(vec![]));
        // A quota of the processors' time: which of them are free differs from moment to moment.
        assert_eq!(cores(PinThreads::Auto, 2, 2), Ok(vec![]));
        assert_eq!(cores(PinThreads::On, 4, 2), Ok(vec![0, 2, 1, 3]));
        assert_eq!(cores(PinThreads::Off, 3, 4), Ok(vec![]));
        assert!(cores(PinThreads::On, 5, 4).unwrap_err().contains("--threads 4"));
        let nothing_known = choose_among(PinThreads::On, 1, 1, Vec::new()).unwrap_err();
        assert!(nothing_known.to_string().contains("--pin-threads off"));
        assert!(choose_among(PinThreads::Auto, 1, 1, Vec::new()).unwrap().is_empty());
    }
}
