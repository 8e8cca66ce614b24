//! Waiting that starts eager and turns polite: a spinning thread may hold the very core that the
//! awaited one needs. Knows nothing of what is awaited.

/// Spins before the first yield: some tens of microseconds, longer than threads wait for each other
/// between the parts of a step. Whoever yields may get the processor back only after as long.
const SPINS_BEFORE_YIELD: u32 = 1000;
/// Yields before a worker parks: some tens of microseconds.
const YIELDS_BEFORE_PARK: u32 = 100;

/// How long a thread has waited.
#[derive(Default)]
pub(super) struct Wait {
    num_spins: u32,
    num_yields: u32,
}

impl Wait {
    pub(super) fn spin_or_yield(&mut self) {
        if self.num_spins < SPINS_BEFORE_YIELD {
            self.num_spins += 1;
            std::hint::spin_loop();
        } else {
            self.num_yields += 1;
            std::thread::yield_now();
        }
    }

    /// Whether a worker had better sleep.
    pub(super) fn is_over(&self) -> bool {
        self.num_yields >= YIELDS_BEFORE_PARK
    }
}
