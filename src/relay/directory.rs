//! Who waits for whom: the pairs of a relay, and which connections are their two sides.
//!
//! Knows connections by their keys only, and no time: how long a side may wait its connection sees to. Whatever
//! changes is told as orders to connections, each connection's in the order they are to be carried out.

use std::collections::HashMap;
use std::sync::Arc;

use super::messages::{Instance, PairId, SideId};

/// Numbers the connections of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionKey(pub(crate) u64);

/// One meeting of two connections; the same two sides meeting again have another number. What one pairing carried
/// must not reach the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pairing(pub(crate) u64);

/// How many may be here, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Sides that one user may have here at once, over all pairs.
    pub(crate) sessions_per_user: usize,
    /// Pairs, those with one side included.
    pub(crate) pairs: usize,
    /// Whether the two sides of a pair may be different users.
    pub(crate) pairs_across_users: bool,
}

/// Who wants to be a side of which pair. The user is known to be who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Newcomer {
    pub(crate) user: Arc<str>,
    pub(crate) pair: PairId,
    pub(crate) side: SideId,
    pub(crate) instance: Instance,
}

/// Why a newcomer does not become a side, in the order in which it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// 403: the pair, or the side, is another user's.
    NotYours,
    /// 409: two other sides are there.
    TwoOthers,
    /// 486: the user has as many sides here as one user may.
    SessionsUsedUp,
    /// 508: there are as many pairs as there may be.
    Full,
}

/// Whom a connection meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) pairing: Pairing,
    pub(crate) peer: ConnectionKey,
    /// The peer's name and, where pairs are made across users, its user's.
    pub(crate) side: SideId,
    pub(crate) user: Option<Arc<str>>,
}

/// What a connection that has joined is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It is no side any more: the session with this instance has taken its place.
    Superseded(Instance),
    /// Its peer has left; it waits again.
    PeerGone,
    /// It has a peer.
    PeerPresent(Met),
}

/// A newcomer has become a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// The peer, if it is there already: the newcomer hears of it by this.
    pub(crate) met: Option<Met>,
    /// For the other connections.
    pub(crate) orders: Vec<(ConnectionKey, Order)>,
}

#[derive(Debug)]
struct Side {
    connection: ConnectionKey,
    user: Arc<str>,
    name: SideId,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Directory {
    limits: Limits,
    /// One or two sides each.
    pairs: HashMap<PairId, Vec<Side>>,
    places: HashMap<ConnectionKey, PairId>,
    /// How many sides each user has; only those that have any.
    sessions: HashMap<Arc<str>, usize>,
    pairings: u64,
}

impl Directory {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, pairs: HashMap::new(), places: HashMap::new(), sessions: HashMap::new(), pairings: 0 }
    }

    /// How many pairs there are, those with one side included.
    pub(crate) fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// How many sides there are.
    pub(crate) fn sides(&self) -> usize {
        self.places.len()
    }

    /// The pair that a connection is a side of.
    pub(crate) fn pair_of(&self, connection: ConnectionKey) -> Option<&PairId> {
        self.places.get(&connection)
    }

    /// Makes a connection a side of a pair. One of the same user, pair and side gives way to it, and then no limit
    /// is met. A connection joins once only.
    ///
    /// # Errors
    /// Nothing has changed; see [`Refused`].
    pub(crate) fn join(&mut self, connection: ConnectionKey, who: Newcomer) -> Result<Joined, Refused> {
        debug_assert!(!self.places.contains_key(&connection), "{connection:?} has joined already");
        let Newcomer { user, pair, side, instance } = who;
        self.check(&user, &pair, &side)?;
        let sides = self.pairs.entry(pair.clone()).or_default();
        let mut orders = Vec::new();
        let old = sides.iter().position(|other| other.name == side).map(|index| sides.swap_remove(index));
        let is_replacing = old.is_some();
        if let Some(old) = old {
            self.places.remove(&old.connection);
            orders.push((old.connection, Order::Superseded(instance)));
        } else {
            *self.sessions.entry(user.clone()).or_default() += 1;
        }
        let newcomer = Side { connection, user, name: side };
        let met = sides.first().map(|peer| {
            if is_replacing {
                orders.push((peer.connection, Order::PeerGone));
            }
            self.pairings += 1;
            let pairing = Pairing(self.pairings);
            let across = self.limits.pairs_across_users;
            orders.push((peer.connection, Order::PeerPresent(newcomer.met_by_other(pairing, across))));
            peer.met_by_other(pairing, across)
        });
        sides.push(newcomer);
        self.places.insert(connection, pair);
        Ok(Joined { met, orders })
    }

    fn check(&self, user: &str, pair: &PairId, side: &SideId) -> Result<(), Refused> {
        let sides = self.pairs.get(pair).map_or(&[][..], Vec::as_slice);
        let across = self.limits.pairs_across_users;
        if sides.iter().any(|other| *other.user != *user && (!across || other.name == *side)) {
            return Err(Refused::NotYours);
        }
        if sides.iter().any(|other| other.name == *side) {
            return Ok(());
        }
        if sides.len() == 2 {
            return Err(Refused::TwoOthers);
        }
        if self.sessions.get(user).is_some_and(|count| *count >= self.limits.sessions_per_user) {
            return Err(Refused::SessionsUsedUp);
        }
        if sides.is_empty() && self.pairs.len() >= self.limits.pairs {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// The connection is no side any more, if it still was one. Says whose peer that was: it is to be told
    /// [`Order::PeerGone`].
    pub(crate) fn leave(&mut self, connection: ConnectionKey) -> Option<ConnectionKey> {
        let pair = self.places.remove(&connection)?;
        let sides = self.pairs.get_mut(&pair)?;
        let index = sides.iter().position(|side| side.connection == connection)?;
        let left = sides.swap_remove(index);
        let peer = sides.first().map(|peer| peer.connection);
        if peer.is_none() {
            self.pairs.remove(&pair);
        }
        if let Some(count) = self.sessions.get_mut(&left.user) {
            *count -= 1;
            if *count == 0 {
                self.sessions.remove(&left.user);
            }
        }
        peer
    }
}

impl Side {
    fn met_by_other(&self, pairing: Pairing, across: bool) -> Met {
        let user = across.then(|| self.user.clone());
        Met { pairing, peer: self.connection, side: self.name.clone(), user }
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
