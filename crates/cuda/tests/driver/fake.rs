//! Builds the fake library, runs a test in a process that finds it in the place of libcuda, and asks it
//! what was called.

use libloading::{Library, Symbol};
use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

const IN_FAKE: &str = "the fake has this function";
const INSIDE: &str = "WEFT_UNDER_FAKE";

/// The directory of a libcuda.so without a GPU.
fn build() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver/fake_libcuda.cpp");
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let output = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
            .args(["-std=c++17", "-O1", "-Wall", "-fPIC", "-shared", source, "-ldl", "-o"])
            .arg(directory.join("libcuda.so"))
            .output()
            .expect("a C++ compiler is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        directory
    })
}

/// Runs `test`, whose name is `name`, in a process of its own.
#[track_caller]
pub(crate) fn under_fake(name: &str, variables: &[(&str, &str)], test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let output = Command::new(std::env::current_exe().expect("tests are files"))
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", build())
        .env("WEFT_FAKE_KERNELS", weft_emulator::LIBRARY)
        .envs(variables.iter().copied())
        .output()
        .expect("this program runs again");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

fn library() -> Library {
    // SAFETY: loaded already.
    unsafe { Library::new("libcuda.so") }.expect("the fake is loaded")
}

/// What was called since the start, or since [`forget_calls`].
pub(crate) fn calls() -> Vec<String> {
    let library = library();
    // SAFETY: the function is of this type there, and gives a string that ends.
    let text = unsafe {
        let calls: Symbol<'_, unsafe extern "C" fn() -> *const c_char> =
            library.get(b"fake_calls").expect(IN_FAKE);
        CStr::from_ptr(calls())
    };
    text.to_str().expect("names are ASCII").lines().map(str::to_owned).collect()
}

pub(crate) fn forget_calls() {
    let library = library();
    // SAFETY: the function is of this type there.
    unsafe { library.get::<unsafe extern "C" fn()>(b"fake_forget_calls").expect(IN_FAKE)() };
}

/// Allocations, pinned memory, streams and contexts that are still there.
pub(crate) fn leaks() -> usize {
    let library = library();
    // SAFETY: the function is of this type there.
    unsafe { library.get::<unsafe extern "C" fn() -> usize>(b"fake_leaks").expect(IN_FAKE)() }
}

/// From here on so many allocations of pinned memory succeed.
pub(crate) fn allow_pins(number: i64) {
    let library = library();
    // SAFETY: the function is of this type there.
    unsafe { library.get::<unsafe extern "C" fn(i64)>(b"fake_allow_pins").expect(IN_FAKE)(number) };
}
