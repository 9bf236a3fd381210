//! When a child that ended is started again: `(now, how it ended)` → again after a wait, or never.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How a child that is to be restarted ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The network, the far side or the system failed it; `proven` if it had worked before.
    Failed { proven: bool },
    /// A bug.
    Panicked,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again after this wait.
    After(Duration),
    /// It panics too often.
    GiveUp,
}

/// The limits, the same for all children.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) max_panics: usize,
    pub(crate) panic_window: Duration,
}

/// One child's history, as far as it matters.
#[derive(Debug, Default)]
pub(crate) struct Restart {
    /// Failures since it last proved itself; counts no further once the wait is at its longest.
    failures: u32,
    /// At most `max_panics` of them.
    panics: VecDeque<Instant>,
}

impl Restart {
    /// The child ended; `jitter` is a random number from 0 to 1. The wait doubles with each failure, and a
    /// random part of it is waited (full jitter), so that many who lost the same peer do not come back at once.
    /// Network trouble is for ever tried again; only panics end it.
    pub(crate) fn ended(&mut self, now: Instant, outcome: Outcome, jitter: f64, limits: &Limits) -> Verdict {
        if outcome == Outcome::Panicked {
            self.panics.retain(|at| now.saturating_duration_since(*at) < limits.panic_window);
            if self.panics.len() >= limits.max_panics {
                return Verdict::GiveUp;
            }
            self.panics.push_back(now);
        }
        if outcome == (Outcome::Failed { proven: true }) {
            self.failures = 0;
        }
        let ceiling = limits.backoff_min.saturating_mul(1 << self.failures.min(20)).min(limits.backoff_max);
        if ceiling < limits.backoff_max {
            self.failures += 1;
        }
        Verdict::After(ceiling.mul_f64(jitter.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(4),
        max_panics: 3,
        panic_window: Duration::from_secs(60),
    };
    const FAILED: Outcome = Outcome::Failed { proven: false };

    fn longest(restart: &mut Restart, now: Instant, outcome: Outcome) -> Duration {
        match restart.ended(now, outcome, 1.0, &LIMITS) {
            Verdict::After(wait) => wait,
            Verdict::GiveUp => panic!("gave up"),
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_starts_again_when_proven() {
        let (mut restart, now) = (Restart::default(), crate::flow::tests::any_instant());
        let waits: Vec<_> = (0..8).map(|_| longest(&mut restart, now, FAILED).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 4000, 4000]);
        assert_eq!(longest(&mut restart, now, Outcome::Failed { proven: true }).as_millis(), 100);
        assert_eq!(longest(&mut restart, now, FAILED).as_millis(), 200);
    }

    #[test]
    fn panics_are_forgiven_when_they_are_rare() {
        let (mut restart, mut now) = (Restart::default(), crate::flow::tests::any_instant());
        for _ in 0..20 {
            assert_ne!(restart.ended(now, Outcome::Panicked, 0.5, &LIMITS), Verdict::GiveUp);
            now += Duration::from_secs(21);
        }
        for _ in 0..LIMITS.max_panics - 2 {
            assert_ne!(restart.ended(now, Outcome::Panicked, 0.5, &LIMITS), Verdict::GiveUp);
        }
        assert_eq!(restart.ended(now, Outcome::Panicked, 0.5, &LIMITS), Verdict::GiveUp);
    }

    proptest! {
        #[test]
        fn waits_are_bounded_and_only_panics_end_it(
            steps in prop::collection::vec((0..3u8, 0..10_000u64, 0.0..1.0f64), 1..300),
        ) {
            let (mut restart, mut now) = (Restart::default(), crate::flow::tests::any_instant());
            let mut panics: Vec<Instant> = Vec::new();
            for (how, wait, jitter) in steps {
                now += Duration::from_millis(wait);
                let outcome = match how {
                    0 => Outcome::Panicked,
                    how => Outcome::Failed { proven: how == 1 },
                };
                panics.retain(|at| *at + LIMITS.panic_window > now);
                let too_many = outcome == Outcome::Panicked && panics.len() >= LIMITS.max_panics;
                match restart.ended(now, outcome, jitter, &LIMITS) {
                    Verdict::GiveUp => prop_assert!(too_many),
                    Verdict::After(wait) => {
                        prop_assert!(!too_many);
                        prop_assert!(wait <= LIMITS.backoff_max);
                        if outcome == (Outcome::Failed { proven: true }) {
                            prop_assert!(wait <= LIMITS.backoff_min);
                        }
                        if outcome == Outcome::Panicked { panics.push(now); }
                    }
                }
                prop_assert!(restart.panics.len() <= LIMITS.max_panics);
            }
        }
    }
}
