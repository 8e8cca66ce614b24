//! Names whose source failed, or has no such adapter: with what, and when it is tried again. In:
//! failures and the time. Out: the remembered error, as long as the source is left alone. Bounded:
//! names are whatever clients ask for.

use crate::error::AdapterError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// After the first failure; doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(100);

const MAX_DELAY: Duration = Duration::from_secs(10);

/// A source that answered that it has no such adapter is asked again after this time.
const MISS_DELAY: Duration = Duration::from_secs(60);

/// More names are not remembered; those that would be tried again first make room.
const MAX_NAMES: usize = 4096;

/// A failure that nobody asked about for so long counts no more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Backoffs {
    by_name: HashMap<Arc<str>, Failure>,
}

#[derive(Debug)]
struct Failure {
    error: AdapterError,
    delay: Duration,
    retry_at: Instant,
}

impl Backoffs {
    /// Remembers that the source of `name` failed, if the fault is the source's.
    pub(crate) fn failed(&mut self, name: &Arc<str>, error: &AdapterError, now: Instant) {
        if !error.is_of_source() {
            return;
        }
        self.by_name.retain(|_, failure| now < failure.retry_at + FORGOTTEN_AFTER);
        let last = self.by_name.get(name).map(|failure| failure.delay);
        let delay = match error {
            AdapterError::NotInSource { .. } => MISS_DELAY,
            _ => last.map_or(FIRST_DELAY, |last| (last * 2).min(MAX_DELAY)),
        };
        if last.is_none() && self.by_name.len() >= MAX_NAMES {
            let next = self.by_name.iter().min_by_key(|(_, failure)| failure.retry_at);
            if let Some(next) = next.map(|(name, _)| Arc::clone(name)) {
                self.by_name.remove(&next);
            }
        }
        let failure = Failure { error: error.clone(), delay, retry_at: now + delay };
        self.by_name.insert(Arc::clone(name), failure);
    }

    /// What to answer instead of trying again, and when that ends.
    pub(crate) fn remembered(&self, name: &str, now: Instant) -> Option<AdapterError> {
        let failure = self.by_name.get(name)?;
        let wait = failure.retry_at.checked_duration_since(now)?;
        (wait > Duration::ZERO).then(|| failure.error.remembered(wait))
    }

    /// The source works, or the name is gone.
    pub(crate) fn clear(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error() -> AdapterError {
        AdapterError::Io { name: "a".into(), path: "p".into(), message: "broken".into() }
    }

    #[test]
    fn the_delay_doubles_up_to_ten_seconds_and_starts_again_after_a_success() {
        let (mut backoffs, name) = (Backoffs::default(), Arc::from("a"));
        let mut now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..9 {
            backoffs.failed(&name, &io_error(), now);
            let start = now;
            while backoffs.remembered("a", now).is_some() {
                now += Duration::from_millis(100);
            }
            delays.push((now - start).as_millis());
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        backoffs.clear("a");
        backoffs.failed(&name, &io_error(), now);
        assert!(backoffs.remembered("a", now + FIRST_DELAY).is_none());
    }

    #[test]
    fn the_hint_ends_the_sentence_and_other_faults_are_not_remembered() {
        let (mut backoffs, name, now) = (Backoffs::default(), Arc::from("a"), Instant::now());
        backoffs.failed(&name, &AdapterError::NotFound { name: "a".into() }, now);
        assert!(backoffs.remembered("a", now).is_none());
        backoffs.failed(&name, &io_error(), now);
        let words = backoffs.remembered("a", now).unwrap().to_string();
        assert_eq!(
            words,
            "adapter \"a\" cannot be read from p: broken; it is tried again in 0.1 s"
        );
    }

    #[test]
    fn what_a_source_does_not_have_is_remembered_for_a_minute() {
        let (mut backoffs, name, now) = (Backoffs::default(), Arc::from("a"), Instant::now());
        let retry = crate::error::RetryHint::default();
        let missing = AdapterError::NotInSource { name: "a".into(), reason: "404".into(), retry };
        for _ in 0..3 {
            backoffs.failed(&name, &missing, now);
            assert!(backoffs.remembered("a", now + MISS_DELAY - FIRST_DELAY).is_some());
            assert!(backoffs.remembered("a", now + MISS_DELAY).is_none());
        }
    }

    #[test]
    fn the_number_of_remembered_names_is_bounded() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        for index in 0..MAX_NAMES + 10 {
            let later = now + Duration::from_micros(index as u64);
            backoffs.failed(&Arc::from(format!("a{index}")), &io_error(), later);
        }
        assert_eq!(backoffs.names().count(), MAX_NAMES);
        assert!(backoffs.remembered("a0", now).is_none());
        assert!(backoffs.remembered(&format!("a{}", MAX_NAMES + 9), now).is_some());
    }

    #[test]
    fn old_failures_of_other_names_are_forgotten() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        backoffs.failed(&Arc::from("a"), &io_error(), now);
        backoffs.failed(&Arc::from("b"), &io_error(), now + FORGOTTEN_AFTER * 2);
        assert_eq!(backoffs.names().map(|name| &**name).collect::<Vec<_>>(), ["b"]);
    }
}
