//! Channels between the two sides of a pair: flows, numbered from 0x4000 to 0x4FFE.
//!
//! The side whose SIDE-ID sorts lower opens even numbers, the other one odd ones. A channel is opened by using it,
//! and forgotten by both after 300 s of silence; its opener waits 300 s more before it uses the number for another
//! flow. Every Peer indication ends all channels.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A channel that has carried nothing for this long is forgotten.
pub(crate) const CHANNEL_LIFETIME: Duration = Duration::from_secs(300);
/// The opener does not use the number of a forgotten channel for this long: the peer may forget it later.
pub(crate) const GUARD_TIME: Duration = Duration::from_secs(300);
/// The numbers there are. The one above them is reserved, and what comes there is ignored.
const FIRST: u16 = 0x4000;
const LAST: u16 = 0x4ffe;

/// Which numbers a side opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parity {
    Even,
    Odd,
}

impl Parity {
    /// That of side `own` towards side `peer`. SIDE-IDs are compared as bytes; a relay joins different ones only.
    pub(crate) fn of(own: &str, peer: &str) -> Self {
        if own.as_bytes() < peer.as_bytes() { Self::Even } else { Self::Odd }
    }

    fn has(self, number: u16) -> bool {
        number.is_multiple_of(2) == (self == Self::Even)
    }
}

/// What a datagram of the peer has come on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<T> {
    /// An open channel, either side's.
    Open(T),
    /// A number of the peer's that is not open: the peer opens it now. To be followed by [`Channels::accept`],
    /// unless there is no room.
    New,
    /// A number of ours that is not open, or the reserved one: the datagram is dropped.
    Unopened,
}

/// The channels of one side. Each open one has a value of type `T`, which knows when its flow last carried anything.
#[derive(Debug)]
pub(crate) struct Channels<T> {
    parity: Parity,
    open: HashMap<u16, Open<T>>,
    /// Numbers of ours that no channel has, the longest unused in front.
    free: VecDeque<u16>,
    /// Numbers of ours that are not to be used before these instants.
    resting: BTreeSet<(Instant, u16)>,
}

#[derive(Debug)]
struct Open<T> {
    value: T,
    since: Instant,
}

impl<T> Open<T> {
    fn last(&self, last_activity: &impl Fn(&T) -> Option<Instant>) -> Instant {
        last_activity(&self.value).map_or(self.since, |last| last.max(self.since))
    }
}

impl<T: Clone> Channels<T> {
    pub(crate) fn new(parity: Parity) -> Self {
        let free = numbers(parity).collect();
        Self { parity, open: HashMap::new(), free, resting: BTreeSet::new() }
    }

    /// Which numbers this side opens.
    pub(crate) fn parity(&self) -> Parity {
        self.parity
    }

    /// A Peer indication has come: gives back all channels, which are ended. Their numbers are free at once, the peer
    /// has forgotten them too.
    pub(crate) fn end_all(&mut self, parity: Parity) -> Vec<(u16, T)> {
        let ended = std::mem::take(&mut self.open);
        if parity == self.parity {
            self.free.extend(std::mem::take(&mut self.resting).into_iter().map(|(_, number)| number));
            let mut ours: Vec<_> = ended.keys().copied().filter(|number| parity.has(*number)).collect();
            ours.sort_unstable();
            self.free.extend(ours);
        } else {
            *self = Self::new(parity);
        }
        ended.into_iter().map(|(number, open)| (number, open.value)).collect()
    }

    /// Opens a channel for a flow of ours: with the number `wish` if that is free, else with the one longest unused.
    /// `None`: all numbers are in use, or were used too recently.
    pub(crate) fn open(&mut self, now: Instant, value: T, wish: Option<u16>) -> Option<u16> {
        self.wake_rested(now);
        let wished = wish.and_then(|wish| self.free.iter().position(|number| *number == wish));
        let number = self.free.remove(wished.unwrap_or(0))?;
        self.open.insert(number, Open { value, since: now });
        Some(number)
    }

    /// The peer has opened a channel: [`Incoming::New`].
    pub(crate) fn accept(&mut self, now: Instant, number: u16, value: T) {
        debug_assert!(self.is_peers(number) && !self.open.contains_key(&number));
        self.open.insert(number, Open { value, since: now });
    }

    /// What a datagram on this number, one of 0x4000 to 0x4FFF, means.
    pub(crate) fn incoming(&mut self, now: Instant, number: u16) -> Incoming<T> {
        if let Some(open) = self.open.get(&number) {
            return Incoming::Open(open.value.clone());
        }
        if self.is_peers(number) {
            return Incoming::New;
        }
        if number <= LAST {
            // The peer still knows a flow by this number: no other flow may get it soon.
            self.free.retain(|free| *free != number);
            self.resting.retain(|(_, resting)| *resting != number);
            self.rest(now, number);
        }
        Incoming::Unopened
    }

    /// All open channels, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &T)> {
        self.open.iter().map(|(number, open)| (*number, &open.value))
    }

    /// All open channels.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.open.values().map(|open| &open.value)
    }

    /// How many channels the peer has open.
    pub(crate) fn accepted(&self) -> usize {
        self.open.keys().filter(|number| self.is_peers(**number)).count()
    }

    /// Of the peer's channels, the one that has been silent longest, and since when.
    pub(crate) fn silent_longest(
        &self,
        last_activity: impl Fn(&T) -> Option<Instant>,
    ) -> Option<(u16, Instant)> {
        let accepted = self.open.iter().filter(|(number, _)| self.is_peers(**number));
        accepted.map(|(number, open)| (*number, open.last(&last_activity))).min_by_key(|(_, last)| *last)
    }

    /// Forgets a channel before its time.
    pub(crate) fn close(&mut self, now: Instant, number: u16) -> Option<T> {
        let open = self.open.remove(&number)?;
        if self.parity.has(number) {
            self.rest(now, number);
        }
        Some(open.value)
    }

    /// Takes out the channels that have been silent for their whole lifetime.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        last_activity: impl Fn(&T) -> Option<Instant>,
    ) -> Vec<(u16, T)> {
        let gone: Vec<_> = self
            .open
            .extract_if(|_, open| open.last(&last_activity) + CHANNEL_LIFETIME <= now)
            .map(|(number, open)| (number, open.last(&last_activity), open.value))
            .collect();
        for (number, last, _) in &gone {
            if self.parity.has(*number) {
                self.rest(*last, *number);
            }
        }
        gone.into_iter().map(|(number, _, value)| (number, value)).collect()
    }

    fn is_peers(&self, number: u16) -> bool {
        number <= LAST && !self.parity.has(number)
    }

    fn rest(&mut self, last: Instant, number: u16) {
        self.resting.insert((last + CHANNEL_LIFETIME + GUARD_TIME, number));
    }

    fn wake_rested(&mut self, now: Instant) {
        while let Some((_, number)) = self.resting.first().copied().filter(|(until, _)| *until <= now) {
            self.resting.pop_first();
            self.free.push_back(number);
        }
    }
}

fn numbers(parity: Parity) -> impl Iterator<Item = u16> {
    (FIRST..=LAST).filter(move |number| parity.has(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::rc::Rc;

    const SECOND: Duration = Duration::from_secs(1);

    fn never(_: &u8) -> Option<Instant> {
        None
    }

    #[test]
    fn the_side_that_sorts_lower_opens_even_numbers() {
        assert_eq!((Parity::of("a", "b"), Parity::of("b", "a")), (Parity::Even, Parity::Odd));
        // As bytes, not as letters.
        assert_eq!((Parity::of("Z", "a"), Parity::of("ä", "z")), (Parity::Even, Parity::Odd));
        assert_eq!(Parity::of("a", "a1"), Parity::Even);
        let now = any_instant();
        assert_eq!(Channels::new(Parity::Even).open(now, 1, None), Some(0x4000));
        assert_eq!(Channels::new(Parity::Odd).open(now, 1, None), Some(0x4001));
    }

    #[test]
    fn a_number_of_the_peers_is_opened_by_use_and_one_of_ours_is_not() {
        let (mut channels, now) = (Channels::new(Parity::Even), any_instant());
        assert_eq!(channels.incoming(now, 0x4001), Incoming::New);
        channels.accept(now, 0x4001, 7);
        assert_eq!(channels.incoming(now, 0x4001), Incoming::Open(7));
        assert_eq!(channels.accepted(), 1);
        assert_eq!(channels.incoming(now, 0x4002), Incoming::Unopened);
        let own = channels.open(now, 8, None).unwrap();
        assert_eq!((own, channels.incoming(now, own)), (0x4000, Incoming::Open(8)));
        for mut channels in [channels, Channels::new(Parity::Odd)] {
            assert_eq!(channels.incoming(now, 0x4fff), Incoming::Unopened);
        }
    }

    #[test]
    fn a_silent_channel_is_forgotten_and_its_number_rests() {
        let (mut channels, start) = (Channels::new(Parity::Even), any_instant());
        channels.open(start, 1, None).unwrap();
        channels.accept(start, 0x4001, 2);
        let last = |value: &u8| (*value == 2).then_some(start + SECOND);
        assert_eq!(channels.expire(start + CHANNEL_LIFETIME - SECOND, last), []);
        assert_eq!(channels.expire(start + CHANNEL_LIFETIME, last), [(0x4000, 1)]);
        assert_eq!(channels.expire(start + CHANNEL_LIFETIME + SECOND, last), [(0x4001, 2)]);
        let free = start + CHANNEL_LIFETIME + GUARD_TIME;
        let all = Vec::from_iter((1..2048).map(|_| channels.open(free - SECOND, 3, None).unwrap()));
        assert!(!all.contains(&0x4000));
        assert_eq!(channels.open(free - SECOND, 3, None), None);
        assert_eq!(channels.open(free, 3, None), Some(0x4000));
    }

    #[test]
    fn the_number_longest_unused_is_preferred_unless_one_is_wished_for() {
        let (mut channels, mut now) = (Channels::new(Parity::Odd), any_instant());
        for number in [0x4001, 0x4003] {
            assert_eq!(channels.open(now, 1, None), Some(number));
            channels.close(now, number).unwrap();
        }
        now += CHANNEL_LIFETIME + GUARD_TIME;
        assert_eq!(channels.open(now, 1, Some(0x4003)), Some(0x4003));
        assert_eq!(channels.open(now, 1, Some(0x4003)), Some(0x4005));
        // Neither the peer's nor the reserved one can be had by wishing.
        assert_eq!(channels.open(now, 1, Some(0x4fff)), Some(0x4007));
        assert_eq!(channels.open(now, 1, Some(0x4000)), Some(0x4009));
        let rest = std::iter::from_fn(|| channels.open(now, 1, None));
        assert_eq!(rest.last(), Some(0x4001));
    }

    #[test]
    fn a_number_of_ours_that_the_peer_uses_rests_anew() {
        let (mut channels, now) = (Channels::new(Parity::Even), any_instant());
        assert_eq!(channels.incoming(now, 0x4000), Incoming::Unopened);
        assert_eq!(channels.open(now, 1, None), Some(0x4002));
        let later = now + CHANNEL_LIFETIME + GUARD_TIME - SECOND;
        assert_eq!(channels.incoming(later, 0x4000), Incoming::Unopened);
        assert_ne!(channels.open(later + GUARD_TIME, 1, Some(0x4000)), Some(0x4000));
        assert_eq!(channels.open(later + 2 * GUARD_TIME, 1, Some(0x4000)), Some(0x4000));
    }

    #[test]
    fn a_peer_indication_ends_all_channels_and_frees_their_numbers() {
        let (mut channels, now) = (Channels::new(Parity::Even), any_instant());
        channels.open(now, 1, None).unwrap();
        channels.open(now, 2, None).unwrap();
        channels.close(now, 0x4002).unwrap();
        channels.accept(now, 0x4001, 3);
        let mut ended = channels.end_all(Parity::Even);
        ended.sort_unstable();
        assert_eq!(ended, [(0x4000, 1), (0x4001, 3)]);
        assert_eq!(channels.values().count(), 0);
        assert_eq!(channels.incoming(now, 0x4001), Incoming::New);
        assert_eq!(channels.open(now, 4, Some(0x4000)), Some(0x4000));
        assert_eq!(channels.open(now, 5, Some(0x4002)), Some(0x4002));
        assert_eq!(channels.end_all(Parity::Odd).len(), 2);
        assert_eq!(channels.open(now, 6, None), Some(0x4001));
        assert_eq!(channels.incoming(now, 0x4000), Incoming::New);
    }

    /// A flow, known to the side that opened its channel and, as a copy, to the other one.
    #[derive(Clone, Debug)]
    struct Way {
        flow: u32,
        last: Rc<Cell<Instant>>,
    }

    struct House {
        channels: Channels<Way>,
        /// On their way to this side: when they arrive, the number, and the flow that was meant.
        arriving: VecDeque<(Instant, u16, u32)>,
    }

    fn last(way: &Way) -> Option<Instant> {
        Some(way.last.get())
    }

    proptest! {
        // Two sides, a network that loses nothing and takes up to 100 s, flows that come and go.
        #[test]
        fn a_datagram_never_gets_into_another_flow(
            steps in prop::collection::vec((0..8u8, 0..4usize, 0..200u64, 0..100u64), 1..400),
        ) {
            let mut now = any_instant();
            let mut sides = [Parity::Even, Parity::Odd].map(|parity| House {
                // Few numbers, so that they are used again and again.
                channels: Channels {
                    free: numbers(parity).take(3).collect(),
                    ..Channels::new(parity)
                },
                arriving: VecDeque::new(),
            });
            let mut flows = 0;
            for (step, which, wait, delay) in steps {
                now += Duration::from_secs(wait);
                for side in &mut sides {
                    side.channels.expire(now, last);
                    while let Some((_, number, flow)) = side.arriving.front().copied().filter(|it| it.0 <= now) {
                        side.arriving.pop_front();
                        let known = match side.channels.incoming(now, number) {
                            Incoming::Open(way) => {
                                way.last.set(now);
                                way.flow
                            }
                            Incoming::New => {
                                let way = Way { flow, last: Rc::new(Cell::new(now)) };
                                side.channels.accept(now, number, way);
                                flow
                            }
                            Incoming::Unopened => flow,
                        };
                        prop_assert_eq!(known, flow, "on {:#06x}", number);
                    }
                }
                let from = usize::from(step % 2);
                let opened = {
                    let channels = &mut sides[from].channels;
                    if step < 2 {
                        flows += 1;
                        let way = Way { flow: flows, last: Rc::new(Cell::new(now)) };
                        channels.open(now, way, None)
                    } else {
                        {
                            let mut open: Vec<_> = channels.open.keys().copied().collect();
                            open.sort_unstable();
                            open.get(which).copied()
                        }
                    }
                };
                let Some(number) = opened else { continue };
                let way = sides[from].channels.open[&number].value.clone();
                way.last.set(now);
                if step == 7 {
                    // Its application is forgotten; a last datagram was sent just now.
                    sides[from].channels.close(now, number);
                }
                let to = &mut sides[1 - from].arriving;
                let earliest = to.back().map_or(now, |(at, ..)| *at);
                to.push_back((earliest.max(now + Duration::from_secs(delay)), number, way.flow));
            }
        }

        #[test]
        fn a_number_is_in_one_place_only(
            steps in prop::collection::vec((0..6u8, 0x4000..0x5000u16, 0..400u64), 1..300),
        ) {
            let (mut channels, mut now) = (Channels::new(Parity::Odd), any_instant());
            for (step, number, wait) in steps {
                now += Duration::from_secs(wait);
                match step {
                    0 | 1 => _ = channels.open(now, 0, Some(number)),
                    2 => if channels.incoming(now, number) == Incoming::New {
                        channels.accept(now, number, 1);
                    },
                    3 => _ = channels.close(now, number),
                    4 => _ = channels.expire(now, never),
                    _ => if number % 16 == 0 { channels.end_all(Parity::Odd); }
                }
            }
            let ours = channels.open.keys().filter(|number| Parity::Odd.has(**number));
            let all = ours.chain(&channels.free).chain(channels.resting.iter().map(|(_, number)| number));
            let all: Vec<u16> = all.copied().collect();
            prop_assert_eq!(all.len(), 2047);
            let set: HashSet<u16> = all.into_iter().collect();
            prop_assert_eq!(set, numbers(Parity::Odd).collect::<HashSet<u16>>());
        }
    }
}
