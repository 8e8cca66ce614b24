//! nvcc: where it is, what kernels are compiled with, and what ptxas said of them. In: a `.cu`. Out: a
//! fatbin and a report. Part of this crate's build script and of `cargo xtask kernels`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code for these, and what newer devices translate by themselves.
const TARGETS: [&str; 5] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_86,code=sm_86",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_90,code=compute_90",
];

const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-fatbin", "-Xptxas", "-v"];

/// Where scripts/nvcc.sh puts it, under the cache.
const CACHED: &str = "nvcc-13.0/bin/nvcc";

/// One kernel on one architecture, by ptxas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    pub(crate) registers: u32,
    /// Static shared memory.
    pub(crate) shared_bytes: u32,
    /// Stored to and loaded from local memory.
    pub(crate) spill_bytes: u32,
}

/// The compiler, and the major version of CUDA that it is of.
#[derive(Clone, Debug)]
pub(crate) struct Nvcc {
    pub(crate) path: PathBuf,
    pub(crate) major: u32,
}

/// From WEFT_NVCC, CUDA_HOME, the PATH or the cache of scripts/nvcc.sh.
pub(crate) fn find() -> Result<Nvcc, String> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(given) = variable("WEFT_NVCC") {
        let path = PathBuf::from(given);
        return ask(&path).ok_or_else(|| {
            format!("WEFT_NVCC names {}, which does not run as nvcc", path.display())
        });
    }
    let mut candidates = Vec::new();
    candidates.extend(variable("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    candidates.push(PathBuf::from("nvcc"));
    let cache = variable("WEFT_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache/weft")));
    candidates.extend(cache.map(|cache| cache.join(CACHED)));
    candidates.iter().find_map(|path| ask(path)).ok_or_else(|| {
        "the feature `cuda` compiles /kernels with nvcc, and there is none in WEFT_NVCC, CUDA_HOME or \
         the PATH; run scripts/nvcc.sh, which puts one into a cache where this build finds it"
            .to_owned()
    })
}

fn ask(path: &Path) -> Option<Nvcc> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.split("release ").nth(1)?;
    let major = release.split('.').next()?.parse().ok()?;
    output.status.success().then(|| Nvcc { path: path.to_owned(), major })
}

/// All files under `directory` with this ending, sorted.
pub(crate) fn files(directory: &Path, ending: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.extension().is_some_and(|kind| kind == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Compiles a file for all architectures; gives ptxas's report.
pub(crate) fn compile(nvcc: &Nvcc, source: &Path, fatbin: &Path) -> Result<String, String> {
    let mut command = Command::new(&nvcc.path);
    command.args(FLAGS);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg("-o").arg(fatbin).arg(source);
    let output = command.output().map_err(|error| format!("{command:?} did not start: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(report);
    }
    Err(format!("{command:?} failed:\n{report}{}", String::from_utf8_lossy(&output.stdout)))
}

/// `work` for each of `items`, on all cores; the results are in order.
pub(crate) fn in_parallel<I: Sync, R: Send>(items: &[I], work: impl Fn(&I) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item);
            results.lock().expect("no work panicked").push((index, result));
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..num_threads.min(items.len()) {
            scope.spawn(run);
        }
    });
    let mut results = results.into_inner().expect("no work panicked");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// What a report says of each kernel on each architecture.
pub(crate) fn read_report(report: &str) -> Vec<Compiled> {
    let mut list: Vec<Compiled> = Vec::new();
    for line in report.lines() {
        let quoted: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
        if let (true, &[kernel, architecture]) = (line.contains("entry function"), &quoted[..]) {
            list.push(Compiled {
                kernel: kernel.to_owned(),
                architecture: architecture.to_owned(),
                registers: 0,
                shared_bytes: 0,
                spill_bytes: 0,
            });
        } else if let Some(last) = list.last_mut() {
            let before = |word: &str| number_before(line, word);
            last.registers = before(" registers").unwrap_or(last.registers);
            last.shared_bytes = before(" bytes smem").unwrap_or(last.shared_bytes);
            let stores = before(" bytes spill stores").unwrap_or(0);
            last.spill_bytes += stores + before(" bytes spill loads").unwrap_or(0);
        }
    }
    list
}

/// `12` of `used 12 registers`.
fn number_before(line: &str, word: &str) -> Option<u32> {
    let before = &line[..line.find(word)?];
    let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    before[start..].parse().ok()
}

/// Whether a line of the report is more than figures: a warning.
pub(crate) fn is_warning(line: &str) -> bool {
    line.contains("warning") || line.contains("Advisory")
}
