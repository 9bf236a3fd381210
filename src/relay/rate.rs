//! How many bytes a second a pair may send, both sides together: what comes too fast is read later.

use std::time::{Duration, Instant};

use super::directory::Pairing;

/// A bucket of one second's bytes. What is taken beyond it is a debt, which time pays.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Bytes a second.
    limit: u64,
    /// What may be taken at `at`; below 0: a debt.
    level: f64,
    at: Instant,
    /// The last pairing whose sides were told that they are slowed.
    told: Option<Pairing>,
}

impl Rate {
    pub(crate) fn new(now: Instant, limit: u64) -> Self {
        Self { limit, level: limit as f64, at: now, told: None }
    }

    pub(crate) fn take(&mut self, now: Instant, bytes: usize) {
        self.flow(now);
        self.level -= bytes as f64;
    }

    /// How long nothing more is to be read; `None`: not at all.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.flow(now);
        // Not for less than timers are good for.
        (self.level < 0.0).then(|| Duration::from_secs_f64(-self.level / self.limit as f64 + 0.001))
    }

    /// Whether the sides of this pairing are to be told now that they are slowed: the first time only, for the news
    /// ends their channels.
    pub(crate) fn tells(&mut self, pairing: Pairing) -> bool {
        self.told.replace(pairing) != Some(pairing)
    }

    fn flow(&mut self, now: Instant) {
        // The two sides' threads may see the same moment in another order.
        let passed = now.saturating_duration_since(self.at);
        self.at += passed;
        self.level = (self.level + passed.as_secs_f64() * self.limit as f64).min(self.limit as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Instant {
        crate::flow::tests::any_instant()
    }

    #[test]
    fn a_second_s_bytes_may_come_at_once_and_more_is_waited_for() {
        let (now, second) = (start(), Duration::from_secs(1));
        let mut rate = Rate::new(now, 1000);
        rate.take(now, 1000);
        assert_eq!(rate.wait(now), None);
        rate.take(now, 500);
        assert_eq!(rate.wait(now), Some(Duration::from_millis(501)));
        assert_eq!(rate.wait(now + Duration::from_millis(501)), None);
        // Time that nobody used is not saved up for more than a second.
        rate.take(now + second * 100, 1001);
        assert!(rate.wait(now + second * 100).is_some());
        assert!(rate.wait(now).is_some(), "another thread's clock");
    }

    #[test]
    fn each_pairing_is_told_once() {
        let mut rate = Rate::new(start(), 1000);
        let told = [1, 1, 2, 2].map(|number| rate.tells(Pairing(number)));
        assert_eq!(told, [true, false, true, false]);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_than_the_limit_and_one_burst_comes_through(
            limit in 1000..100_000u64,
            reads in prop::collection::vec((1..5000usize, 0..50u64), 1..200),
        ) {
            let begin = start();
            let (mut now, mut taken) = (begin, 0);
            let mut rate = Rate::new(now, limit);
            for (bytes, pause) in reads {
                now += Duration::from_millis(pause);
                now += rate.wait(now).unwrap_or_default();
                prop_assert_eq!(rate.wait(now), None);
                rate.take(now, bytes);
                taken += bytes;
                let allowed = (1.0 + (now - begin).as_secs_f64()) * limit as f64 + bytes as f64;
                prop_assert!(taken as f64 <= allowed + 1.0, "{taken} of {allowed}");
            }
        }
    }
}
