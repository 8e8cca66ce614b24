//! Host memory for the pages of packed adapters. In: how many bytes. Out: a [`Page`]. Who lends the
//! memory, the heap or a device's driver, is not known here.

use std::fmt;
use std::ops::Deref;

/// Bytes that somebody lends; they go back when this is dropped.
pub trait PageMemory: AsRef<[u8]> + AsMut<[u8]> + fmt::Debug + Send + Sync {}

impl<M: AsRef<[u8]> + AsMut<[u8]> + fmt::Debug + Send + Sync> PageMemory for M {}

/// Who lends memory for pages.
pub trait PageAllocator: fmt::Debug + Send + Sync {
    /// At least `num_bytes`, with any contents. Blocks as long as it takes.
    fn lend(&self, num_bytes: usize) -> Box<dyn PageMemory>;
}

/// Ordinary memory of the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapPages;

impl PageAllocator for HeapPages {
    fn lend(&self, num_bytes: usize) -> Box<dyn PageMemory> {
        Box::new(vec![0; num_bytes].into_boxed_slice())
    }
}

/// The bytes of a page, and the memory that they are in.
pub struct Page {
    memory: Box<dyn PageMemory>,
    len: usize,
}

impl Page {
    /// Without bytes, in memory that is lent.
    pub(crate) fn new(memory: Box<dyn PageMemory>) -> Self {
        Self { memory, len: 0 }
    }

    /// Appends bytes. There must be room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        (*self.memory).as_mut()[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Appends zeros up to `len`, what was in the memory before being nobody's business.
    pub(crate) fn pad(&mut self, len: usize) {
        (*self.memory).as_mut()[self.len..len].fill(0);
        self.len = len;
    }

    /// The same bytes in no more memory than they need, if there is less.
    pub(crate) fn shrunk(self, pages: &dyn PageAllocator) -> Self {
        if self.len == (*self.memory).as_ref().len() {
            return self;
        }
        let mut shrunk = Self::new(pages.lend(self.len));
        if (*shrunk.memory).as_ref().len() == (*self.memory).as_ref().len() {
            return self;
        }
        shrunk.push(&self);
        shrunk
    }
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.memory).as_ref()[..self.len]
    }
}

impl From<Vec<u8>> for Page {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self { memory: Box::new(bytes.into_boxed_slice()), len }
    }
}

impl PartialEq for Page {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({} bytes in {:?})", self.len, (*self.memory).as_ref().as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lends multiples of 64 bytes, full of what others left.
    #[derive(Debug)]
    struct Rounded;

    impl PageAllocator for Rounded {
        fn lend(&self, num_bytes: usize) -> Box<dyn PageMemory> {
            Box::new(vec![7; num_bytes.next_multiple_of(64)].into_boxed_slice())
        }
    }

    #[test]
    fn a_page_shows_what_was_put_in_and_nothing_of_what_was_there() {
        let mut page = Page::new(Rounded.lend(100));
        page.push(&[1, 2]);
        page.pad(4);
        page.push(&[3]);
        assert_eq!(*page, [1, 2, 0, 0, 3]);
        let shrunk = page.shrunk(&Rounded);
        assert_eq!((&*shrunk, (*shrunk.memory).as_ref().len()), (&[1, 2, 0, 0, 3][..], 64));
    }

    #[test]
    fn memory_that_is_no_smaller_is_not_copied_to() {
        let mut page = Page::new(Rounded.lend(64));
        page.push(&[1]);
        let before = page.as_ptr();
        assert_eq!(page.shrunk(&Rounded).as_ptr(), before);
    }
}
