//! Who has connected and not joined yet: bounded in all and per address, so that strangers can neither use up the
//! relay nor keep others out.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use super::directory::ConnectionKey;

/// Where somebody comes from, as far as it is told apart: an IPv4 address, or the /64 that one host has in IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// One origin among all: the busiest is the greatest, and of equals the one whose oldest is older.
type Rank = (usize, Reverse<u64>, Origin);

/// Connections that have not joined. When there are too many, the oldest of the busiest origin goes.
#[derive(Debug)]
pub(crate) struct Lobby {
    max: usize,
    max_per_origin: usize,
    /// Counts those who came, and so orders them.
    came: u64,
    who: HashMap<ConnectionKey, Origin>,
    /// The oldest first. Only origins that somebody is here from.
    from: HashMap<Origin, VecDeque<(u64, ConnectionKey)>>,
    ranks: BTreeSet<Rank>,
}

impl Lobby {
    /// At most `max` in all and `max_per_origin` from one origin, each 1 at the least.
    pub(crate) fn new(max: usize, max_per_origin: usize) -> Self {
        Self {
            max,
            max_per_origin,
            came: 0,
            who: HashMap::new(),
            from: HashMap::new(),
            ranks: BTreeSet::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.who.len()
    }

    /// Somebody has come. Says who has to go for it, if somebody has to.
    pub(crate) fn enter(&mut self, connection: ConnectionKey, ip: IpAddr) -> Option<ConnectionKey> {
        let origin = Origin::from(ip);
        self.came += 1;
        let came = self.came;
        self.who.insert(connection, origin);
        let count = self.change(origin, |queue| {
            queue.push_back((came, connection));
            queue.len()
        });
        let full = self.who.len() > self.max;
        let from = if count > self.max_per_origin {
            origin
        } else if full {
            self.ranks.last()?.2
        } else {
            return None;
        };
        let oldest = self.from.get(&from)?.front()?.1;
        self.leave(oldest);
        Some(oldest)
    }

    /// It has joined or is gone; nothing happens if it is not here.
    pub(crate) fn leave(&mut self, connection: ConnectionKey) {
        if let Some(origin) = self.who.remove(&connection) {
            self.change(origin, |queue| queue.retain(|(_, other)| *other != connection));
        }
    }

    /// Changes the queue of an origin, and its rank with it.
    fn change<R>(&mut self, origin: Origin, how: impl FnOnce(&mut VecDeque<(u64, ConnectionKey)>) -> R) -> R {
        let queue = self.from.entry(origin).or_default();
        let rank = |queue: &VecDeque<(u64, ConnectionKey)>| {
            queue.front().map(|(oldest, _)| (queue.len(), Reverse(*oldest), origin))
        };
        if let Some(before) = rank(queue) {
            self.ranks.remove(&before);
        }
        let result = how(queue);
        match rank(queue) {
            Some(after) => {
                self.ranks.insert(after);
            }
            None => {
                self.from.remove(&origin);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const EVERYBODY: usize = 4096;
    const OF_ONE: usize = 64;

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn the_sixty_fifth_of_an_address_costs_its_oldest() {
        let mut lobby = Lobby::new(EVERYBODY, OF_ONE);
        for key in 0..OF_ONE as u64 {
            assert_eq!(lobby.enter(ConnectionKey(key), v4(1)), None);
        }
        assert_eq!(lobby.enter(ConnectionKey(1000), v4(2)), None);
        assert_eq!(lobby.enter(ConnectionKey(1001), v4(1)), Some(ConnectionKey(0)));
        lobby.leave(ConnectionKey(1));
        assert_eq!(lobby.enter(ConnectionKey(1002), v4(1)), None);
        assert_eq!(lobby.enter(ConnectionKey(1003), v4(1)), Some(ConnectionKey(2)));
        assert_eq!(lobby.len(), OF_ONE + 1);
    }

    #[test]
    fn past_all_places_the_busiest_address_loses_its_oldest() {
        let mut lobby = Lobby::new(EVERYBODY, OF_ONE);
        // One who waits alone, then a crowd, then one connection each from everywhere.
        assert_eq!(lobby.enter(ConnectionKey(0), v4(0)), None);
        for key in 1..=40 {
            assert_eq!(lobby.enter(ConnectionKey(key), v4(1)), None);
        }
        for key in 41..EVERYBODY as u64 {
            assert_eq!(lobby.enter(ConnectionKey(key), v4(u32::try_from(key).unwrap())), None);
        }
        for key in 1..40 {
            let newcomer = ConnectionKey(10_000 + key);
            assert_eq!(
                lobby.enter(newcomer, v4(20_000 + u32::try_from(key).unwrap())),
                Some(ConnectionKey(key))
            );
        }
        // The crowd is one now, as everybody: the oldest of all goes.
        assert_eq!(lobby.enter(ConnectionKey(20_000), v4(30_000)), Some(ConnectionKey(0)));
        assert_eq!(lobby.len(), EVERYBODY);
    }

    #[test]
    fn a_host_is_one_origin_whatever_address_of_its_network_it_uses() {
        let mut lobby = Lobby::new(EVERYBODY, 1);
        let enter = |lobby: &mut Lobby, key, ip: &str| lobby.enter(ConnectionKey(key), ip.parse().unwrap());
        assert_eq!(enter(&mut lobby, 0, "2001:db8::1"), None);
        assert_eq!(enter(&mut lobby, 1, "2001:db8:0:1::1"), None);
        assert_eq!(enter(&mut lobby, 2, "2001:db8::ffff:1"), Some(ConnectionKey(0)));
        assert_eq!(enter(&mut lobby, 3, "192.0.2.1"), None);
        assert_eq!(enter(&mut lobby, 4, "::ffff:192.0.2.1"), Some(ConnectionKey(3)));
        assert_eq!(enter(&mut lobby, 5, "192.0.2.2"), None);
    }

    proptest! {
        #[test]
        fn the_lobby_does_what_a_list_would(
            max in 1..12usize,
            of_one in 1..5usize,
            steps in prop::collection::vec((0..3u8, 0..6u32, 0..40u64), 1..200),
        ) {
            let mut lobby = Lobby::new(max, of_one);
            let mut list: Vec<(ConnectionKey, u32)> = Vec::new();
            let mut next = 0;
            for (what, ip, which) in steps {
                if what == 0 {
                    let gone = ConnectionKey(which);
                    lobby.leave(gone);
                    list.retain(|(key, _)| *key != gone);
                } else {
                    let key = ConnectionKey(next);
                    next += 1;
                    list.push((key, ip));
                    let count = |ip| list.iter().filter(|(_, other)| *other == ip).count();
                    let busiest = list.iter().rev().max_by_key(|(_, ip)| count(*ip)).map(|(_, ip)| *ip);
                    let from = if count(ip) > of_one { Some(ip) } else { busiest.filter(|_| list.len() > max) };
                    let out = from.and_then(|from| list.iter().position(|(_, other)| *other == from));
                    let out = out.map(|index| list.remove(index).0);
                    prop_assert_eq!(lobby.enter(key, v4(ip)), out);
                    prop_assert_ne!(out, Some(key));
                }
                prop_assert_eq!(lobby.len(), list.len());
                prop_assert!(lobby.len() <= max);
                prop_assert_eq!(lobby.ranks.len(), lobby.from.len());
            }
        }
    }
}
