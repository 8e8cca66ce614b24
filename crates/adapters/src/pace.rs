//! How fast adapters are read while requests of other tenants run. In: whether any run, and what loads
//! cost. Out: when the next load may begin. However many cold adapters a tenant asks for, after a few
//! that come at once they take no more than a small share of the processors from the others who are
//! being served; a tenant alone on the machine waits for nobody.

use parking_lot::Mutex;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Of all processors together, while requests of others run.
const SHARE: f64 = 0.02;
/// Processor time that may be spent at once, when less than the share was used before.
const BURST_S: f64 = 0.1;
/// How often one who waits looks whether requests still run.
const LOOK: Duration = Duration::from_millis(20);
/// Weight of the last load in the mean cost.
const RECENT: f64 = 0.25;

/// Tells whether requests of others than a tenant run.
pub(crate) type IsBusy = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// See the module.
pub(crate) struct Pacer {
    is_busy: OnceLock<IsBusy>,
    num_processors: f64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the next load may begin.
    next: Option<Instant>,
    /// Mean seconds of processor time of a load.
    cost_s: f64,
}

impl fmt::Debug for Pacer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pacer").finish_non_exhaustive()
    }
}

impl Pacer {
    pub(crate) fn new() -> Self {
        let num_processors = std::thread::available_parallelism().map_or(1, usize::from);
        let state = Mutex::default();
        Self { is_busy: OnceLock::new(), num_processors: num_processors as f64, state }
    }

    /// Whom to ask; only the first counts. Until then nobody waits.
    pub(crate) fn set_is_busy(&self, is_busy: IsBusy) {
        let _ = self.is_busy.set(is_busy);
    }

    fn is_busy(&self, tenant: &str) -> bool {
        self.is_busy.get().is_some_and(|is_busy| is_busy(tenant))
    }

    /// Waits until a load for a tenant may begin.
    pub(crate) async fn turn(&self, tenant: &str) {
        if !self.is_busy(tenant) {
            return;
        }
        let begin = {
            let mut state = self.state.lock();
            let now = Instant::now();
            // Generic cell rate algorithm: `next` may lag behind by what may be spent at once.
            let per_second = SHARE * self.num_processors;
            let burst = Duration::from_secs_f64(BURST_S / per_second);
            let earliest = now.checked_sub(burst).unwrap_or(now);
            let begin = state.next.map_or(earliest, |next| next.max(earliest));
            state.next = Some(begin + Duration::from_secs_f64(state.cost_s / per_second));
            begin
        };
        loop {
            let left = begin.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
            if !self.is_busy(tenant) {
                // What was put off for the sake of requests need not be any longer.
                self.state.lock().next = None;
                return;
            }
        }
    }

    /// A load took so much processor time.
    pub(crate) fn spent(&self, cpu: Duration) {
        let (mut state, seconds) = (self.state.lock(), cpu.as_secs_f64());
        let is_first = state.cost_s == 0.0;
        state.cost_s =
            if is_first { seconds } else { (1.0 - RECENT) * state.cost_s + RECENT * seconds };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn pacer(is_busy: bool) -> (Pacer, Arc<AtomicBool>) {
        let busy = Arc::new(AtomicBool::new(is_busy));
        let pacer = Pacer { num_processors: 2.0, ..Pacer::new() };
        let asked = Arc::clone(&busy);
        pacer.set_is_busy(Box::new(move |tenant| tenant != "own" && asked.load(Ordering::Relaxed)));
        pacer.spent(Duration::from_millis(20));
        (pacer, busy)
    }

    #[tokio::test(start_paused = true)]
    async fn loads_take_their_share_while_requests_run() {
        let (pacer, _busy) = pacer(true);
        let began = Instant::now();
        for _ in 0..5 {
            pacer.turn("flood").await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "a tenth of a second of them comes at once");
        for _ in 0..5 {
            pacer.turn("flood").await;
        }
        // Twenty milliseconds each are a fiftieth of two processors for 500.
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(2000) && took < Duration::from_millis(3100),
            "{took:?}"
        );
        let before = Instant::now();
        pacer.turn("own").await;
        assert_eq!(before.elapsed(), Duration::ZERO, "nobody else is held up by this one's loads");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_while_nothing_runs_or_once_it_ended() {
        let (pacer, busy) = pacer(false);
        let began = Instant::now();
        for _ in 0..9 {
            pacer.turn("flood").await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        busy.store(true, Ordering::Relaxed);
        for _ in 0..5 {
            pacer.turn("flood").await;
        }
        let waits = pacer.turn("flood");
        let idle = async {
            sleep(Duration::from_millis(50)).await;
            busy.store(false, Ordering::Relaxed);
        };
        tokio::join!(waits, idle);
        assert!(began.elapsed() < Duration::from_millis(100));
    }
}
