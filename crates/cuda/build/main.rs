//! With the feature `cuda`: compiles `kernels/**/*.cu` with nvcc and writes a table of the fatbins and
//! the kernels in each, for `src/real/fatbins.rs`. Without it: nothing.

mod nvcc;

use nvcc::Nvcc;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn main() {
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo::rerun-if-changed=build");
        return;
    }
    if let Err(error) = build() {
        println!("cargo::error={}", error.replace('\n', " | "));
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={}", kernels.display());
    for variable in ["WEFT_NVCC", "CUDA_HOME", "WEFT_CACHE"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let compiler = nvcc::find()?;
    let read = |ending| nvcc::files(&kernels, ending).map_err(|error| error.to_string());
    let (sources, headers) = (read("cu")?, read("cuh")?);
    let newest_header = headers.iter().filter_map(|path| modified(path)).max();
    let compile = |source: &PathBuf| compile(&compiler, source, &out, newest_header);

    let mut table = format!(
        "pub(super) const TOOLKIT_MAJOR: i32 = {};\n\
         pub(super) static FATBINS: &[Fatbin] = &[\n",
        compiler.major
    );
    let mut homes = BTreeMap::new();
    for (source, fatbin) in sources.iter().zip(nvcc::in_parallel(&sources, compile)) {
        let (fatbin, mut kernels) = fatbin?;
        kernels.sort();
        kernels.dedup();
        for kernel in &kernels {
            if let Some(other) = homes.insert(kernel.clone(), source) {
                let (a, b) = (other.display(), source.display());
                return Err(format!("two files have a kernel {kernel}: {a} and {b}"));
            }
        }
        let stem = stem(source);
        writeln!(
            table,
            "Fatbin {{ file: {stem:?}, image: &Aligned(*include_bytes!({fatbin:?})), kernels: &{kernels:?} }},",
        )
        .map_err(|error| error.to_string())?;
    }
    table.push_str("];\n");
    fs::write(out.join("fatbins.rs"), table).map_err(|error| error.to_string())
}

/// A fatbin and the names of its kernels; compiles it only if something is newer.
fn compile(
    compiler: &Nvcc,
    source: &Path,
    out: &Path,
    newest_header: Option<SystemTime>,
) -> Result<(PathBuf, Vec<String>), String> {
    let fatbin = out.join(format!("{}.fatbin", stem(source)));
    let report_path = fatbin.with_extension("ptxas");
    // The build script is newer if flags are.
    let script = std::env::current_exe().ok().and_then(|path| modified(&path));
    let newest = [modified(source), newest_header, script].into_iter().flatten().max();
    let is_fresh = modified(&fatbin) > newest && modified(&report_path).is_some();
    let report = match fs::read_to_string(&report_path) {
        Ok(report) if is_fresh => report,
        _ => {
            let report = nvcc::compile(compiler, source, &fatbin)?;
            fs::write(&report_path, &report).map_err(|error| error.to_string())?;
            report
        }
    };
    for line in report.lines().filter(|line| nvcc::is_warning(line)) {
        println!("cargo::warning={line}");
    }
    // By the compiler, not by the text: macros make kernels, too.
    let kernels = nvcc::read_report(&report).into_iter().map(|compiled| compiled.kernel).collect();
    Ok((fatbin, kernels))
}

/// `attention_decode` of `kernels/attention/decode.cu`: two folders may have files of one name.
fn stem(source: &Path) -> String {
    let name =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let folder = name(source.parent().and_then(Path::file_name));
    format!("{folder}_{}", name(source.file_stem()))
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
