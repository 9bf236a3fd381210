//! Who comes to a relay: accepted, counted among those who have not joined, and sent to its thread before anything is
//! read, but for the header with which a proxy says who calls.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::net::TcpStream;

use crate::clock::now;
use crate::event::{EventKind, JoinRefusal};
use crate::listen::Incoming;
use crate::relay::connection::Connection;
use crate::relay::directory::ConnectionKey;
use crate::relay::{PairLabel, TcpRelayActor};
use crate::relay_arrival::Arrival;
use crate::relay_desk::{Desk, Told};
use crate::relay_proxied::{Heard, is_proxy, read_now};

/// Connections accepted, and those whose caller has become known, in one turn of the task.
const MAX_TURNS: usize = 32;

/// A connection, as far as the actor knows it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) desk: Arc<Desk>,
    /// Which of the relay's threads serves it.
    pub(crate) thread: usize,
    /// It had to give its place to a newcomer: it does not join any more.
    pub(crate) is_out: bool,
    /// Once it has joined.
    pub(crate) member: Option<Member>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) pair: PairLabel,
    pub(crate) side: String,
    pub(crate) user: Arc<str>,
}

impl Guest {
    pub(crate) fn new(desk: Arc<Desk>, thread: usize) -> Self {
        Self { desk, thread, is_out: false, member: None }
    }
}

/// Accepts at all addresses of the relay, each time that it is woken.
pub(crate) struct Accept;

impl ActorFuture<TcpRelayActor> for Accept {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut TcpRelayActor,
        ctx: &mut Context<TcpRelayActor>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let mut turns = 0;
        for index in 0..act.listeners.len() {
            while turns < MAX_TURNS
                && let Some(listener) = act.listeners.get_mut(index)
                && let Poll::Ready(incoming) = listener.poll_accept(cx)
            {
                let local = listener.local();
                act.on_incoming(incoming, local, ctx);
                turns += 1;
            }
        }
        let mut callers = 0;
        while callers < MAX_TURNS
            && let Poll::Ready(heard) = act.proxied.poll_next(cx)
        {
            act.on_heard(heard, ctx);
            callers += 1;
        }
        if turns == MAX_TURNS || callers == MAX_TURNS {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl TcpRelayActor {
    fn on_incoming(&mut self, incoming: Incoming, listener: SocketAddr, ctx: &mut Context<Self>) {
        match incoming {
            Incoming::Paused(error) => {
                let error = error.to_string();
                self.reporter.report(EventKind::AcceptPaused { local_tcp: listener, error });
            }
            Incoming::Resumed => self.reporter.report(EventKind::AcceptResumed { local_tcp: listener }),
            Incoming::Peer(tcp, peer) if is_proxy(&self.config, peer.ip()) => match read_now(&tcp) {
                // Nobody waits for what is here already, as it mostly is.
                Some(header) => self.on_connection(tcp, header.source.unwrap_or(peer), now(), ctx),
                None => {
                    if let Some(evicted) = self.proxied.begin(tcp, peer, now()) {
                        self.refuse(evicted, JoinRefusal::PlaceNeeded);
                    }
                }
            },
            Incoming::Peer(tcp, peer) => self.on_connection(tcp, peer, now(), ctx),
        }
    }

    fn on_heard(&mut self, heard: Heard, ctx: &mut Context<Self>) {
        match heard {
            Heard::Caller { tcp, peer, accepted } => self.on_connection(tcp, peer, accepted, ctx),
            Heard::Refused { proxy, reason } => self.refuse(proxy, reason),
            Heard::Gone => {}
        }
    }

    fn on_connection(
        &mut self,
        tcp: TcpStream,
        peer: SocketAddr,
        accepted: Instant,
        ctx: &mut Context<Self>,
    ) {
        // One that cannot be taken from this thread is closed by being dropped.
        let Ok(tcp) = tcp.into_std() else { return };
        let key = ConnectionKey(self.next_key);
        self.next_key += 1;
        let desk = Arc::new(Desk::new(key, peer, &self.config, self.sockets.totals.counters()));
        let thread = self.load.place();
        self.guests.insert(key, Guest::new(desk.clone(), thread));
        if let Some(oldest) = self.lobby.enter(key, peer.ip())
            && let Some(guest) = self.guests.get_mut(&oldest)
        {
            guest.is_out = true;
            guest.desk.tell(Told::PlaceNeeded);
            let evicted = guest.desk.peer;
            self.refuse(evicted, JoinRefusal::PlaceNeeded);
        }
        let acceptor = self.sockets.acceptor();
        if let Some(news) = acceptor.as_ref().and_then(|acceptor| acceptor.look(now())) {
            self.reporter.report(news);
        }
        let core = Connection::new(accepted, key.0, peer, self.shared.clone());
        let arrival = Arrival::new(tcp, accepted, acceptor, desk, self.config.clone(), core, ctx.address());
        if let Some(arbiter) = self.arbiters.get(thread) {
            // If the thread is gone, the arrival is dropped, and tells us so.
            arbiter.spawn_fn(move || {
                actix_rt::spawn(arrival.serve());
            });
        }
    }
}
