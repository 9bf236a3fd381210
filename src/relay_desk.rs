//! A desk: what the relay's actor and one connection share, on whichever threads they are.
//!
//! The actor gives orders over it, and the peer's connection pushes datagrams into its flow. The connection takes both
//! when it comes to them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_rt::ArbiterHandle;

use crate::config::RelayConfig;
use crate::counters::LiveCounters;
use crate::flow::Flow;
use crate::relay::directory::{ConnectionKey, Pairing, Refused};
use crate::relay::messages::{Instance, SideId};
use crate::relay::rate::Rate;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) key: ConnectionKey,
    /// Where the side calls from.
    pub(crate) peer: SocketAddr,
    /// Towards the side.
    pub(crate) flow: Flow,
    /// What was written to the side, and what was dropped on its way to it or for want of a peer.
    pub(crate) counters: Arc<LiveCounters>,
    orders: Mutex<Orders>,
}

/// A few at most: each follows from somebody's joining or leaving.
#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Told>,
    taker: Option<Waker>,
}

/// What a connection is told by the actor.
#[derive(Debug)]
pub(crate) enum Told {
    /// It is to go on on this thread, before anything else.
    Move(ArbiterHandle),
    /// It has become a side; its peer is there already, or not.
    Joined(Option<Meeting>, Option<SharedRate>),
    /// It has not; after this time it may be worth another try.
    Refused(Refused, Option<Duration>),
    PeerPresent(Meeting),
    PeerGone,
    /// The two of this pairing send too much; after this time they are read again.
    Slowed(Pairing, Duration),
    /// The session with this instance has taken its place.
    Superseded(Instance),
    /// The relay stops; the side may come back after this time.
    Restarting(Duration),
    /// It has not joined, and a newcomer needs its place.
    PlaceNeeded,
    /// The actor is gone.
    Abandoned,
    #[cfg(feature = "test-panic")]
    Panic,
}

/// What the two sides of a pair may send, where that is limited.
pub(crate) type SharedRate = Arc<Mutex<Rate>>;

/// Whom a side has met, and the way of its datagrams there.
#[derive(Debug)]
pub(crate) struct Meeting {
    pub(crate) way: Way,
    pub(crate) side: SideId,
    /// The other side's user, where pairs are made across users.
    pub(crate) user: Option<Arc<str>>,
}

/// The way to the peer. What is pushed after the pairing's end does not arrive.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) pairing: Pairing,
    pub(crate) to: Arc<Desk>,
}

impl Desk {
    pub(crate) fn new(
        key: ConnectionKey,
        peer: SocketAddr,
        config: &RelayConfig,
        counters: Arc<LiveCounters>,
    ) -> Self {
        Self {
            key,
            peer,
            flow: Flow::turn(config.queue_bytes, config.max_queue_delay, counters.clone()),
            counters,
            orders: Mutex::default(),
        }
    }

    pub(crate) fn tell(&self, told: Told) {
        let mut orders = self.lock();
        orders.waiting.push_back(told);
        let taker = orders.taker.take();
        drop(orders);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// The next order, in the order in which they were given.
    pub(crate) fn poll_told(&self, cx: &mut Context<'_>) -> Poll<Told> {
        let mut orders = self.lock();
        if let Some(told) = orders.waiting.pop_front() {
            return Poll::Ready(told);
        }
        // An idle connection owns no buffer.
        orders.waiting = VecDeque::new();
        match &mut orders.taker {
            Some(taker) => taker.clone_from(cx.waker()),
            taker => *taker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The queue is valid between any two of its methods, whoever panicked.
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
