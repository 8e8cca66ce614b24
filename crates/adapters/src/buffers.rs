//! Memory for the files that are being read, used again: fresh memory costs a load more processor time
//! than reading and hashing do, because the system clears each page of it.

use parking_lot::Mutex;

/// A larger buffer is not kept.
const MAX_KEPT_BYTES: usize = 32 << 20;

/// Keeps one buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    kept: Mutex<Vec<u8>>,
}

impl Buffers {
    /// An empty buffer for so many bytes.
    pub(crate) fn take(&self, num_bytes: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut *self.kept.lock());
        buffer.clear();
        buffer.reserve_exact(num_bytes);
        buffer
    }

    /// A buffer that is not needed any more.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut kept = self.kept.lock();
        if (kept.capacity()..=MAX_KEPT_BYTES).contains(&buffer.capacity()) {
            *kept = buffer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_kept_unless_it_is_too_large() {
        let buffers = Buffers::default();
        let mut first = buffers.take(100);
        first.resize(100, 1);
        buffers.give_back(first);
        buffers.give_back(Vec::with_capacity(10));
        buffers.give_back(Vec::with_capacity(MAX_KEPT_BYTES + 1));
        let again = buffers.take(50);
        assert_eq!((again.len(), again.capacity()), (0, 100));
        assert_eq!(buffers.take(1).capacity(), 1);
    }
}
