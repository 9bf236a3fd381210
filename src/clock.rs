//! The clock, and what is remembered by it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// tokio's time, so that tests can pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// When something last happened, to the millisecond; shared by threads.
#[derive(Debug, Default)]
pub(crate) struct Moment(AtomicU64);

impl Moment {
    pub(crate) fn set(&self, now: Instant) {
        self.0.store(millis(now), Relaxed);
    }

    /// Forgets it, and says what it was.
    pub(crate) fn take(&self) -> Option<Instant> {
        instant(self.0.swap(0, Relaxed))
    }

    /// `None`: never.
    pub(crate) fn get(&self) -> Option<Instant> {
        instant(self.0.load(Relaxed))
    }
}

/// One millisecond before the first instant ever asked about, so that 0 stands for "never".
fn epoch(now: Instant) -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| now - Duration::from_millis(1))
}

fn millis(now: Instant) -> u64 {
    let since = now.saturating_duration_since(epoch(now)).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX).max(1)
}

fn instant(millis: u64) -> Option<Instant> {
    if millis == 0 { None } else { Some(epoch(now()) + Duration::from_millis(millis)) }
}

/// Lets one event a second through: what a stranger can cause must not flood those who listen.
#[derive(Debug, Default)]
pub(crate) struct OncePerSecond {
    last: Option<Instant>,
    held_back: u64,
}

impl OncePerSecond {
    /// Whether this one may pass: if so, how many were held back since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + Duration::from_secs(1)) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_remembered_to_the_millisecond() {
        let moment = Moment::default();
        assert_eq!(moment.get(), None);
        let now = now();
        moment.set(now);
        assert!(now.duration_since(moment.get().unwrap()) <= Duration::from_millis(1));
        assert!(moment.take().is_some());
        assert_eq!(moment.get(), None);
    }

    #[test]
    fn one_passes_and_tells_of_those_held_back() {
        let (mut limit, start) = (OncePerSecond::default(), now());
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_millis(999)), None);
        assert_eq!(limit.pass(start + Duration::from_secs(1)), Some(2));
    }
}
