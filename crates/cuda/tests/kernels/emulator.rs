//! The emulator notices what it is there for.

use crate::support::gpu;
use std::process::Command;
use weft_cuda::driver::{DevicePtr, Shape, Stream};
use weft_cuda::{Gpu, HalfType};

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct SelftestParams {
    out: DevicePtr,
    num_words: u32,
    pad: u32,
}

/// Runs a kernel that does wrong, or right if `is_mended`.
fn run(
    gpu: &Gpu,
    kernel: &'static str,
    threads: u32,
    shared_bytes: u32,
    is_mended: bool,
) -> Result<Vec<u32>, String> {
    let out = gpu.upload(&[7u32; 64]).unwrap();
    let params = SelftestParams { out: out.ptr(), num_words: 64, pad: u32::from(is_mended) };
    let shape = Shape { grid: [1, 1, 1], threads, shared_bytes };
    // SAFETY: wrong by intent, but only the sanitized run goes out of bounds.
    unsafe { gpu.launch(kernel, shape, &params) }.map_err(|error| error.to_string())?;
    Ok(out.read(0..64).unwrap())
}

#[test]
fn a_missing_barrier_is_a_race() {
    let gpu = gpu();
    let error = run(&gpu, "selftest_race", 64, 0, false).unwrap_err();
    assert!(error.contains("selftest_race depends on the order"), "{error}");
    let right = run(&gpu, "selftest_race", 64, 0, true).unwrap();
    assert_eq!(right, (0..64).map(|i| (i + 1) % 64).collect::<Vec<u32>>());
}

#[test]
fn threads_that_wait_at_different_places_are_reported() {
    let error = run(&gpu(), "selftest_divergent_barrier", 64, 0, false).unwrap_err();
    assert!(error.contains("different"), "{error}");
}

#[test]
fn a_copy_that_nobody_waited_for_is_a_race() {
    let gpu = gpu();
    let error = run(&gpu, "selftest_early_read", 32, 64, false).unwrap_err();
    assert!(error.contains("depends on the order"), "{error}");
    assert_eq!(run(&gpu, "selftest_early_read", 32, 64, true).unwrap()[16..32], [7; 16]);
}

#[test]
fn a_copy_from_memory_that_lasts_is_made_when_somebody_waits() {
    let gpu = gpu();
    let target = gpu.upload(&[1u8; 4]).unwrap();
    let mut source = [2u8; 4];
    // SAFETY: as long as the buffer. That what is copied changes is the point of this test.
    unsafe { gpu.driver().enqueue_upload(Stream::Copy, target.ptr(), &source) }.unwrap();
    assert_eq!(target.read(0..4).unwrap(), [1; 4], "the other stream does not wait");
    std::hint::black_box(&mut source).fill(3);
    gpu.driver().synchronize(Stream::Copy).unwrap();
    assert_eq!(target.read(0..4).unwrap(), [3; 4]);
}

#[test]
fn kernels_are_found_by_name_and_take_their_parameters_only() {
    let gpu = gpu();
    let shape = Shape::of(1, 32);
    // SAFETY: neither is run.
    let (unknown, wrong) = unsafe {
        (gpu.launch("no_such_kernel", shape, &0u32), gpu.launch("selftest_race", shape, &0u32))
    };
    assert_eq!(unknown.unwrap_err().to_string(), "there is no kernel no_such_kernel");
    assert!(wrong.unwrap_err().to_string().contains("takes 16 bytes of parameters, not 4"));
    assert_eq!(HalfType::default(), HalfType::F16);
}

/// The part of the next test that runs in a process of its own, and kills it.
#[test]
fn goes_out_of_bounds_if_told_so() {
    if let Ok(memory) = std::env::var("WEFT_SELFTEST_OVERFLOW") {
        let _ = run(&gpu(), "selftest_overflow", 32, 128, memory == "shared");
    }
}

#[test]
fn overflows_are_caught() {
    for memory in ["device", "shared"] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "emulator::goes_out_of_bounds_if_told_so"])
            .env("WEFT_SELFTEST_OVERFLOW", memory)
            .env("WEFT_EMULATOR", weft_emulator::SANITIZED_LIBRARY)
            .env("LD_PRELOAD", weft_emulator::SANITIZER)
            .env("ASAN_OPTIONS", "detect_leaks=0");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("heap-buffer-overflow"), "{said}");
    }
}
