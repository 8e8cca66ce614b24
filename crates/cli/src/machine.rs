//! What this machine has: memory and cores. In: the system's files. Out: numbers.

use crate::size::ByteSize;

/// Memory that a program can take without pushing others out; `None` where the system does not say.
#[must_use]
pub fn available_memory() -> Option<ByteSize> {
    available_from(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of `/proc/meminfo`, which counts in KiB.
fn available_from(meminfo: &str) -> Option<ByteSize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteSize(kib << 10))
}

/// Cores that this process may use.
#[must_use]
pub fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kib() {
        let text = "MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available_from(text), Some(ByteSize(2 << 20)));
        assert_eq!(available_from("MemTotal: 1 kB\n"), None);
    }
}
