//! Where the loop's time goes. In: what the loop turns to. Out: the time that it has spent on each.
//! Knows nothing of what a step is.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What the loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoopState {
    /// See the fields of [`LoopTimes`].
    Execute,
    Plan,
    Tell,
    Idle,
}

/// What the loop's time went to since its start. The four make up all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopTimes {
    /// Computing steps, or waiting for the device that does.
    pub execute: Duration,
    /// Taking in what has come, deciding what runs, and entering what came of it.
    pub plan: Duration,
    /// Sending events and publishing counters. A device that computes by itself does so meanwhile.
    pub tell: Duration,
    /// Waiting because there was nothing to compute.
    pub idle: Duration,
}

impl LoopTimes {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            execute: self.execute.saturating_sub(earlier.execute),
            plan: self.plan.saturating_sub(earlier.plan),
            tell: self.tell.saturating_sub(earlier.tell),
            idle: self.idle.saturating_sub(earlier.idle),
        }
    }

    /// Of the time in which there was something to do, the share that went to computing: 0 to 1, and
    /// 1 if there was none.
    #[must_use]
    pub fn busy_share(&self) -> f64 {
        let awake = (self.execute + self.plan + self.tell).as_secs_f64();
        if awake == 0.0 { 1.0 } else { self.execute.as_secs_f64() / awake }
    }

    fn of(&mut self, state: LoopState) -> &mut Duration {
        match state {
            LoopState::Execute => &mut self.execute,
            LoopState::Plan => &mut self.plan,
            LoopState::Tell => &mut self.tell,
            LoopState::Idle => &mut self.idle,
        }
    }
}

/// The clock of one loop.
pub(crate) struct LoopClock(Mutex<Clock>);

struct Clock {
    state: LoopState,
    since: Instant,
    times: LoopTimes,
}

impl LoopClock {
    /// A loop that has not begun waits.
    pub(crate) fn new() -> Self {
        let times = LoopTimes::default();
        Self(Mutex::new(Clock { state: LoopState::Idle, since: Instant::now(), times }))
    }

    /// The loop does something else from now on.
    pub(crate) fn turn_to(&self, state: LoopState) {
        let mut clock = self.0.lock();
        let now = Instant::now();
        clock.add_until(now);
        (clock.state, clock.since) = (state, now);
    }

    /// Until now, also what goes on.
    pub(crate) fn times(&self) -> LoopTimes {
        let mut clock = self.0.lock();
        let now = Instant::now();
        clock.add_until(now);
        clock.since = now;
        clock.times
    }
}

impl Clock {
    fn add_until(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        *self.times.of(self.state) += elapsed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_time_is_counted_once_and_a_reading_includes_what_goes_on() {
        let began = Instant::now();
        let clock = LoopClock::new();
        for state in [LoopState::Execute, LoopState::Plan, LoopState::Tell, LoopState::Idle] {
            clock.turn_to(state);
            std::thread::sleep(Duration::from_millis(2));
        }
        let times = clock.times();
        let all = times.execute + times.plan + times.tell + times.idle;
        assert!(all <= began.elapsed());
        let least = Duration::from_millis(2);
        assert!([times.execute, times.plan, times.tell, times.idle].iter().all(|&t| t >= least));
        let later = clock.times();
        assert!(later.idle >= times.idle);
        assert_eq!((later.execute, later.since(&later)), (times.execute, LoopTimes::default()));
    }

    #[test]
    fn waiting_for_work_is_not_counted_against_the_busy_share() {
        let seconds = Duration::from_secs;
        let times = LoopTimes {
            execute: seconds(6),
            plan: seconds(1),
            tell: seconds(1),
            idle: seconds(99),
        };
        assert!((times.busy_share() - 0.75).abs() < 1e-9);
        assert!((LoopTimes::default().busy_share() - 1.0).abs() < 1e-9);
    }
}
