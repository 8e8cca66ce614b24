//! What nvcc makes of `/kernels`. In: the sources, and part of a name. Out: a table of kernels with
//! their registers, shared memory and spills on each architecture; a failure if one spills that should
//! not.

use crate::nvcc::{self, Compiled};
use anyhow::{Result, anyhow, bail};
use std::path::Path;

/// Kernels that may spill, and why.
const MAY_SPILL: [(&str, &str); 0] = [];

/// Compiles everything and prints the table.
///
/// # Errors
/// When nvcc is not there, does not compile a kernel, or one spills.
pub(crate) fn run(root: &Path, part: Option<&str>) -> Result<()> {
    let compiler = nvcc::find().map_err(|error| anyhow!(error))?;
    let sources = nvcc::files(&root.join("kernels"), "cu")?;
    let directory = tempfile::tempdir()?;
    let jobs: Vec<_> = sources.iter().enumerate().collect();
    let compile = |&(index, source): &(usize, &std::path::PathBuf)| {
        nvcc::compile(&compiler, source, &directory.path().join(format!("{index}.fatbin")))
    };
    let mut compiled = Vec::new();
    for report in nvcc::in_parallel(&jobs, compile) {
        let report = report.map_err(|error| anyhow!(error))?;
        report.lines().filter(|line| nvcc::is_warning(line)).for_each(|line| println!("{line}"));
        compiled.extend(nvcc::read_report(&report));
    }
    compiled.sort_by(|a, b| (&a.kernel, &a.architecture).cmp(&(&b.kernel, &b.architecture)));
    print!("{}", table(&compiled, part.unwrap_or_default()));
    let violations = violations(&compiled, &MAY_SPILL);
    if violations.is_empty() {
        let (num_files, major) = (sources.len(), compiler.major);
        println!("kernels: {num_files} files by CUDA {major}, nothing spills that should not");
        return Ok(());
    }
    bail!("{}", violations.join("\n"))
}

fn table(compiled: &[Compiled], part: &str) -> String {
    let width = compiled.iter().map(|each| each.kernel.len()).max().unwrap_or(0).max(6);
    let mut text = format!("{:width$}  arch    registers  shared  spilled\n", "kernel");
    for each in compiled.iter().filter(|each| each.kernel.contains(part)) {
        let Compiled { kernel, architecture, registers, shared_bytes, spill_bytes } = each;
        text += &format!(
            "{kernel:width$}  {architecture:6}  {registers:9}  {shared_bytes:6}  {spill_bytes:7}\n"
        );
    }
    text
}

/// A sentence per kernel that spills, and per exception that nothing needs.
fn violations(compiled: &[Compiled], may_spill: &[(&str, &str)]) -> Vec<String> {
    let spilling = || compiled.iter().filter(|each| each.spill_bytes > 0);
    let is_excused = |kernel: &str| may_spill.iter().any(|(excused, _)| *excused == kernel);
    let mut said: Vec<String> = spilling()
        .filter(|each| !is_excused(&each.kernel))
        .map(|each| {
            let Compiled { kernel, architecture, spill_bytes, registers, .. } = each;
            format!(
                "{kernel} spills {spill_bytes} bytes on {architecture}, at {registers} registers"
            )
        })
        .collect();
    said.extend(
        may_spill
            .iter()
            .filter(|(excused, _)| !spilling().any(|each| each.kernel == *excused))
            .map(|(excused, reason)| format!("{excused} no longer needs its exception ({reason})")),
    );
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a_f16' for 'sm_80'
ptxas info    : Function properties for a_f16
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 128 bytes smem, 392 bytes cmem[0]
ptxas info    : Compiling entry function 'b_f16' for 'sm_90a'
ptxas info    : Function properties for b_f16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers
";

    #[test]
    fn reports_are_read() {
        let compiled = nvcc::read_report(REPORT);
        let figures = |each: &Compiled| (each.registers, each.shared_bytes, each.spill_bytes);
        assert_eq!(compiled.iter().map(figures).collect::<Vec<_>>(), [(255, 128, 20), (18, 0, 0)]);
        assert_eq!(compiled[1].architecture, "sm_90a");
        let text = table(&compiled, "b_");
        assert_eq!(text.lines().nth(1), Some("b_f16   sm_90a         18       0        0"));
    }

    #[test]
    fn spills_are_named_unless_there_is_a_reason() {
        let compiled = nvcc::read_report(REPORT);
        assert_eq!(
            violations(&compiled, &[]),
            ["a_f16 spills 20 bytes on sm_80, at 255 registers"]
        );
        assert!(violations(&compiled, &[("a_f16", "cold")]).is_empty());
        let stale = violations(&compiled, &[("a_f16", "cold"), ("b_f16", "cold")]);
        assert_eq!(stale, ["b_f16 no longer needs its exception (cold)"]);
    }
}
