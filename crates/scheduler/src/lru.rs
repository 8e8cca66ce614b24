//! A doubly linked list of KV blocks, oldest first, in two flat arrays. In: block ids. Out: the
//! least recently pushed one. Every operation is O(1); a block is in the list at most once.

use weft_types::BlockId;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// See the module. One slot per block, and one more that closes the ring.
pub(crate) struct LruList {
    links: Vec<Link>,
    len: usize,
}

impl LruList {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let own_ring = |index: usize| Link { prev: index as u32, next: index as u32 };
        Self { links: (0..=num_blocks).map(own_ring).collect(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push_back(&mut self, block: BlockId) {
        let (end, index) = (self.end(), block.0);
        let last = self.links[end as usize].prev;
        self.links[index as usize] = Link { prev: last, next: end };
        self.links[last as usize].next = index;
        self.links[end as usize].prev = index;
        self.len += 1;
    }

    /// The oldest.
    pub(crate) fn front(&self) -> Option<BlockId> {
        self.iter().next()
    }

    pub(crate) fn pop_front(&mut self) -> Option<BlockId> {
        let first = self.front()?;
        self.remove(first);
        Some(first)
    }

    /// Takes out a block that is in the list.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Link { prev, next } = self.links[block.0 as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block.0 as usize] = Link { prev: block.0, next: block.0 };
        self.len -= 1;
    }

    /// From the oldest to the youngest.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> {
        let end = self.end();
        let mut at = end;
        std::iter::from_fn(move || {
            at = self.links[at as usize].next;
            (at != end).then_some(BlockId(at))
        })
    }

    fn end(&self) -> u32 {
        (self.links.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_leave_oldest_first_and_from_the_middle() {
        let mut list = LruList::new(4);
        assert_eq!(list.pop_front(), None);
        for block in [2, 0, 3, 1] {
            list.push_back(BlockId(block));
        }
        list.remove(BlockId(0));
        assert_eq!(list.pop_front(), Some(BlockId(2)));
        list.push_back(BlockId(0));
        assert_eq!(list.iter().collect::<Vec<_>>(), [BlockId(3), BlockId(1), BlockId(0)]);
        assert_eq!(list.len(), 3);
    }
}
