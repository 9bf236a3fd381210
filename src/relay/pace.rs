//! How fast a side takes what is queued for it: whether it is worth waiting for, and may be written to in large pieces.

use std::time::{Duration, Instant};

/// A peer that takes so many bytes in this time, 50 MB/s, is quick: where its queue is long, its side is not read from
/// until it is shorter. What would wait for a slower one is better dropped than old.
pub(crate) const PACE_INTERVAL: Duration = Duration::from_millis(5);
const QUICK_LEN: u64 = 256 << 10;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    taken: u64,
    is_quick: bool,
}

impl Pace {
    /// Nothing is known of it yet: it is taken to be quick, or not.
    pub(crate) fn new(now: Instant, is_quick: bool) -> Self {
        Self { began: now, taken: 0, is_quick }
    }

    /// Whether it has been quick in the last interval, or two; `taken` as below. Without having shown it, it is not.
    pub(crate) fn has_been_quick(&mut self, now: Instant, taken: u64) -> bool {
        if now >= self.began + PACE_INTERVAL {
            let is_stale = now >= self.began + 2 * PACE_INTERVAL;
            self.is_quick = !is_stale && taken.saturating_sub(self.taken) >= QUICK_LEN;
            (self.began, self.taken) = (now, taken);
        }
        self.is_quick
    }

    /// When it is to be looked at again, if it is quick; `taken` are the bytes it has taken in all. What is known from
    /// long ago counts for nothing.
    pub(crate) fn wait_until(&mut self, now: Instant, taken: u64) -> Option<Instant> {
        if now >= self.began + PACE_INTERVAL {
            let is_stale = now >= self.began + 2 * PACE_INTERVAL;
            self.is_quick = is_stale || taken.saturating_sub(self.taken) >= QUICK_LEN;
            (self.began, self.taken) = (now, taken);
        }
        self.is_quick.then(|| self.began + PACE_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_shown_it_has_been_quick() {
        let start = crate::flow::tests::any_instant();
        let mut pace = Pace::new(start, false);
        assert!(!pace.has_been_quick(start, QUICK_LEN));
        assert!(pace.has_been_quick(start + PACE_INTERVAL, QUICK_LEN));
        assert!(pace.has_been_quick(start + PACE_INTERVAL * 3 / 2, QUICK_LEN));
        assert!(!pace.has_been_quick(start + PACE_INTERVAL * 2, 2 * QUICK_LEN - 1));
        // After a silence nothing is known.
        assert!(!pace.has_been_quick(start + PACE_INTERVAL * 9, 9 * QUICK_LEN));
    }

    #[test]
    fn a_peer_is_waited_for_as_long_as_it_is_quick() {
        let (mut now, mut taken) = (crate::flow::tests::any_instant(), 0);
        let mut pace = Pace::new(now, true);
        assert_eq!(pace.wait_until(now, taken), Some(now + PACE_INTERVAL));
        for _ in 0..10 {
            now += PACE_INTERVAL;
            taken += QUICK_LEN;
            assert_eq!(pace.wait_until(now, taken), Some(now + PACE_INTERVAL));
        }
        // One that takes less is not waited for, until it takes more again …
        taken += QUICK_LEN - 1;
        now += PACE_INTERVAL;
        assert_eq!(pace.wait_until(now, taken), None);
        assert_eq!(pace.wait_until(now + PACE_INTERVAL / 2, taken + QUICK_LEN), None);
        now += PACE_INTERVAL;
        taken += QUICK_LEN;
        assert!(pace.wait_until(now, taken).is_some());
        now += PACE_INTERVAL;
        assert_eq!(pace.wait_until(now, taken), None);
        // … or is tried again after a while.
        now += 2 * PACE_INTERVAL;
        assert_eq!(pace.wait_until(now, taken), Some(now + PACE_INTERVAL));
    }
}
