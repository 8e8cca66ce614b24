//! Which thread does which items. In: the number of items and of threads. Out: claims that cover every
//! item once. Knows no job.
//!
//! Items are cut into as many equal *parts* as threads take part, and thread i begins with part i: from
//! step to step it reads the same share of a weight, which is the same number of bytes, and finds in its
//! caches and its memory node what it left there. Who is done helps with the parts after its own.

use super::gate::Padded;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Parts of a job: one bit each. Threads beyond share them.
const MAX_PARTS: usize = 64;
/// Low bits of a cursor: claims taken of the part. Those above say of which job.
const TAKEN_BITS: u32 = 24;
/// Claims of a whole job, fewer than a cursor can count.
const MAX_CLAIMS: usize = 1 << 23;

/// Reused by all jobs of a pool.
#[derive(Debug)]
pub(super) struct Parts {
    /// Parts that have items that nobody has claimed.
    unfinished: Padded<AtomicU64>,
    /// A part's own line, which mostly one thread writes. One with another job's number counts as 0, so
    /// that a job begins without a write to each.
    cursors: Box<[Padded<AtomicU64>]>,
}

/// How a job's items are split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    num_items: usize,
    /// Items of a claim.
    grain: usize,
    num_claims: usize,
    num_parts: usize,
    /// Threads that take part.
    pub(super) num_participants: usize,
    /// The job's number, as cursors have it.
    tag: u64,
}

impl Split {
    /// `num_items` in claims of about `grain`, both at least 1, for job number `epoch`.
    pub(super) fn new(num_items: usize, grain: usize, num_threads: usize, epoch: u64) -> Self {
        let grain = grain.max(num_items.div_ceil(MAX_CLAIMS));
        let num_claims = num_items.div_ceil(grain);
        let num_participants = num_threads.min(num_claims);
        let num_parts = num_participants.min(MAX_PARTS);
        let tag = epoch << TAKEN_BITS;
        Self { num_items, grain, num_claims, num_parts, num_participants, tag }
    }

    /// The part that a thread begins with.
    fn home(&self, thread: usize) -> usize {
        thread * self.num_parts / self.num_participants
    }

    fn claims(&self, part: usize) -> Range<usize> {
        let start = |part: usize| part * self.num_claims / self.num_parts;
        start(part)..start(part + 1)
    }

    fn items(&self, claim: usize) -> Range<usize> {
        claim * self.grain..((claim + 1) * self.grain).min(self.num_items)
    }
}

impl Parts {
    pub(super) fn new(num_threads: usize) -> Self {
        let cursors = (0..num_threads.min(MAX_PARTS)).map(|_| Padded::default()).collect();
        Self { unfinished: Padded::default(), cursors }
    }

    /// Before threads claim.
    pub(super) fn begin(&self, split: &Split) {
        let all = u64::MAX >> (MAX_PARTS - split.num_parts);
        self.unfinished.0.store(all, Ordering::Relaxed);
    }

    /// Whether there are items that nobody has claimed, of the job that is open.
    pub(super) fn has_work(&self) -> bool {
        self.unfinished.0.load(Ordering::Relaxed) != 0
    }

    /// Lets nobody begin with another's part any more.
    pub(super) fn give_up(&self) {
        self.unfinished.0.store(0, Ordering::Relaxed);
    }

    /// Claims and does items until all are claimed. Between [`Self::begin`] and the end of this no
    /// other job may begin.
    pub(super) fn work(&self, split: &Split, thread: usize, body: impl Fn(Range<usize>)) {
        let mut part = split.home(thread);
        loop {
            self.work_on(split, part, &body);
            let unfinished = self.unfinished.0.load(Ordering::Relaxed);
            if unfinished == 0 {
                return;
            }
            // The next after this one, in a circle.
            let after = part as u32 + 1;
            let distance = unfinished.rotate_right(after % 64).trailing_zeros();
            part = (after + distance) as usize % MAX_PARTS;
        }
    }

    fn work_on(&self, split: &Split, part: usize, body: &impl Fn(Range<usize>)) {
        let claims = split.claims(part);
        let cursor = &self.cursors[part].0;
        let mut value = cursor.load(Ordering::Relaxed);
        loop {
            let is_begun = value >> TAKEN_BITS == split.tag >> TAKEN_BITS;
            let taken = if is_begun { value } else { split.tag };
            let claim = claims.start + (taken - split.tag) as usize;
            if claim == claims.end {
                return self.finish(part);
            }
            // A claim tells nothing to others: the gate orders what is read and written.
            let claimed = cursor.compare_exchange_weak(
                value,
                taken + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if let Err(now) = claimed {
                value = now;
                continue;
            }
            if claim + 1 == claims.end {
                self.finish(part);
            }
            body(split.items(claim));
            value = cursor.load(Ordering::Relaxed);
        }
    }

    /// Says that all of a part is claimed. Also by who only finds it so: the one who claimed the last
    /// may not have come to it yet.
    fn finish(&self, part: usize) {
        let bit = 1 << part;
        if self.unfinished.0.load(Ordering::Relaxed) & bit != 0 {
            self.unfinished.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}
