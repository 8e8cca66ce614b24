//! How fast adapters are read while requests of other tenants run. In: whether any run, and what loads
//! cost. Out: when the next load may begin. However many cold adapters a tenant asks for, after a few
//! that come at once they take no more than a small share of the processors from the others who are
//! being served, and all such tenants together no more than a few times that; a tenant alone on the
//! machine waits for nobody.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Of all processors together, for the loads of one tenant while requests of others run.
const SHARE: f64 = 0.01;
/// The same for the loads of all tenants together.
const SHARE_OF_ALL: f64 = 0.04;
/// Processor time that may be spent at once, when less than the share was used before.
const BURST_S: f64 = 0.1;
/// How often one who waits looks whether requests of others still run.
const LOOK: Duration = Duration::from_millis(20);
/// Weight of the last load in the mean cost.
const RECENT: f64 = 0.25;
/// Tenants of which the next turn is remembered, before those are forgotten who have a whole burst.
const MAX_TENANTS: usize = 1000;

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
    of_all: Turns,
    by_tenant: HashMap<Arc<str>, Turns>,
    /// Mean seconds of processor time of a load.
    cost_s: f64,
}

/// Generic cell rate algorithm: when the next load may begin, less what may be spent at once.
#[derive(Default)]
struct Turns {
    next: Option<Instant>,
}

impl Turns {
    /// Takes the next turn, if loads of `cost_s` may take `share` seconds a second.
    fn take(&mut self, now: Instant, cost_s: f64, share: f64) -> Instant {
        let earliest = earliest(now, share);
        let begin = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(begin + Duration::from_secs_f64(cost_s / share));
        begin
    }
}

/// The turn of one who has a whole burst.
fn earliest(now: Instant, share: f64) -> Instant {
    now.checked_sub(Duration::from_secs_f64(BURST_S / share)).unwrap_or(now)
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
    pub(crate) async fn turn(&self, tenant: &Arc<str>) {
        if !self.is_busy(tenant) {
            return;
        }
        let begin = self.take_turn(tenant, Instant::now());
        loop {
            let left = begin.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
            if !self.is_busy(tenant) {
                // What was put off for the sake of others need not be any longer.
                self.state.lock().by_tenant.remove(tenant);
                return;
            }
        }
    }

    fn take_turn(&self, tenant: &Arc<str>, now: Instant) -> Instant {
        let mut state = self.state.lock();
        let (cost_s, share) = (state.cost_s, SHARE * self.num_processors);
        if state.by_tenant.len() >= MAX_TENANTS {
            let whole = earliest(now, share);
            state.by_tenant.retain(|_, turns| turns.next.is_some_and(|next| next > whole));
        }
        let own = state.by_tenant.entry(Arc::clone(tenant)).or_default();
        let own = own.take(now, cost_s, share);
        own.max(state.of_all.take(now, cost_s, SHARE_OF_ALL * self.num_processors))
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
    async fn loads_take_their_share_while_requests_of_others_run() {
        let (pacer, _busy) = pacer(true);
        let (flood, other, own) = (Arc::from("flood"), Arc::from("other"), Arc::from("own"));
        let began = Instant::now();
        for _ in 0..5 {
            pacer.turn(&flood).await;
        }
        assert!(began.elapsed() < Duration::from_millis(1), "some come at once");
        for _ in 0..5 {
            pacer.turn(&flood).await;
        }
        // Twenty milliseconds each are a hundredth of two processors for a second.
        let took = began.elapsed().as_millis();
        assert!((4000..6000).contains(&took), "{took}");
        let before = Instant::now();
        pacer.turn(&other).await;
        pacer.turn(&own).await;
        assert!(before.elapsed() < Duration::from_millis(1), "these have asked for little");
    }

    #[tokio::test(start_paused = true)]
    async fn many_tenants_together_are_held_back_too() {
        let (pacer, _busy) = pacer(true);
        let began = Instant::now();
        for index in 0..25 {
            pacer.turn(&Arc::from(format!("{index}"))).await;
        }
        // Four hundredths for a quarter of a second each, but for those that come at once.
        let took = began.elapsed().as_millis();
        assert!((4500..5500).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_while_nothing_runs_or_once_it_ended() {
        let (pacer, busy) = pacer(false);
        let flood = Arc::from("flood");
        let began = Instant::now();
        for _ in 0..9 {
            pacer.turn(&flood).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        busy.store(true, Ordering::Relaxed);
        for _ in 0..5 {
            pacer.turn(&flood).await;
        }
        let idle = async {
            sleep(Duration::from_millis(50)).await;
            busy.store(false, Ordering::Relaxed);
        };
        tokio::join!(pacer.turn(&flood), pacer.turn(&flood), idle);
        assert!(began.elapsed() < Duration::from_millis(100));
    }
}
