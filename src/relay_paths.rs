//! The flows of a session at a relay, each with its channel and its local UDP party.
//!
//! The endpoints of local sockets send up, the link delivers down, each itself and at once: what they share lies
//! here. While no peer is there datagrams wait, bounded in bytes and age. All channels share one connection, and
//! so one queue. Nothing waits on the way down: one application must not hold up the others.
//!
//! It outlives connections. When the same side comes back its flows keep their numbers, and with them their sockets: a
//! service goes on sending at once, and an application hears from where it did before.
//!
//! Whoever uses it lives on the same arbiter; the locks are there for `Arc`, nobody waits for them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Moment;
use crate::counters::LiveCounters;
use crate::datagrams::Received;
use crate::flow::Flow;
use crate::lane::{LinkId, UdpParty};
use crate::relay::channels::{CHANNEL_LIFETIME, Channels, Incoming, Parity};
use crate::relay::directory::Pairing;
use crate::relay::messages::SideId;
use crate::session::admission::SILENT_TIMEOUT;
use crate::turn_path::{PeerPath, Route};
use crate::udp_io::UdpIo;

/// One flow: a local UDP party, and the way of its datagrams to and from the peer.
#[derive(Debug)]
pub(crate) struct ChannelPath {
    path: PeerPath,
    /// The socket towards a service belongs to the channel, and its endpoint has this number. The socket that
    /// applications send to is everybody's.
    pub(crate) endpoint: Option<LinkId>,
    /// Its channel while it has one, else 0.
    open: AtomicU16,
    /// The last one it had.
    number: AtomicU16,
    from_udp: Moment,
    from_peer: Moment,
    /// Set while the service is known to answer "port unreachable".
    pub(crate) unreachable: AtomicBool,
}

impl ChannelPath {
    /// From a local socket, datagrams of the peer to `party`.
    fn new(shared: &RelayPaths, io: Arc<UdpIo>, party: Option<UdpParty>, endpoint: Option<LinkId>) -> Self {
        let hold = shared.lock().hold;
        let path = PeerPath::new(shared.queue_bytes, hold, shared.counters.clone(), Arc::default());
        path.set_local(io, party);
        Self {
            path,
            endpoint,
            open: AtomicU16::new(0),
            number: AtomicU16::new(0),
            from_udp: Moment::default(),
            from_peer: Moment::default(),
            unreachable: AtomicBool::new(false),
        }
    }

    /// Sends what the local party sent, or holds it while there is no channel.
    pub(crate) fn send(&self, now: Instant, received: Received<'_>) {
        self.from_udp.set(now);
        self.path.send(now, received);
    }

    /// Sends datagrams of the peer to the local party; says how many system calls that took.
    pub(crate) fn deliver<'d>(&self, now: Instant, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        self.from_peer.set(now);
        self.path.deliver(datagrams)
    }

    /// Whether it has a channel.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Relaxed) != 0
    }

    /// When a datagram last came from either side.
    pub(crate) fn last_activity(&self) -> Option<Instant> {
        self.from_udp.get().max(self.from_peer.get())
    }

    /// The local socket has another registration with this thread.
    pub(crate) fn move_to(&self, io: Arc<UdpIo>) {
        self.path.set_local(io, self.path.application());
    }

    /// It has this channel: the peer's datagrams are its own.
    fn assign(&self, number: u16) {
        self.number.store(number, Relaxed);
        self.open.store(number, Relaxed);
    }

    /// What it sends goes out over its channel, and what it has held.
    fn begin(&self, now: Instant, flow: &Arc<Flow>, number: u16) {
        self.path.open(now, Route::Stream { flow: flow.clone(), channel: number });
    }

    /// It has no channel any more, and may get one again.
    fn pause(&self, hold: Duration) {
        self.open.store(0, Relaxed);
        self.path.close(hold);
    }

    /// It is forgotten for good.
    fn end(&self) {
        self.open.store(0, Relaxed);
        self.path.end();
    }
}

fn last_activity(path: &Arc<ChannelPath>) -> Option<Instant> {
    path.last_activity()
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct RelayPaths {
    inner: Mutex<Inner>,
    /// To the relay: ChannelData, and STUN before it.
    pub(crate) flow: Arc<Flow>,
    /// Of all channels together.
    pub(crate) counters: Arc<LiveCounters>,
    queue_bytes: usize,
}

#[derive(Debug)]
struct Inner {
    channels: Channels<Arc<ChannelPath>>,
    /// The peer's name, while it is there and after it has gone.
    peer: Option<SideId>,
    is_paired: bool,
    /// The peer may be sent to: channels lead to the flow.
    may_send: bool,
    pairings: u64,
    /// How long datagrams wait for a channel.
    hold: Duration,
    /// Flows of local applications, with a channel or without, the newest last.
    own: Vec<Arc<ChannelPath>>,
    /// Flows of the peer's, by number, while it is gone.
    parked: HashMap<u16, Arc<ChannelPath>>,
    /// The local application that gets what the peer's own applications send; `None`: the newest.
    app: Option<UdpParty>,
}

/// What a datagram's channel is.
#[derive(Debug)]
pub(crate) enum Way {
    Open(Arc<ChannelPath>),
    /// The peer opens it: [`RelayPaths::accept_service`] or [`RelayPaths::accept_application`] is to follow.
    New,
    /// There is none.
    Unopened,
}

impl RelayPaths {
    /// `max_age` is what a datagram may have while a peer is there, `hold` while none is.
    pub(crate) fn new(
        counters: Arc<LiveCounters>,
        queue_bytes: usize,
        max_age: Duration,
        hold: Duration,
        app: Option<SocketAddr>,
    ) -> Self {
        let inner = Inner {
            channels: Channels::new(Parity::Even),
            peer: None,
            is_paired: false,
            may_send: false,
            pairings: 0,
            hold,
            own: Vec::new(),
            parked: HashMap::new(),
            app: app.map(|to| UdpParty { to, from: None }),
        };
        let flow = Arc::new(Flow::turn(queue_bytes, max_age, counters.clone()));
        Self { inner: Mutex::new(inner), flow, counters, queue_bytes }
    }

    /// A flow for a local application that has sent its first datagram.
    pub(crate) fn add(&self, now: Instant, io: Arc<UdpIo>, application: UdpParty) -> Arc<ChannelPath> {
        let path = Arc::new(ChannelPath::new(self, io, Some(application), None));
        let mut inner = self.lock();
        inner.own.push(path.clone());
        inner.direct_to_newest();
        drop(inner);
        self.open(now, &path);
        path
    }

    /// A local application is served no more.
    pub(crate) fn remove(&self, now: Instant, path: &Arc<ChannelPath>) {
        let mut inner = self.lock();
        inner.own.retain(|own| !Arc::ptr_eq(own, path));
        let number = path.open.load(Relaxed);
        if number != 0 {
            inner.channels.close(now, number);
        }
        inner.direct_to_newest();
        drop(inner);
        path.end();
    }

    /// The local applications that have a flow.
    pub(crate) fn applications(&self) -> Vec<(UdpParty, Arc<ChannelPath>)> {
        let inner = self.lock();
        let known = inner.own.iter().map(|path| (path.path.application(), path.clone()));
        known.filter_map(|(application, path)| Some((application?, path))).collect()
    }

    /// A local application has moved to another port, or writes to another address of ours.
    pub(crate) fn readdress(&self, path: &ChannelPath, application: UdpParty) {
        path.path.set_application(Some(application));
        self.lock().direct_to_newest();
    }

    /// Opens a channel for a local application that has none, if a peer is there.
    pub(crate) fn open(&self, now: Instant, path: &Arc<ChannelPath>) {
        let mut inner = self.lock();
        if !inner.is_paired || path.is_open() {
            return;
        }
        let number = inner.open(now, path);
        let may_send = inner.may_send;
        drop(inner);
        if let Some(number) = number.filter(|_| may_send) {
            path.begin(now, &self.flow, number);
        }
    }

    /// The peer is there, or is told of again, and may send. Flows of ours get a channel, with the number they had; so do
    /// the flows of a peer that was there before. Gives back what is left of another peer's.
    pub(crate) fn peer_present(&self, now: Instant, own: &SideId, peer: &SideId) -> Vec<Arc<ChannelPath>> {
        let mut inner = self.lock();
        inner.park(Parity::of(own.as_str(), peer.as_str()));
        let mut strangers = Vec::new();
        if inner.peer.as_ref() != Some(peer) {
            strangers.extend(std::mem::take(&mut inner.parked).into_values());
            if inner.peer.replace(peer.clone()).is_some() {
                // What was held was meant for another one.
                inner.own.iter().for_each(|path| path.end());
            }
        }
        let is_silent =
            |path: &ChannelPath| path.last_activity().is_none_or(|at| at + CHANNEL_LIFETIME <= now);
        strangers.extend(inner.parked.extract_if(|_, path| is_silent(path)).map(|(_, path)| path));
        inner.is_paired = true;
        for (number, path) in std::mem::take(&mut inner.parked) {
            path.assign(number);
            inner.channels.accept(now, number, path);
        }
        for path in inner.own.clone() {
            inner.open(now, &path);
        }
        drop(inner);
        strangers.iter().for_each(|path| path.end());
        strangers
    }

    /// The peer that is there may be sent to. What was held for it goes out.
    pub(crate) fn may_send(&self, now: Instant) {
        let mut inner = self.lock();
        if !inner.is_paired {
            return;
        }
        inner.may_send = true;
        inner.pairings += 1;
        let pairing = Pairing(inner.pairings);
        let all: Vec<_> = inner.channels.iter().map(|(number, path)| (number, path.clone())).collect();
        drop(inner);
        self.flow.meet(pairing);
        self.flow.admit(pairing);
        all.into_iter().for_each(|(number, path)| path.begin(now, &self.flow, number));
    }

    /// The connection has ended, and no peer is there before the next one has met it.
    pub(crate) fn connection_ended(&self) {
        self.peer_gone();
        self.flow.restart();
    }

    /// The peer has gone: what waits to be sent is dropped.
    pub(crate) fn peer_gone(&self) {
        let mut inner = self.lock();
        let parity = inner.channels.parity();
        inner.park(parity);
        inner.is_paired = false;
        drop(inner);
        self.flow.part();
    }

    /// How long datagrams wait from now on, while there is no channel.
    pub(crate) fn set_hold(&self, hold: Duration) {
        let mut inner = self.lock();
        inner.hold = hold;
        let all = inner.own.iter().chain(inner.parked.values()).chain(inner.channels.values());
        all.for_each(|path| path.path.set_hold(hold));
    }

    /// What a datagram on this channel is to be done with.
    pub(crate) fn incoming(&self, now: Instant, number: u16) -> Way {
        let mut inner = self.lock();
        if !inner.is_paired {
            return Way::Unopened;
        }
        match inner.channels.incoming(now, number) {
            Incoming::Open(path) => Way::Open(path),
            Incoming::New => Way::New,
            Incoming::Unopened => Way::Unopened,
        }
    }

    /// Makes room for another channel of the peer, of which there may be `limit`: if there is none, the one that has
    /// been silent longest gives way, after 5 s at the least. It is given back to be ended.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn make_room(&self, now: Instant, limit: usize) -> Result<Option<Arc<ChannelPath>>, Full> {
        let mut inner = self.lock();
        if inner.channels.accepted() < limit {
            return Ok(None);
        }
        let silent = inner.channels.silent_longest(last_activity);
        let silent = silent.filter(|(_, last)| *last + SILENT_TIMEOUT <= now);
        let Some((number, _)) = silent else { return Err(Full) };
        let path = inner.channels.close(now, number);
        path.iter().for_each(|path| path.end());
        Ok(path)
    }

    /// The name of the peer that is there, if it has no channel, and had none.
    pub(crate) fn lone_peer(&self) -> Option<String> {
        let inner = self.lock();
        let is_first = inner.parked.is_empty() && inner.channels.accepted() == 0;
        inner.peer.as_ref().filter(|_| is_first).map(|peer| peer.as_str().to_owned())
    }

    /// The peer's new channel leads to a service, over a socket of its own whose endpoint has this number.
    pub(crate) fn accept_service(
        &self,
        now: Instant,
        number: u16,
        io: Arc<UdpIo>,
        service: SocketAddr,
        endpoint: LinkId,
    ) -> Arc<ChannelPath> {
        let party = UdpParty { to: service, from: None };
        let path = Arc::new(ChannelPath::new(self, io, Some(party), Some(endpoint)));
        self.accept(now, number, &path);
        path
    }

    /// The peer's new channel leads to the local application: the one named, or the newest.
    pub(crate) fn accept_application(&self, now: Instant, number: u16, io: Arc<UdpIo>) -> Arc<ChannelPath> {
        let path = Arc::new(ChannelPath::new(self, io, None, None));
        self.accept(now, number, &path);
        self.lock().direct_to_newest();
        path
    }

    fn accept(&self, now: Instant, number: u16, path: &Arc<ChannelPath>) {
        let mut inner = self.lock();
        path.assign(number);
        inner.channels.accept(now, number, path.clone());
        let may_send = inner.may_send;
        drop(inner);
        if may_send {
            path.begin(now, &self.flow, number);
        }
    }

    /// Forgets channels that have been silent for 300 s. Gives back those of the peer's, to be ended; a local
    /// application keeps its flow, and opens another channel when it sends again.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Arc<ChannelPath>> {
        let mut inner = self.lock();
        let mut ended = Vec::new();
        let hold = inner.hold;
        for (_, path) in inner.channels.expire(now, last_activity) {
            if inner.own.iter().any(|own| Arc::ptr_eq(own, &path)) {
                path.pause(hold);
            } else {
                path.end();
                ended.push(path);
            }
        }
        ended
    }

    /// Whether this is a flow of the peer's.
    pub(crate) fn has(&self, path: &Arc<ChannelPath>) -> bool {
        let inner = self.lock();
        inner.channels.values().chain(inner.parked.values()).any(|known| Arc::ptr_eq(known, path))
    }

    /// Counts what has become too old since the last push, so that statistics are up to date.
    pub(crate) fn count_expired(&self, now: Instant) {
        self.flow.expire(now);
        let inner = self.lock();
        inner.own.iter().chain(inner.channels.values()).for_each(|path| path.path.expire(now));
    }

    /// A panic elsewhere must not end these flows: what the lock guards is valid at any time.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is no room for another channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Inner {
    /// A channel for a flow of ours, with the number it had if that is free.
    fn open(&mut self, now: Instant, path: &Arc<ChannelPath>) -> Option<u16> {
        let wish = path.number.load(Relaxed);
        let number = self.channels.open(now, path.clone(), (wish != 0).then_some(wish))?;
        path.assign(number);
        Some(number)
    }

    /// All channels end.
    fn park(&mut self, parity: Parity) {
        self.may_send = false;
        let hold = self.hold;
        for (number, path) in self.channels.end_all(parity) {
            path.pause(hold);
            if !self.own.iter().any(|own| Arc::ptr_eq(own, &path)) {
                self.parked.insert(number, path);
            }
        }
    }

    /// Channels that the peer's applications opened lead to the application that is named, or to the newest.
    fn direct_to_newest(&self) {
        let newest = || self.own.last().and_then(|path| path.path.application());
        let to = self.app.or_else(newest);
        let all = self.channels.values().chain(self.parked.values());
        for path in all.filter(|path| path.endpoint.is_none()) {
            if !self.own.iter().any(|own| Arc::ptr_eq(own, path)) {
                path.path.set_application(to);
            }
        }
    }
}

#[cfg(test)]
#[path = "relay_paths_tests.rs"]
mod tests;
