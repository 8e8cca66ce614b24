//! In: a mutable slice. Out: its disjoint parts, for the threads of a run. Does not check that they are
//! disjoint: callers promise that.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that several threads write in disjoint parts.
#[derive(Clone, Copy, Debug)]
pub struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Borrows `slice` for disjoint writes.
    #[must_use]
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` elements at `start`, without a borrow of those that are never accessed.
    ///
    /// # Safety
    /// The memory is valid for `'a`, and elements accessed through the result are accessed through
    /// nothing else meanwhile.
    pub(crate) unsafe fn from_raw(start: *mut T, len: usize) -> Self {
        Self { start, len, borrow: PhantomData }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites one element.
    ///
    /// # Safety
    /// No other thread may access the element at once.
    ///
    /// # Panics
    /// When `index` is out of bounds.
    pub unsafe fn write(&self, index: usize, value: T)
    where
        T: Copy,
    {
        assert!(index < self.len, "index out of bounds");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { self.start.add(index).write(value) };
    }

    /// The elements of `range`, to be read by any number of threads.
    ///
    /// # Safety
    /// No thread may write them at once.
    ///
    /// # Panics
    /// When `range` is out of bounds.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range out of bounds");
        // SAFETY: in bounds by the assertion, only read by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two threads may hold overlapping ranges at once.
    ///
    /// # Panics
    /// When `range` is out of bounds.
    #[must_use]
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range out of bounds");
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
