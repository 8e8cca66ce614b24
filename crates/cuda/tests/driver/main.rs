//! The real driver over a library that takes libcuda's place (`fake_libcuda.cpp`): every call that it
//! would make to a GPU, with the emulated kernels behind. Each test runs in a process of its own,
//! because a library is loaded once.

#![expect(unsafe_code, reason = "launches, and the fake's own functions")]

mod fake;
mod pages;

use fake::{calls, forget_calls, leaks, under_fake};
use std::sync::Arc;
use weft_cuda::devices::Absence;
use weft_cuda::driver::{Shape, Stream};
use weft_cuda::ops::norm;
use weft_cuda::real::RealDriver;
use weft_cuda::{Buffer, Gpu, HalfType};

fn open() -> Gpu {
    Gpu::new(Arc::new(RealDriver::open(0).expect("the fake GPU works")))
}

/// Four rows of eight, all ones, and a place for their norms.
fn rows(gpu: &Gpu) -> (Buffer<f32>, Buffer<f32>, Buffer<u16>) {
    let x = gpu.upload(&[1.0f32; 32]).expect("the fake GPU works");
    (
        x,
        gpu.upload(&[2.0f32; 8]).expect("the fake GPU works"),
        gpu.alloc(32).expect("the fake GPU works"),
    )
}

fn launch(gpu: &Gpu, (x, weight, out): &(Buffer<f32>, Buffer<f32>, Buffer<u16>)) {
    let operands = (x.ptr(), weight.ptr(), out.ptr());
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { norm::rms_norm(gpu, HalfType::F16, operands, [4, 8], 0.0) }
        .expect("the fake GPU works");
}

const TWO: u16 = 0x4000;

#[test]
fn kernels_run_and_everything_is_given_back() {
    under_fake("kernels_run_and_everything_is_given_back", &[], || {
        let gpu = open();
        assert_eq!(gpu.driver().facts().capability, (9, 0));
        let rows = rows(&gpu);
        launch(&gpu, &rows);
        assert_eq!(rows.2.read(0..32).unwrap(), [TWO; 32]);
        forget_calls();
        launch(&gpu, &rows);
        assert_eq!(calls(), ["launch rms_norm_f16"], "found once, launched often");
        drop((rows, gpu));
        let calls = calls().join("\n");
        assert!(!calls.contains("before the work has ended"), "{calls}");
        assert_eq!(leaks(), 0, "{calls}");
    });
}

#[test]
fn uploads_of_any_size_keep_what_was_given() {
    under_fake("uploads_of_any_size_keep_what_was_given", &[], || {
        let gpu = open();
        // The ring is 16 MiB; nothing of it may be used again before the device has read it.
        let lens = [1, 3, 100_000, 5_000_000, 17, 4_194_304, 9_000_001, 2, 30_000_000];
        let mut buffers = Vec::new();
        for (seed, len) in lens.into_iter().enumerate() {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256 + seed) as u8).collect();
            let buffer = gpu.upload(&bytes).unwrap();
            let (first, last) = (bytes[0], bytes[len - 1]);
            bytes.fill(0);
            buffers.push((buffer, first, last, seed));
        }
        for (buffer, first, last, seed) in buffers {
            let got = buffer.read(0..buffer.len()).unwrap();
            assert_eq!((got[0], got[got.len() - 1]), (first, last));
            assert!(
                got.iter().enumerate().all(|(i, &byte)| byte == (i * 7 + i / 256 + seed) as u8)
            );
        }
    });
}

#[test]
fn recorded_launches_are_replayed() {
    under_fake("recorded_launches_are_replayed", &[], || {
        let gpu = open();
        let rows = rows(&gpu);
        let driver = gpu.driver();
        driver.begin_recording().unwrap();
        // Loads a module, allocates and frees while launches are recorded.
        launch(&gpu, &rows);
        drop(gpu.alloc::<u8>(100).unwrap());
        let refused = gpu.upload(&[1u8]).unwrap_err().to_string();
        assert_eq!(refused, "a copy cannot be recorded");
        assert!(driver.synchronize(Stream::Compute).is_err());
        // The other stream is free.
        let event = driver.record(Stream::Copy).unwrap();
        while !driver.has_passed(event).unwrap() {}
        let graph = driver.end_recording().unwrap();
        assert_eq!(rows.2.read(0..1).unwrap(), [0xffff], "recorded, not run");
        // SAFETY: the buffers are still there.
        unsafe { driver.replay(graph) }.unwrap();
        assert_eq!(rows.2.read(0..32).unwrap(), [TWO; 32]);
        assert!(calls().contains(&"instantiate 1".to_owned()));
    });
}

#[test]
fn a_stream_waits_for_another() {
    under_fake("a_stream_waits_for_another", &[], || {
        let gpu = open();
        let rows = rows(&gpu);
        let driver = gpu.driver();
        let threes: Vec<u8> = [3.0f32; 8].iter().flat_map(|x| x.to_ne_bytes()).collect();
        driver.synchronize(Stream::Compute).unwrap();
        // SAFETY: as long as the buffer; the compute stream waits for it.
        unsafe { driver.upload(Stream::Copy, rows.1.ptr(), &threes) }.unwrap();
        let arrived = driver.record(Stream::Copy).unwrap();
        driver.wait(Stream::Compute, arrived).unwrap();
        launch(&gpu, &rows);
        assert_eq!(rows.2.read(0..32).unwrap(), [0x4200; 32]);
        assert!(driver.has_passed(arrived).unwrap());
        // Known to have passed: nothing to wait for.
        driver.wait(Stream::Compute, arrived).unwrap();
    });
}

#[test]
fn events_have_times() {
    under_fake("events_have_times", &[], || {
        let gpu = open();
        let driver = gpu.driver();
        let begin = driver.record(Stream::Compute).unwrap();
        let end = driver.record(Stream::Compute).unwrap();
        driver.synchronize(Stream::Compute).unwrap();
        assert!((driver.elapsed_ms(begin, end).unwrap() - 1.5).abs() < 1e-6);
        assert!(driver.elapsed_ms(begin, end).unwrap_err().to_string().contains("forgotten"));
    });
}

#[test]
fn other_threads_may_call() {
    under_fake("other_threads_may_call", &[], || {
        let gpu = open();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let rows = rows(&gpu);
                    launch(&gpu, &rows);
                    assert_eq!(rows.2.read(0..32).unwrap(), [TWO; 32]);
                });
            }
        });
    });
}

#[test]
fn what_cannot_be_is_a_sentence() {
    under_fake("what_cannot_be_is_a_sentence", &[], || {
        let gpu = open();
        let error = gpu.alloc::<u8>(5 << 30).unwrap_err().to_string();
        assert!(error.contains("5120 MiB are wanted, 4096 MiB of 8192 MiB are free"), "{error}");
        let shape = Shape { shared_bytes: 300 << 10, ..Shape::of(1, 32) };
        let launch = |kernel, shape, params: &[u8]| {
            // SAFETY: refused before anything runs.
            unsafe { gpu.driver().launch(kernel, shape, params) }.unwrap_err().to_string()
        };
        assert_eq!(launch("no_such", Shape::of(1, 32), &[]), "there is no kernel no_such");
        let short = launch("rms_norm_f16", Shape::of(1, 32), &[0; 16]);
        assert_eq!(short, "rms_norm_f16 takes 40 bytes of parameters, not 16");
        let large = launch("rms_norm_f16", shape, &[0; 40]);
        assert!(large.contains("giving rms_norm_f16 307200 bytes of shared memory"), "{large}");
        let error = RealDriver::open(3).unwrap_err().to_string();
        assert_eq!(error, "there is no GPU 3: the driver sees 1, counted from 0");
    });
}

#[test]
fn more_shared_memory_is_asked_for_once() {
    under_fake("more_shared_memory_is_asked_for_once", &[], || {
        let gpu = open();
        let rows = rows(&gpu);
        launch(&gpu, &rows);
        forget_calls();
        let shape = Shape { shared_bytes: 100 << 10, ..Shape::of(0, 32) };
        for _ in 0..2 {
            // SAFETY: no blocks, so that nothing runs.
            unsafe { gpu.driver().launch("rms_norm_f16", shape, &[0; 40]) }.unwrap_err();
        }
        assert_eq!(calls(), ["allow 102400", "launch rms_norm_f16", "launch rms_norm_f16"]);
    });
}

#[test]
fn a_lost_gpu_names_the_last_kernel() {
    under_fake("a_lost_gpu_names_the_last_kernel", &[], || {
        let gpu = open();
        let rows = rows(&gpu);
        // SAFETY: the emulator refuses so many threads, and the fake calls that an illegal address.
        unsafe { gpu.driver().launch("rms_norm_f16", Shape::of(1, 2048), &[0; 40]) }.unwrap();
        for _ in 0..2 {
            let error = rows.0.read(0..1).unwrap_err().to_string();
            assert!(error.contains("the GPU is lost to this process"), "{error}");
            assert!(error.contains("launched last was rms_norm_f16"), "{error}");
            assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
        }
    });
}

#[test]
fn a_survey_says_what_is_there() {
    under_fake("a_survey_says_what_is_there", &[("WEFT_FAKE_DEVICES", "2")], || {
        let devices = weft_cuda::survey().devices.unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[1].ordinal, devices[1].free_bytes), (1, 4 << 30));
        assert_eq!(
            (devices[1].facts.name.as_str(), devices[1].refusal.clone()),
            ("fake GPU", None)
        );
        assert_eq!(leaks(), 0);
        weft_cuda::open(1).unwrap();
    });
}

#[test]
fn old_devices_are_refused() {
    under_fake("old_devices_are_refused", &[("WEFT_FAKE_CAPABILITY", "75")], || {
        let survey = weft_cuda::survey();
        assert_eq!(survey.usable(), None);
        let error = weft_cuda::open(0).unwrap_err().to_string();
        assert!(error.starts_with("GPU 0, fake GPU, cannot be used: its compute capab"), "{error}");
    });
}

#[test]
fn a_driver_without_devices_is_an_absence() {
    under_fake("a_driver_without_devices_is_an_absence", &[("WEFT_FAKE_DEVICES", "0")], || {
        assert_eq!(weft_cuda::survey().devices, Err(Absence::NoDevice));
        let error = weft_cuda::open(0).unwrap_err().to_string();
        assert_eq!(error, "the NVIDIA driver is here, but it sees no GPU");
    });
}

#[test]
fn an_old_driver_is_an_absence() {
    under_fake("an_old_driver_is_an_absence", &[("WEFT_FAKE_VERSION", "11040")], || {
        let error = weft_cuda::open(0).unwrap_err().to_string();
        assert!(error.starts_with("the NVIDIA driver is for CUDA 11.4, and"), "{error}");
    });
}
