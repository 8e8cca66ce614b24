//! Compiles `kernels/**/*.cu` and the emulator with the host's C++ compiler into shared libraries:
//! one as fast as may be, one under AddressSanitizer and UndefinedBehaviorSanitizer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all files are compiled with. Kernels read numbers as vectors, as CUDA allows.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-fPIC",
    "-DWEFT_EMULATED",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-pthread",
];

/// Name of the library, what it is compiled with, what it is linked with.
const LIBRARIES: [(&str, &[&str]); 2] = [
    ("plain", &["-O2"]),
    (
        "sanitized",
        &["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    ),
];

fn main() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let compiler = cc::Build::new().cpp(true).opt_level(0).warnings(false).get_compiler();
    let mut sources = Vec::new();
    find_sources(&kernels, &mut sources);
    sources.sort();

    let jobs: Vec<(&str, &[&str], &PathBuf)> = LIBRARIES
        .iter()
        .flat_map(|&(library, flags)| sources.iter().map(move |source| (library, flags, source)))
        .collect();
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&(library, flags, source)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = Command::new(compiler.path());
            command.args(FLAGS).args(flags).args(["-x", "c++", "-c"]).arg(source);
            command.arg("-o").arg(object(&out, library, source));
            if let Err(error) = run(command) {
                errors.lock().expect("no panics").push(error);
            }
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(work);
        }
    });
    let errors = errors.into_inner().expect("no panics");
    assert!(errors.is_empty(), "{}", errors.join("\n"));

    for (library, flags) in LIBRARIES {
        let mut command = Command::new(compiler.path());
        command.args(["-shared", "-pthread"]).args(flags);
        command.args(sources.iter().map(|source| object(&out, library, source)));
        command.arg("-o").arg(out.join(format!("libweft_{library}.so")));
        run(command).unwrap_or_else(|error| panic!("{error}"));
    }
    // The sanitizer must be in a process before anything else.
    let file = Command::new(compiler.path())
        .arg("-print-file-name=libasan.so")
        .output()
        .expect("the compiler ran before");
    println!("cargo::rustc-env=WEFT_ASAN={}", String::from_utf8_lossy(&file.stdout).trim());
}

fn find_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in directory.read_dir().expect("kernels/ is in the workspace") {
        let path = entry.expect("kernels/ can be read").path();
        if path.is_dir() {
            find_sources(&path, sources);
        } else if path.extension().is_some_and(|kind| kind == "cu" || kind == "cpp") {
            sources.push(path);
        }
    }
}

fn object(out: &Path, library: &str, source: &Path) -> PathBuf {
    // With its directory's name: two families may have files of one name.
    let last_two: Vec<_> = source.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
    out.join(format!("{library}_{}_{}.o", last_two[1], last_two[0]))
}

fn run(mut command: Command) -> Result<(), String> {
    let output = command.output().map_err(|error| {
        format!("{command:?} did not start: {error}; install a C++ compiler, such as g++")
    })?;
    if output.status.success() {
        let warnings = String::from_utf8_lossy(&output.stderr);
        warnings.lines().for_each(|line| println!("cargo::warning={line}"));
        return Ok(());
    }
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)))
}
