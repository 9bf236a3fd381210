//! The way of datagrams to and from one TURN peer.
//!
//! The `UdpEndpointActor` of a forward's local socket sends up, the TURN client delivers down, each itself and at
//! once: what they share lies here. Without a channel datagrams wait, bounded in bytes and age. With one they go
//! out over the control socket as they are received; over a control stream its flow has the queue. Nothing waits on
//! the way down: the server must not wait for an application.
//!
//! Whoever uses a path lives on the same arbiter; the locks are there for `Arc`, nobody waits for them.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use crate::clock::{self, Moment};
use crate::counters::{DropReason, LiveCounters};
use crate::datagrams::{Batch, Framing, Received};
use crate::flow::Flow;
use crate::lane::UdpParty;
use crate::tcp::channel_data;
use crate::udp_io::{Full, Sent, UdpIo};

thread_local! {
    // An arbiter's: messages that the control socket takes at once need no memory of their own.
    static MESSAGES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What all paths of a client have done on the control connection, so that it need not look at each.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// When datagrams were last sent.
    pub(crate) sent: Moment,
    /// When the server's host last answered "port unreachable" (ICMP) to one.
    pub(crate) refused: Moment,
}

/// How datagrams get to the peer while it has a channel.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// The control socket, connected to the server.
    Udp { io: Arc<UdpIo>, channel: u16 },
    /// The flow of the control stream, made by [`Flow::turn`].
    Stream { flow: Arc<Flow>, channel: u16 },
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct PeerPath {
    /// What waits for a route, as RFC 4571 frames.
    held: Flow,
    up: Mutex<Up>,
    down: Mutex<Down>,
    counters: Arc<LiveCounters>,
    activity: Arc<Activity>,
}

#[derive(Debug, Default)]
struct Up {
    route: Option<Route>,
    kept: Option<Kept>,
    /// Who polled [`PeerPath::poll_ready`] last: hears when there is something to wait for, or no more.
    sender: Option<Waker>,
}

/// ChannelData messages that the control socket has not taken yet: of one batch, or of what was held.
#[derive(Debug)]
struct Kept {
    io: Arc<UdpIo>,
    messages: Bytes,
    full: Full,
}

#[derive(Debug, Default)]
struct Down {
    local: Option<Arc<UdpIo>>,
    application: Option<UdpParty>,
}

impl PeerPath {
    /// Without a channel: holds at most `max_bytes`, each datagram for at most `hold`. Over a stream `counters`
    /// should be those of the stream's flow too, which counts what goes out and what it drops.
    pub(crate) fn new(
        max_bytes: usize,
        hold: Duration,
        counters: Arc<LiveCounters>,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            held: Flow::new(max_bytes, hold, counters.clone()),
            up: Mutex::default(),
            down: Mutex::default(),
            counters,
            activity,
        }
    }

    /// Sends datagrams that a local application sent, or holds them while there is no channel.
    pub(crate) fn send(&self, now: Instant, received: Received<'_>) {
        match self.sending(now) {
            None => self.held.push(now, received.batch(Framing::Rfc4571)),
            Some(Route::Stream { flow, channel }) => {
                flow.push(now, received.batch(Framing::PaddedChannel(channel)));
            }
            Some(Route::Udp { io, channel }) => MESSAGES.with_borrow_mut(|messages| {
                messages.clear();
                received.put(Framing::Channel(channel), messages);
                self.send_or_keep(&io, messages);
            }),
        }
    }

    /// The same for datagrams that came in a message; they stand in RFC 4571 frames.
    pub(crate) fn send_batch(&self, now: Instant, batch: Batch) {
        match self.sending(now) {
            None => self.held.push(now, batch),
            Some(Route::Stream { flow, channel }) => {
                flow.push(now, batch.reframed(Framing::PaddedChannel(channel)));
            }
            Some(Route::Udp { io, channel }) => {
                self.send_or_keep(&io, &batch.reframed(Framing::Channel(channel)).frames);
            }
        }
    }

    /// Counts datagrams of an application that is not served.
    pub(crate) fn refuse(&self, datagrams: u64) {
        self.counters.dropped(DropReason::TooManySources, datagrams);
    }

    /// Waits until the control socket has taken what it did not take at first. Until then nobody should send more:
    /// it would be dropped. To be polled by the endpoint each time it is about to read, or by the client where
    /// there is no endpoint.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut up = self.up();
        match &mut up.sender {
            Some(sender) => sender.clone_from(cx.waker()),
            sender => *sender = Some(cx.waker().clone()),
        }
        // Taken out: the lock is not held while the system is asked.
        let Some(mut kept) = up.kept.take() else { return Poll::Ready(()) };
        drop(up);
        loop {
            match kept.io.poll_writable(cx, &mut kept.full) {
                Poll::Ready(Ok(())) if self.send_kept(&mut kept) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "waiting for the control socket failed");
                    self.counters.dropped(DropReason::SendFailed, channel_data::count(&kept.messages));
                    return Poll::Ready(());
                }
                Poll::Pending => {
                    self.up().kept = Some(kept);
                    return Poll::Pending;
                }
            }
        }
    }

    /// The peer has a channel now: what was held goes out, as far as it is not too old.
    pub(crate) fn open(&self, now: Instant, route: Route) {
        self.replace(Some(route.clone()));
        let held = self.held.take(now);
        match route {
            Route::Stream { flow, channel } => {
                held.iter().for_each(|batch| flow.push(now, batch.reframed(Framing::PaddedChannel(channel))));
            }
            Route::Udp { io, channel } => {
                let messages: Vec<_> =
                    held.iter().map(|batch| batch.reframed(Framing::Channel(channel)).frames).collect();
                self.send_or_keep(&io, &messages.concat());
            }
        }
    }

    /// The peer has no channel any more: datagrams are held again, each for at most `hold`.
    pub(crate) fn close(&self, hold: Duration) {
        self.replace(None);
        self.held.set_max_age(hold);
    }

    /// How long datagrams are held from now on: longer while somebody works on a channel.
    pub(crate) fn set_hold(&self, hold: Duration) {
        self.held.set_max_age(hold);
    }

    /// Nobody will open this path again.
    pub(crate) fn end(&self) {
        self.replace(None);
        self.held.close();
    }

    fn replace(&self, route: Option<Route>) {
        let mut up = self.up();
        up.route = route;
        let kept = up.kept.take();
        let sender = kept.as_ref().and(up.sender.take());
        drop(up);
        if let Some(kept) = kept {
            self.counters.dropped(DropReason::ConnectionLost, channel_data::count(&kept.messages));
        }
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// Whether datagrams wait for a channel.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// Counts what has become too old since the last push, so that statistics are up to date.
    pub(crate) fn expire(&self, now: Instant) {
        self.held.expire(now);
    }

    /// The socket towards local applications, and which of them gets what the peer sends.
    pub(crate) fn set_local(&self, local: Arc<UdpIo>, application: Option<UdpParty>) {
        *self.down() = Down { local: Some(local), application };
    }

    /// Whether there is a socket towards local applications.
    pub(crate) fn has_local(&self) -> bool {
        self.down().local.is_some()
    }

    /// The local application that gets what the peer sends.
    pub(crate) fn application(&self) -> Option<UdpParty> {
        self.down().application
    }

    pub(crate) fn set_application(&self, application: Option<UdpParty>) {
        self.down().application = application;
    }

    /// Sends datagrams of the peer to the local application. What its socket does not take at once is dropped.
    /// Says how many system calls that took.
    pub(crate) fn deliver<'d>(&self, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        let down = self.down();
        let (Some(local), Some(application)) = (down.local.clone(), down.application) else {
            drop(down);
            self.counters.dropped(DropReason::NoApplication, datagrams.count() as u64);
            return 0;
        };
        drop(down);
        let sent = local.send_datagrams(datagrams, application.to, application.from);
        if sent.datagrams > 0 {
            self.counters.sent_to_udp(sent.datagrams, sent.bytes);
        }
        self.count_dropped(&sent);
        sent.calls
    }

    /// The route, if there is one: then datagrams are about to go out.
    fn sending(&self, now: Instant) -> Option<Route> {
        let route = self.route()?;
        self.activity.sent.set(now);
        Some(route)
    }

    /// Keeps what the socket does not take, unless it has not taken either what was kept before: then they are too
    /// many.
    fn send_or_keep(&self, io: &Arc<UdpIo>, messages: &[u8]) {
        let kept = self.up().kept.take();
        if let Some(mut kept) = kept
            && !self.send_kept(&mut kept)
        {
            self.up().kept = Some(kept);
            self.counters.dropped(DropReason::QueueFull, channel_data::count(messages));
            return;
        }
        let used = self.send_messages(io, messages);
        if used < messages.len() {
            let messages = Bytes::copy_from_slice(&messages[used..]);
            let mut up = self.up();
            up.kept = Some(Kept { io: io.clone(), messages, full: Full::default() });
            let sender = up.sender.take();
            drop(up);
            if let Some(sender) = sender {
                sender.wake();
            }
        }
    }

    /// Whether all of it has gone.
    fn send_kept(&self, kept: &mut Kept) -> bool {
        kept.messages.advance(self.send_messages(&kept.io, &kept.messages));
        kept.messages.is_empty()
    }

    /// Sends until the socket takes no more; says how many bytes are done with.
    fn send_messages(&self, io: &UdpIo, messages: &[u8]) -> usize {
        let mut used = 0;
        while used < messages.len() {
            let sent = io.send_channel_data(&messages[used..]);
            if sent.datagrams > 0 {
                self.counters.sent_to_tcp(sent.datagrams, sent.bytes);
            }
            self.count_dropped(&sent);
            if sent.refused > 0 {
                self.activity.refused.set(clock::now());
            }
            used += sent.used;
            if sent.blocked {
                break;
            }
        }
        used
    }

    fn count_dropped(&self, sent: &Sent) {
        self.counters.dropped(DropReason::TooLong, sent.too_long);
        self.counters.dropped(DropReason::SendFailed, sent.failed);
        self.counters.dropped(DropReason::ServiceUnreachable, sent.refused);
    }

    fn route(&self) -> Option<Route> {
        self.up().route.clone()
    }

    /// A panic elsewhere must not end this path: what the locks guard is valid at any time.
    fn up(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self) -> MutexGuard<'_, Down> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "turn_path_tests.rs"]
mod tests;
