//! An allocator that counts, for tests that say that something allocates nothing. Such a test is a
//! program of its own, with `#[global_allocator] static ALLOCATOR: CountingAllocator = …`.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, which counts what threads that asked for it allocate.
#[derive(Debug)]
pub struct CountingAllocator;

static NUM_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// From here on, what this thread allocates counts.
pub fn count_this_thread() {
    IS_COUNTED.set(true);
}

/// Allocations of all threads that are counted.
#[must_use]
pub fn num_allocations() -> u64 {
    NUM_ALLOCATIONS.load(Ordering::Relaxed)
}

fn count() {
    if IS_COUNTED.get() {
        NUM_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator, called as this one is.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) };
    }
}
