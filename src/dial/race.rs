//! Which address is tried when: the connection racing of RFC 8305, without sockets and without a clock.
//!
//! Time is the [`Duration`] since the race began. The caller polls, does what the [`Step`] says, reports
//! failures, and drops the race as soon as one attempt has won.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// From the start of one attempt to the start of the next while nothing fails: RFC 8305 §5.
pub(crate) const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A name may have any number of addresses; the ones after these are not tried.
pub(crate) const MAX_ADDRESSES: usize = 16;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin an attempt to this address, then poll again.
    Start(SocketAddr),
    /// Poll again at this time since the race began, or after a failure if that comes first.
    WaitUntil(Duration),
    /// Every address is being tried or has failed: only an attempt that ends changes anything.
    WaitForAttempts,
    /// Every address has failed, or there was none.
    Exhausted,
}

/// One race over the addresses of one name.
#[derive(Debug)]
pub(crate) struct Race {
    waiting: VecDeque<SocketAddr>,
    running: Vec<SocketAddr>,
    newest: Option<SocketAddr>,
    next_start: Duration,
}

impl Race {
    /// A race over `addresses` in the resolver's order, which is the order of preference (RFC 6724).
    ///
    /// Duplicates are left out, then the families take turns, that of the first address first (RFC 8305 §4
    /// with a First Address Family Count of 1); [`MAX_ADDRESSES`] of the result are kept.
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let waiting = interleaved(addresses);
        Self { waiting, running: Vec::new(), newest: None, next_start: Duration::ZERO }
    }

    /// What to do at `elapsed` since the race began. Each [`Step::Start`] counts as done.
    pub(crate) fn poll(&mut self, elapsed: Duration) -> Step {
        let Some(&next) = self.waiting.front() else {
            return if self.running.is_empty() { Step::Exhausted } else { Step::WaitForAttempts };
        };
        if elapsed < self.next_start {
            return Step::WaitUntil(self.next_start);
        }
        self.waiting.pop_front();
        self.running.push(next);
        self.newest = Some(next);
        self.next_start = elapsed + CONNECTION_ATTEMPT_DELAY;
        Step::Start(next)
    }

    /// The attempt to `addr` has failed. If it was the newest one, the next begins at once; the failure of an
    /// older one hurries nothing, since a newer one has its turn. An address not being tried is ignored.
    pub(crate) fn failed(&mut self, addr: SocketAddr) {
        self.running.retain(|&running| running != addr);
        if self.newest == Some(addr) {
            self.newest = None;
            self.next_start = Duration::ZERO;
        }
    }
}

fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut first_family = VecDeque::new();
    let mut other_family = VecDeque::new();
    let mut begins_with_v6 = None;
    for addr in addresses {
        let is_first_family = *begins_with_v6.get_or_insert(addr.is_ipv6()) == addr.is_ipv6();
        let family = if is_first_family { &mut first_family } else { &mut other_family };
        // MAX_ADDRESSES of one family fill the race alone; holding no more also bounds the search.
        if family.len() < MAX_ADDRESSES && !family.contains(&addr) {
            family.push_back(addr);
        }
    }
    let mut order = VecDeque::new();
    while order.len() < MAX_ADDRESSES && !(first_family.is_empty() && other_family.is_empty()) {
        order.extend(first_family.pop_front());
        order.extend(other_family.pop_front());
    }
    order.truncate(MAX_ADDRESSES);
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 443))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        assert_eq!(interleaved([v6(1), v6(2), v6(3), v4(1), v4(2)]), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(interleaved([v4(1), v6(1), v6(2), v6(3)]), [v4(1), v6(1), v6(2), v6(3)]);
    }

    #[test]
    fn duplicates_and_more_than_sixteen_are_left_out() {
        assert_eq!(interleaved([v4(1), v4(1), v6(1), v4(1), v6(1)]), [v4(1), v6(1)]);
        let many = interleaved((1..=40).map(v4).chain((1..=40).map(v6)));
        assert_eq!(many.len(), MAX_ADDRESSES);
        assert_eq!(many.back(), Some(&v6(8)));
        assert_eq!(interleaved((1..=40).map(v4)).len(), MAX_ADDRESSES);
    }

    #[test]
    fn no_address_is_exhausted_at_once() {
        assert_eq!(Race::new([]).poll(ms(0)), Step::Exhausted);
    }

    #[test]
    fn a_silent_attempt_is_joined_by_the_next_after_the_delay() {
        let mut race = Race::new([v4(1), v4(2)]);
        assert_eq!(race.poll(ms(10)), Step::Start(v4(1)));
        assert_eq!(race.poll(ms(10)), Step::WaitUntil(ms(260)));
        assert_eq!(race.poll(ms(259)), Step::WaitUntil(ms(260)));
        assert_eq!(race.poll(ms(260)), Step::Start(v4(2)));
        assert_eq!(race.poll(ms(260)), Step::WaitForAttempts);
    }

    #[test]
    fn a_failure_starts_the_next_at_once() {
        let mut race = Race::new([v4(1), v4(2)]);
        assert_eq!(race.poll(ms(0)), Step::Start(v4(1)));
        race.failed(v4(1));
        assert_eq!(race.poll(ms(3)), Step::Start(v4(2)));
        race.failed(v4(2));
        assert_eq!(race.poll(ms(4)), Step::Exhausted);
    }

    #[test]
    fn the_failure_of_an_older_attempt_hurries_nothing() {
        let mut race = Race::new([v4(1), v4(2), v4(3)]);
        assert_eq!(race.poll(ms(0)), Step::Start(v4(1)));
        assert_eq!(race.poll(ms(250)), Step::Start(v4(2)));
        race.failed(v4(1));
        assert_eq!(race.poll(ms(300)), Step::WaitUntil(ms(500)));
        race.failed(v4(2));
        assert_eq!(race.poll(ms(301)), Step::Start(v4(3)));
    }

    #[test]
    fn a_late_poll_starts_one_attempt_not_several() {
        let mut race = Race::new([v4(1), v4(2), v4(3)]);
        assert_eq!(race.poll(ms(0)), Step::Start(v4(1)));
        assert_eq!(race.poll(ms(5_000)), Step::Start(v4(2)));
        assert_eq!(race.poll(ms(5_000)), Step::WaitUntil(ms(5_250)));
    }

    #[derive(Clone, Debug)]
    enum Happening {
        TimePasses(u64),
        Fails(prop::sample::Index),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (0_u64..400).prop_map(Happening::TimePasses),
            any::<prop::sample::Index>().prop_map(Happening::Fails),
        ]
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![(1_u8..20).prop_map(v4), (1_u16..20).prop_map(v6)]
    }

    /// What a caller would see, written down.
    #[derive(Default)]
    struct Log {
        now: Duration,
        starts: Vec<(Duration, SocketAddr)>,
        running: Vec<SocketAddr>,
        newest_failed: bool,
    }

    impl Log {
        /// Polls until nothing is to be started, checking every start; says what comes after.
        fn drive(&mut self, race: &mut Race) -> Step {
            loop {
                match race.poll(self.now) {
                    Step::Start(addr) => {
                        if let Some(&(last, _)) = self.starts.last() {
                            assert!(self.newest_failed || self.now - last >= CONNECTION_ATTEMPT_DELAY);
                        }
                        self.starts.push((self.now, addr));
                        self.running.push(addr);
                        self.newest_failed = false;
                    }
                    step => return step,
                }
            }
        }

        fn fail(&mut self, race: &mut Race, index: usize) {
            let addr = self.running.remove(index);
            self.newest_failed |= self.starts.last().is_some_and(|&(_, newest)| newest == addr);
            race.failed(addr);
        }
    }

    proptest! {
        #[test]
        fn without_a_winner_each_address_is_tried_exactly_once_and_never_in_haste(
            addresses in prop::collection::vec(address(), 0..40),
            happenings in prop::collection::vec(happening(), 0..60),
        ) {
            let mut race = Race::new(addresses.iter().copied());
            let mut log = Log::default();
            log.drive(&mut race);
            for happening in happenings {
                match happening {
                    Happening::TimePasses(millis) => log.now += ms(millis),
                    Happening::Fails(_) if log.running.is_empty() => {}
                    Happening::Fails(which) => {
                        let index = which.index(log.running.len());
                        log.fail(&mut race, index);
                    }
                }
                log.drive(&mut race);
            }
            loop {
                match log.drive(&mut race) {
                    Step::WaitUntil(at) => {
                        prop_assert!(at > log.now);
                        log.now = at;
                    }
                    Step::WaitForAttempts => log.fail(&mut race, 0),
                    Step::Exhausted => break,
                    Step::Start(_) => unreachable!("drive starts them all"),
                }
            }
            prop_assert!(log.running.is_empty());
            let started: Vec<_> = log.starts.iter().map(|&(_, addr)| addr).collect();
            let unique: std::collections::HashSet<_> = addresses.iter().copied().collect();
            let tried: std::collections::HashSet<_> = started.iter().copied().collect();
            prop_assert_eq!(started.len(), unique.len().min(MAX_ADDRESSES));
            prop_assert_eq!(tried.len(), started.len());
            prop_assert!(tried.is_subset(&unique));
            prop_assert_eq!(started.first(), addresses.first());
        }

        #[test]
        fn two_of_a_family_follow_each_other_only_when_the_other_is_used_up(
            addresses in prop::collection::vec(address(), 0..40),
        ) {
            let order: Vec<_> = interleaved(addresses.iter().copied()).into();
            for (index, pair) in order.windows(2).enumerate() {
                if pair[0].is_ipv6() == pair[1].is_ipv6() {
                    let others_left = addresses
                        .iter()
                        .filter(|addr| addr.is_ipv6() != pair[0].is_ipv6())
                        .any(|addr| !order[..=index].contains(addr));
                    prop_assert!(!others_left);
                }
            }
        }
    }
}
