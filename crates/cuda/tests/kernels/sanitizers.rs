//! This test binary once more, with the kernels under sanitizers.

use std::process::Command;

const VARIABLE: &str = "WEFT_EMULATOR";

#[test]
fn kernels_are_clean_under_address_and_undefined_behaviour_sanitizers() {
    if std::env::var_os(VARIABLE).is_some() {
        return; // This is the run under sanitizers.
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .env(VARIABLE, weft_emulator::SANITIZED_LIBRARY)
        .env("LD_PRELOAD", weft_emulator::SANITIZER)
        // The test runner itself keeps some memory to its end.
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0:exitcode=99")
        .env("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("0 failed"), "{out}\n{err}");
}
