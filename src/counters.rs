//! What was carried and what was dropped: counted per connection with atomics, read as plain values.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;

/// Why a datagram did not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(usize)]
pub enum DropReason {
    /// It waited longer than `max_queue_delay` (or `connect_hold`) for the TCP connection to take it, or for a TURN
    /// channel.
    Expired,
    /// The queue in front of the TCP connection held `queue_bytes` already; or the socket to a TURN server takes
    /// nothing.
    QueueFull,
    /// It was queued, or cut in the middle, when its TCP connection or TURN channel went away for good.
    ConnectionLost,
    /// It came over TCP, or from a TURN peer, before a local application had made itself known (see `app`).
    NoApplication,
    /// `max_sources` applications are being served already.
    TooManySources,
    /// It was sent (and counted so), but the UDP service or the TURN server answered "port unreachable" (ICMP).
    ServiceUnreachable,
    /// UDP would not take it for its length (EMSGSIZE); at a relay it is longer than `max_datagram`.
    TooLong,
    /// UDP would not take it for another reason, such as no route; or, if it came from a TURN peer, not at once.
    SendFailed,
    /// It came to a relay while its sender had no peer there, or had not yet heard that the one it meant is gone.
    NoPeer,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Expired,
        Self::QueueFull,
        Self::ConnectionLost,
        Self::NoApplication,
        Self::TooManySources,
        Self::ServiceUnreachable,
        Self::TooLong,
        Self::SendFailed,
        Self::NoPeer,
    ];

    /// As a person would say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "too old",
            Self::QueueFull => "queue full",
            Self::ConnectionLost => "connection lost",
            Self::NoApplication => "no application yet",
            Self::TooManySources => "too many sources",
            Self::ServiceUnreachable => "service unreachable",
            Self::TooLong => "too long",
            Self::SendFailed => "send failed",
            Self::NoPeer => "no peer",
        }
    }
}

/// Datagrams and their payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Payload bytes, without any header.
    pub bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

/// Dropped datagrams by [`DropReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Drops {
    /// [`DropReason::Expired`]
    pub expired: u64,
    /// [`DropReason::QueueFull`]
    pub queue_full: u64,
    /// [`DropReason::ConnectionLost`]
    pub connection_lost: u64,
    /// [`DropReason::NoApplication`]
    pub no_application: u64,
    /// [`DropReason::TooManySources`]
    pub too_many_sources: u64,
    /// [`DropReason::ServiceUnreachable`]
    pub service_unreachable: u64,
    /// [`DropReason::TooLong`]
    pub too_long: u64,
    /// [`DropReason::SendFailed`]
    pub send_failed: u64,
    /// [`DropReason::NoPeer`]
    pub no_peer: u64,
}

impl Drops {
    fn slot(&mut self, reason: DropReason) -> &mut u64 {
        match reason {
            DropReason::Expired => &mut self.expired,
            DropReason::QueueFull => &mut self.queue_full,
            DropReason::ConnectionLost => &mut self.connection_lost,
            DropReason::NoApplication => &mut self.no_application,
            DropReason::TooManySources => &mut self.too_many_sources,
            DropReason::ServiceUnreachable => &mut self.service_unreachable,
            DropReason::TooLong => &mut self.too_long,
            DropReason::SendFailed => &mut self.send_failed,
            DropReason::NoPeer => &mut self.no_peer,
        }
    }

    /// How many for one reason.
    pub fn of(mut self, reason: DropReason) -> u64 {
        *self.slot(reason)
    }

    /// How many in all.
    pub fn total(self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.of(*reason)).sum()
    }
}

impl AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        for reason in DropReason::ALL {
            *self.slot(reason) += other.of(reason);
        }
    }
}

/// What a session or one of its links has carried and dropped since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// From local UDP, written to TCP.
    pub to_tcp: Traffic,
    /// From TCP, sent to local UDP.
    pub to_udp: Traffic,
    /// Either way.
    pub drops: Drops,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.to_tcp += other.to_tcp;
        self.to_udp += other.to_udp;
        self.drops += other.drops;
    }
}

/// What a TURN client has carried and dropped since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TurnCounters {
    /// Sent to the server, for peers.
    pub to_peers: Traffic,
    /// From peers, handed to local applications.
    pub from_peers: Traffic,
    /// Either way.
    pub drops: Drops,
}

/// A TURN client counts where a session does: its server stands in the place of the TCP connection.
impl From<Counters> for TurnCounters {
    fn from(counters: Counters) -> Self {
        let Counters { to_tcp, to_udp, drops } = counters;
        Self { to_peers: to_tcp, from_peers: to_udp, drops }
    }
}

/// What a relay, or one of its pairs, has carried and dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelayCounters {
    /// From one side, written to the other.
    pub forwarded: Traffic,
    /// Either way.
    pub drops: Drops,
}

/// A relay has no UDP: all that it forwards is written to TCP.
impl From<Counters> for RelayCounters {
    fn from(counters: Counters) -> Self {
        Self { forwarded: counters.to_tcp, drops: counters.drops }
    }
}

/// The live side of [`Counters`], shared by the ends that count.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    to_tcp: [AtomicU64; 2],
    to_udp: [AtomicU64; 2],
    drops: [AtomicU64; DropReason::ALL.len()],
    totals: Weak<Totals>,
}

impl LiveCounters {
    pub(crate) fn sent_to_tcp(&self, datagrams: u64, bytes: u64) {
        self.to_tcp[0].fetch_add(datagrams, Relaxed);
        self.to_tcp[1].fetch_add(bytes, Relaxed);
    }

    pub(crate) fn sent_to_udp(&self, datagrams: u64, bytes: u64) {
        self.to_udp[0].fetch_add(datagrams, Relaxed);
        self.to_udp[1].fetch_add(bytes, Relaxed);
    }

    pub(crate) fn dropped(&self, reason: DropReason, datagrams: u64) {
        if datagrams > 0 {
            self.drops[reason as usize].fetch_add(datagrams, Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let traffic = |pair: &[AtomicU64; 2]| Traffic {
            datagrams: pair[0].load(Relaxed),
            bytes: pair[1].load(Relaxed),
        };
        let mut drops = Drops::default();
        for reason in DropReason::ALL {
            *drops.slot(reason) = self.drops[reason as usize].load(Relaxed);
        }
        Counters { to_tcp: traffic(&self.to_tcp), to_udp: traffic(&self.to_udp), drops }
    }
}

impl Drop for LiveCounters {
    fn drop(&mut self) {
        if let Some(totals) = self.totals.upgrade() {
            totals.lock().ended += self.snapshot();
        }
    }
}

/// The sum over all counters of a session, those included whose link is gone.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Sums>);

#[derive(Debug, Default)]
struct Sums {
    ended: Counters,
    live: Vec<Weak<LiveCounters>>,
}

impl Totals {
    /// New counters that count into this sum.
    pub(crate) fn counters(self: &Arc<Self>) -> Arc<LiveCounters> {
        let mut live = LiveCounters::default();
        live.totals = Arc::downgrade(self);
        let live = Arc::new(live);
        let mut sums = self.lock();
        if sums.live.len() == sums.live.capacity() {
            sums.live.retain(|live| live.strong_count() > 0);
        }
        sums.live.push(Arc::downgrade(&live));
        live
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let mut sums = self.lock();
        let live: Vec<_> = sums.live.iter().filter_map(Weak::upgrade).collect();
        let mut total = sums.ended;
        live.iter().for_each(|live| total += live.snapshot());
        sums.live.retain(|live| live.strong_count() > 0);
        // Unlocked first: the last owner's drop adds to `ended`, under the same lock.
        drop(sums);
        drop(live);
        total
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_stays_in_the_sum() {
        let totals = Arc::new(Totals::default());
        let (gone, live) = (totals.counters(), totals.counters());
        gone.sent_to_tcp(1, 10);
        live.sent_to_tcp(2, 20);
        drop(gone);
        assert_eq!(totals.snapshot().to_tcp, Traffic { datagrams: 3, bytes: 30 });
        drop(live);
        assert_eq!(totals.snapshot().to_tcp, Traffic { datagrams: 3, bytes: 30 });
    }

    #[test]
    fn every_reason_has_a_slot_of_its_own() {
        let live = LiveCounters::default();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            live.dropped(reason, 1 << index);
        }
        live.sent_to_tcp(2, 30);
        live.sent_to_udp(3, 40);
        let mut sum = live.snapshot();
        sum += live.snapshot();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(sum.drops.of(reason), 2 << index);
        }
        assert_eq!(sum.drops.total(), 2 * 511);
        assert_eq!(sum.to_tcp, Traffic { datagrams: 4, bytes: 60 });
        assert_eq!(sum.to_udp, Traffic { datagrams: 6, bytes: 80 });
        let turn = TurnCounters::from(sum);
        assert_eq!((turn.to_peers, turn.from_peers, turn.drops), (sum.to_tcp, sum.to_udp, sum.drops));
    }
}
