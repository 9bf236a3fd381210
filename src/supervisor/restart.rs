//! When a child that ended is started again: `(now, how it ended)` → again after a wait, or never.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The first wait after a server said no, doubled by each further no. Who asks costs the server work and fills its
/// log, and a wrong password will be wrong in a moment too: 5 s at the least between two attempts, each of two or
/// three requests (four where every nonce is stale), let it see a handful of them in ten seconds.
const REFUSED_MIN: Duration = Duration::from_secs(10);
/// The longest such wait: what was put right on the server is found out within 5 minutes.
const REFUSED_MAX: Duration = Duration::from_secs(300);

/// How a child that is to be restarted ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The network, the far side or the system failed it; `proven` if it had worked before.
    Failed { proven: bool },
    /// The server answered, and the answer is no: wrong credentials, quota, …; `proven` as above.
    Refused { proven: bool },
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
    /// The same for refusals; failures in between change nothing.
    refusals: u32,
    /// At most `max_panics` of them.
    panics: VecDeque<Instant>,
}

impl Restart {
    /// The child ended; `jitter` is a random number from 0 to 1. The wait doubles with each failure, and a
    /// random part of it is waited (full jitter), so that many who lost the same peer do not come back at once.
    /// After a refusal it is half of the wait at the least. Trouble with network or server is for ever tried
    /// again; only panics end it.
    pub(crate) fn ended(&mut self, now: Instant, outcome: Outcome, jitter: f64, limits: &Limits) -> Verdict {
        if outcome == Outcome::Panicked {
            self.panics.retain(|at| now.saturating_duration_since(*at) < limits.panic_window);
            if self.panics.len() >= limits.max_panics {
                return Verdict::GiveUp;
            }
            self.panics.push_back(now);
        }
        if let Outcome::Failed { proven: true } | Outcome::Refused { proven: true } = outcome {
            (self.failures, self.refusals) = (0, 0);
        }
        let jitter = jitter.clamp(0.0, 1.0);
        Verdict::After(if let Outcome::Refused { .. } = outcome {
            // Who refuses has been reached.
            self.failures = 0;
            ceiling(&mut self.refusals, REFUSED_MIN, REFUSED_MAX).mul_f64(0.5 + jitter / 2.0)
        } else {
            ceiling(&mut self.failures, limits.backoff_min, limits.backoff_max).mul_f64(jitter)
        })
    }
}

/// `min`, doubled `count` times, but at most `max`; counts one more unless that is reached.
fn ceiling(count: &mut u32, min: Duration, max: Duration) -> Duration {
    let ceiling = min.saturating_mul(1 << (*count).min(20)).min(max);
    if ceiling < max {
        *count += 1;
    }
    ceiling
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
    const PROVEN: Outcome = Outcome::Failed { proven: true };
    const REFUSED: Outcome = Outcome::Refused { proven: false };

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
        assert_eq!(longest(&mut restart, now, PROVEN).as_millis(), 100);
        assert_eq!(longest(&mut restart, now, FAILED).as_millis(), 200);
    }

    #[test]
    fn a_server_that_refuses_is_asked_slowly_until_it_has_worked() {
        let (mut restart, now) = (Restart::default(), crate::flow::tests::any_instant());
        let mut waits = |outcomes: &[Outcome]| -> Vec<_> {
            outcomes.iter().map(|outcome| longest(&mut restart, now, *outcome).as_millis()).collect()
        };
        assert_eq!(waits(&[REFUSED; 7]), [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]);
        // It cannot be reached for a while, and then it refuses again.
        assert_eq!(waits(&[FAILED, FAILED, REFUSED, FAILED]), [100, 200, 300_000, 100]);
        assert_eq!(waits(&[PROVEN, REFUSED, REFUSED]), [100, 10_000, 20_000]);
        // It worked, and then it refused.
        assert_eq!(waits(&[Outcome::Refused { proven: true }, REFUSED, FAILED]), [10_000, 20_000, 100]);
    }

    #[test]
    fn a_refused_child_waits_for_half_of_the_wait_at_least() {
        let now = crate::flow::tests::any_instant();
        let wait = |jitter| Restart::default().ended(now, REFUSED, jitter, &LIMITS);
        assert_eq!(wait(0.0), Verdict::After(Duration::from_secs(5)));
        assert_eq!(wait(1.0), Verdict::After(Duration::from_secs(10)));
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
            steps in prop::collection::vec((0..5u8, 0..10_000u64, 0.0..1.0f64), 1..300),
        ) {
            let (mut restart, mut now) = (Restart::default(), crate::flow::tests::any_instant());
            let mut panics: Vec<Instant> = Vec::new();
            let mut refusals = 0;
            for (how, wait, jitter) in steps {
                now += Duration::from_millis(wait);
                let outcome = match how {
                    0 => Outcome::Panicked,
                    1 | 2 => Outcome::Failed { proven: how == 1 },
                    how => Outcome::Refused { proven: how == 3 },
                };
                panics.retain(|at| *at + LIMITS.panic_window > now);
                let too_many = outcome == Outcome::Panicked && panics.len() >= LIMITS.max_panics;
                match restart.ended(now, outcome, jitter, &LIMITS) {
                    Verdict::GiveUp => prop_assert!(too_many),
                    Verdict::After(wait) => {
                        prop_assert!(!too_many);
                        let proven = matches!(how, 1 | 3);
                        refusals = if proven { 0 } else { refusals };
                        if let Outcome::Refused { .. } = outcome {
                            refusals += 1;
                            prop_assert!(wait >= REFUSED_MIN / 2 && wait <= REFUSED_MAX);
                            prop_assert!(wait <= REFUSED_MIN * (1 << (refusals - 1).min(5)));
                            prop_assert!(wait >= REFUSED_MIN * (1 << (refusals - 1).min(4)) / 2);
                        } else {
                            prop_assert!(wait <= LIMITS.backoff_max);
                            prop_assert!(!proven || wait <= LIMITS.backoff_min);
                        }
                        if outcome == Outcome::Panicked { panics.push(now); }
                    }
                }
                prop_assert!(restart.panics.len() <= LIMITS.max_panics);
            }
        }
    }
}
