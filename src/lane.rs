//! A lane: what one local UDP party and the TCP connection that serves it share.
//!
//! It outlives both: the connection may break and be made anew, the application may move to another port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clock::Moment;
use crate::counters::{LiveCounters, Totals};
use crate::flow::Flow;

/// Numbers the links of a session, from 0. A link keeps its number when its connection is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct LinkId(pub u64);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom datagrams go to on the UDP side, and from which of our addresses if that must be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UdpParty {
    pub(crate) to: SocketAddr,
    pub(crate) from: Option<IpAddr>,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) link: LinkId,
    /// From UDP to TCP.
    pub(crate) flow: Flow,
    pub(crate) counters: Arc<LiveCounters>,
    /// Set while the service is known to answer "port unreachable".
    pub(crate) unreachable: AtomicBool,
    /// Set while the link is down because nobody used it: the next datagram is to wake the session.
    pub(crate) dormant: AtomicBool,
    party: Mutex<Option<UdpParty>>,
    from_udp: Moment,
    /// Over the present connection, and over those before it.
    from_tcp: Moment,
    from_tcp_before: Moment,
}

impl Lane {
    pub(crate) fn new(
        link: LinkId,
        party: Option<UdpParty>,
        max_bytes: usize,
        max_age: Duration,
        counters: Arc<LiveCounters>,
    ) -> Self {
        Self {
            link,
            flow: Flow::new(max_bytes, max_age, counters.clone()),
            counters,
            unreachable: AtomicBool::new(false),
            dormant: AtomicBool::new(false),
            party: Mutex::new(party),
            from_udp: Moment::default(),
            from_tcp: Moment::default(),
            from_tcp_before: Moment::default(),
        }
    }

    /// Whom the datagrams that come over TCP go to; `None` until a local application is known.
    pub(crate) fn party(&self) -> Option<UdpParty> {
        *self.party.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_party(&self, party: Option<UdpParty>) {
        *self.party.lock().unwrap_or_else(PoisonError::into_inner) = party;
    }

    pub(crate) fn heard_from_udp(&self, now: Instant) {
        self.from_udp.set(now);
    }

    pub(crate) fn heard_from_tcp(&self, now: Instant) {
        self.from_tcp.set(now);
    }

    /// A new connection begins: with a whole frame, also where the last one's actor panicked in the middle of
    /// one. Nothing has come over it yet; what came before stays activity.
    pub(crate) fn connection_begins(&self) {
        self.flow.restart();
        if let Some(before) = self.from_tcp.take() {
            self.from_tcp_before.set(before);
        }
    }

    /// When bytes last came over the present TCP connection.
    pub(crate) fn last_from_tcp(&self) -> Option<Instant> {
        self.from_tcp.get()
    }

    /// When the local application or service last sent.
    pub(crate) fn last_from_udp(&self) -> Option<Instant> {
        self.from_udp.get()
    }

    /// When bytes last came from either side.
    pub(crate) fn last_activity(&self) -> Option<Instant> {
        self.from_tcp.get().max(self.from_tcp_before.get()).max(self.from_udp.get())
    }
}

/// Makes the lanes of one session, each with the next number. Shared by those who meet new parties: the
/// session and its local UDP endpoint.
#[derive(Debug)]
pub(crate) struct LaneMaker {
    next: AtomicU64,
    max_bytes: usize,
    max_age: Duration,
    totals: Arc<Totals>,
}

impl LaneMaker {
    /// `max_age` is what a lane's datagrams may have before its connection is up.
    pub(crate) fn new(max_bytes: usize, max_age: Duration, totals: Arc<Totals>) -> Self {
        Self { next: AtomicU64::new(0), max_bytes, max_age, totals }
    }

    /// A number that nothing else of the session has.
    pub(crate) fn number(&self) -> LinkId {
        LinkId(self.next.fetch_add(1, Relaxed))
    }

    pub(crate) fn make(&self, party: Option<UdpParty>) -> Arc<Lane> {
        let link = self.number();
        Arc::new(Lane::new(link, party, self.max_bytes, self.max_age, self.totals.counters()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activity_is_remembered_per_side_and_never_is_none() {
        let counters = Arc::new(LiveCounters::default());
        let lane = Lane::new(LinkId(0), None, 1 << 16, Duration::from_secs(1), counters);
        assert_eq!(lane.last_activity(), None);
        let now = Instant::now();
        lane.heard_from_udp(now);
        assert_eq!(lane.last_from_tcp(), None);
        let error = now.duration_since(lane.last_activity().unwrap());
        assert!(error <= Duration::from_millis(1), "{error:?}");
        lane.heard_from_tcp(now + Duration::from_secs(1));
        assert_eq!(lane.last_activity(), lane.last_from_tcp());
        let before = lane.last_activity();
        lane.connection_begins();
        assert_eq!(lane.last_from_tcp(), None);
        assert_eq!(lane.last_activity(), before);
    }
}
