//! TCP connections with peers through a TCP allocation (RFC 6062): from a Connect or an attempt to a bound
//! data connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::TurnError;
use super::transactions::{ANSWER_TIMEOUT, CONNECT_ANSWER_TIMEOUT};
use crate::stun::{Seal, TransactionId};

/// The gate has this long to decide on an attempt; its silence rejects (seeds).
pub(crate) const GATE_TIMEOUT: Duration = Duration::from_secs(5);
/// A data connection is to be bound within 30 s (RFC 6062 §4.3, §4.4), or the server drops the peer's.
pub(crate) const BIND_TIMEOUT: Duration = Duration::from_secs(25);
/// Connections and attempts at a time.
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// Of these, peers' attempts that nobody has decided on.
pub(crate) const MAX_ATTEMPTS: usize = 64;
/// Challenges on one data connection.
const MAX_CHALLENGES: u8 = 2;

/// Names a connection within this client, also before the server has given it a CONNECTION-ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

/// How far a connection has come.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Connect has been sent.
    Connecting,
    /// A peer's attempt; the gate is asked.
    Asked,
    /// The shell dials the server for a data connection.
    Dialing,
    /// The data connection is up; the nonce is being confirmed before ConnectionBind, for a server may answer a
    /// stale one by a reset that burns the id. `asked`: the server has been asked once for this connection.
    Opened { asked: bool },
    /// ConnectionBind has been sent.
    Binding { id: TransactionId, seal: Option<Arc<Seal>> },
    /// The data connection carries the peer's bytes.
    Bound,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    /// CONNECTION-ID, once the server has given it.
    pub(crate) id: Option<u32>,
    pub(crate) phase: Phase,
    deadline: Option<Instant>,
    challenges: u8,
}

impl Connection {
    /// Its data connection carries the peer's bytes.
    pub(crate) fn is_bound(&self) -> bool {
        matches!(self.phase, Phase::Bound)
    }

    /// Counts a 401 or 438 in answer to ConnectionBind.
    ///
    /// # Errors
    /// It is one too many.
    pub(crate) fn count_challenge(&mut self, code: u16) -> Result<(), TurnError> {
        self.challenges += 1;
        if self.challenges <= MAX_CHALLENGES {
            return Ok(());
        }
        let why = format!("{code} {} times in a row", self.challenges);
        Err(TurnError::BadAnswer { request: "ConnectionBind", why })
    }

    fn too_late(&self) -> TurnError {
        match self.phase {
            Phase::Asked => TurnError::NotAccepted,
            Phase::Connecting => {
                TurnError::NoAnswer { request: "Connect", after: CONNECT_ANSWER_TIMEOUT, unbelieved: None }
            }
            Phase::Binding { .. } => {
                TurnError::NoAnswer { request: "ConnectionBind", after: BIND_TIMEOUT, unbelieved: None }
            }
            Phase::Dialing | Phase::Opened { .. } | Phase::Bound => {
                TurnError::DataConnection { why: format!("not bound within {BIND_TIMEOUT:?}") }
            }
        }
    }
}

/// What becomes of a peer's attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The gate is to be asked.
    New(Key),
    /// It is known already.
    Known,
    /// There are too many.
    Refused,
}

/// All connections of one allocation, at most [`MAX_CONNECTIONS`].
#[derive(Debug, Default)]
pub(crate) struct Connections {
    all: BTreeMap<Key, Connection>,
    next: u64,
}

impl Connections {
    /// Numbers go on where those of an earlier allocation ended, so that late news is told apart.
    pub(crate) fn starting_at(next: u64) -> Self {
        Self { all: BTreeMap::new(), next }
    }

    pub(crate) fn next_key(&self) -> u64 {
        self.next
    }

    fn add(&mut self, peer: SocketAddr, id: Option<u32>, phase: Phase, deadline: Instant) -> Key {
        let key = Key(self.next);
        self.next += 1;
        self.all.insert(key, Connection { peer, id, phase, deadline: Some(deadline), challenges: 0 });
        key
    }

    /// One that we ask for.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn connect(&mut self, now: Instant, peer: SocketAddr) -> Result<Key, TurnError> {
        if self.all.len() >= MAX_CONNECTIONS {
            return Err(TurnError::TooMany { what: "relay connections", limit: MAX_CONNECTIONS });
        }
        // Later than the request's own end, which says more; its answer may be waited for behind others.
        let deadline = now + CONNECT_ANSWER_TIMEOUT + ANSWER_TIMEOUT;
        Ok(self.add(peer, None, Phase::Connecting, deadline))
    }

    /// The server tells of a peer that connected.
    pub(crate) fn attempt(&mut self, now: Instant, peer: SocketAddr, id: u32) -> Attempt {
        if self.all.values().any(|connection| connection.id == Some(id)) {
            return Attempt::Known;
        }
        let asked = self.all.values().filter(|connection| matches!(connection.phase, Phase::Asked)).count();
        if self.all.len() >= MAX_CONNECTIONS || asked >= MAX_ATTEMPTS {
            return Attempt::Refused;
        }
        Attempt::New(self.add(peer, Some(id), Phase::Asked, now + GATE_TIMEOUT))
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Connection> {
        self.all.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        self.all.get_mut(&key)
    }

    /// From here on the server waits for the data connection.
    pub(crate) fn dial(&mut self, now: Instant, key: Key) {
        if let Some(connection) = self.all.get_mut(&key) {
            connection.phase = Phase::Dialing;
            connection.deadline = Some(now + BIND_TIMEOUT);
        }
    }

    pub(crate) fn bound(&mut self, key: Key) {
        if let Some(connection) = self.all.get_mut(&key) {
            connection.phase = Phase::Bound;
            connection.deadline = None;
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Connection> {
        self.all.remove(&key)
    }

    /// Those that wait for a confirmed nonce.
    pub(crate) fn opened(&self) -> Vec<Key> {
        let opened =
            self.all.iter().filter(|(_, connection)| matches!(connection.phase, Phase::Opened { .. }));
        opened.map(|(key, _)| *key).collect()
    }

    /// Takes out those whose time is over, with the reason.
    pub(crate) fn take_late(&mut self, now: Instant) -> Vec<(Key, Connection, TurnError)> {
        let is_late = |connection: &Connection| connection.deadline.is_some_and(|at| at <= now);
        let late: Vec<Key> = self.all.iter().filter(|(_, it)| is_late(it)).map(|(key, _)| *key).collect();
        let taken = late.into_iter().filter_map(|key| Some((key, self.all.remove(&key)?)));
        let taken = taken.map(|(key, connection)| {
            let error = connection.too_late();
            (key, connection, error)
        });
        taken.collect()
    }

    /// Takes out all.
    pub(crate) fn clear(&mut self) -> Vec<(Key, Connection)> {
        std::mem::take(&mut self.all).into_iter().collect()
    }

    /// Bound ones: CONNECTION-ID and peer.
    pub(crate) fn all_bound(&self) -> Vec<(u32, SocketAddr)> {
        let bound = self.all.values().filter(|connection| matches!(connection.phase, Phase::Bound));
        bound.filter_map(|connection| Some((connection.id?, connection.peer))).collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.all.values().filter_map(|connection| connection.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn an_attempt_is_asked_about_once_and_rejected_by_silence() {
        let (start, mut connections) = (any_instant(), Connections::default());
        let Attempt::New(key) = connections.attempt(start, peer(1), 7) else { panic!("it is new") };
        assert_eq!(connections.attempt(start, peer(1), 7), Attempt::Known);
        assert_eq!(connections.poll_timeout(), Some(start + GATE_TIMEOUT));
        let late = connections.take_late(start + GATE_TIMEOUT);
        assert_eq!((late[0].0, late[0].2.clone()), (key, TurnError::NotAccepted));
        assert!(connections.get(key).is_none());
    }

    #[test]
    fn a_data_connection_has_its_time_and_then_no_end() {
        let (start, mut connections) = (any_instant(), Connections::default());
        let key = connections.connect(start, peer(1)).unwrap();
        connections.dial(start, key);
        assert_eq!(connections.poll_timeout(), Some(start + BIND_TIMEOUT));
        connections.get_mut(key).unwrap().id = Some(9);
        connections.bound(key);
        assert_eq!(connections.poll_timeout(), None);
        assert_eq!(connections.all_bound(), [(9, peer(1))]);
        let other = connections.connect(start, peer(2)).unwrap();
        connections.dial(start, other);
        let late = connections.take_late(start + BIND_TIMEOUT);
        assert!(matches!(late[0].2, TurnError::DataConnection { .. }));
        assert_eq!(connections.clear().len(), 1);
        assert!(connections.connect(start, peer(2)).unwrap() > other, "a number is used once");
    }

    #[test]
    fn there_are_limits() {
        let (start, mut connections) = (any_instant(), Connections::default());
        for id in 0..MAX_ATTEMPTS as u32 {
            assert!(matches!(connections.attempt(start, peer(1), id), Attempt::New(_)));
        }
        assert_eq!(connections.attempt(start, peer(1), 9999), Attempt::Refused);
        for _ in MAX_ATTEMPTS..MAX_CONNECTIONS {
            connections.connect(start, peer(1)).unwrap();
        }
        assert!(connections.connect(start, peer(1)).is_err());
    }

    #[test]
    fn challenges_on_a_data_connection_end() {
        let (start, mut connections) = (any_instant(), Connections::default());
        let key = connections.connect(start, peer(1)).unwrap();
        let connection = connections.get_mut(key).unwrap();
        (0..MAX_CHALLENGES).for_each(|_| connection.count_challenge(438).unwrap());
        assert!(connection.count_challenge(438).is_err());
    }
}
