//! The listener, and the lobby where accepted connections wait before they cost anything.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

use crate::link_stream::Stream;

/// The first rest of a listener when the system has no descriptor or memory left; doubled up to the last.
const FIRST_REST: Duration = Duration::from_millis(50);
const LAST_REST: Duration = Duration::from_secs(1);

/// What a listener has to say.
#[derive(Debug)]
pub(crate) enum Incoming {
    Peer(TcpStream, SocketAddr),
    /// It rests and will try again by itself.
    Paused(io::Error),
    /// The rest is over.
    Resumed,
}

/// Accepts connections; rests while the system is out of descriptors or memory.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    rest: Option<(Pin<Box<Sleep>>, Duration)>,
    /// Accepted with the call that ended a rest; told after that.
    held: Option<(TcpStream, SocketAddr)>,
}

impl Listener {
    pub(crate) fn new(tcp: std::net::TcpListener) -> io::Result<Self> {
        let tcp = TcpListener::from_std(tcp)?;
        Ok(Self { local: tcp.local_addr()?, tcp, rest: None, held: None })
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// A call that the system did not refuse for want of something ends a rest.
    fn resumed(&mut self) -> Option<Incoming> {
        self.rest.take().map(|_| Incoming::Resumed)
    }

    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        if let Some((stream, peer)) = self.held.take() {
            return Poll::Ready(Incoming::Peer(stream, peer));
        }
        loop {
            if let Some((sleep, _)) = &mut self.rest {
                ready!(sleep.as_mut().poll(cx));
            }
            match self.tcp.poll_accept(cx) {
                Poll::Pending => return self.resumed().map_or(Poll::Pending, Poll::Ready),
                Poll::Ready(Ok((stream, peer))) => {
                    let Some(resumed) = self.resumed() else {
                        return Poll::Ready(Incoming::Peer(stream, peer));
                    };
                    self.held = Some((stream, peer));
                    return Poll::Ready(resumed);
                }
                Poll::Ready(Err(error)) if is_of_one_connection(&error) => {}
                Poll::Ready(Err(error)) => {
                    let wait = self.rest.as_ref().map_or(FIRST_REST, |(_, wait)| (*wait * 2).min(LAST_REST));
                    let first = self.rest.is_none();
                    self.rest = Some((Box::pin(tokio::time::sleep(wait)), wait));
                    if first {
                        return Poll::Ready(Incoming::Paused(error));
                    }
                }
            }
        }
    }
}

/// The peer went away between its SYN and our accept, or its network failed: the listener is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable | TimedOut
    )
}

/// A connection in the lobby.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) stream: Stream,
    pub(crate) peer: SocketAddr,
    pub(crate) since: Instant,
    /// It has sent something: it need not be looked at again.
    pub(crate) spoken: bool,
}

/// Accepted connections that have no place yet: they have sent nothing, or the place is taken. At most
/// [`Lobby::LIMIT`] of them; a newcomer evicts the oldest.
#[derive(Debug, Default)]
pub(crate) struct Lobby {
    waiting: VecDeque<Waiting>,
}

impl Lobby {
    /// What may wait. Each costs a descriptor and some hundred bytes.
    pub(crate) const LIMIT: usize = 128;
    /// Nobody is evicted sooner: what he has sent may not have been noticed yet. Until then newcomers wait in the
    /// kernel's queue.
    const GRACE: Duration = Duration::from_secs(1);

    /// Until when nobody can come in: it is full, and its oldest came just now.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let oldest = self.waiting.front().filter(|_| self.waiting.len() >= Self::LIMIT)?;
        Some(oldest.since + Self::GRACE).filter(|until| *until > now)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a newcomer; gives back the oldest if there is no room for both.
    pub(crate) fn push(&mut self, newcomer: Waiting) -> Option<Waiting> {
        let evicted = if self.waiting.len() >= Self::LIMIT { self.waiting.pop_front() } else { None };
        self.waiting.push_back(newcomer);
        evicted
    }

    /// When the newest came.
    pub(crate) fn newest(&self) -> Option<Instant> {
        self.waiting.back().map(|newest| newest.since)
    }

    /// The newest: where one peer comes again and again, that is the one that lives.
    pub(crate) fn pop_newest(&mut self) -> Option<Waiting> {
        self.waiting.pop_back()
    }

    /// The oldest, if it came at or before `since`.
    pub(crate) fn pop_older(&mut self, since: Instant) -> Option<Waiting> {
        let is_older = self.waiting.front().is_some_and(|oldest| oldest.since <= since);
        if is_older { self.waiting.pop_front() } else { None }
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The next connection that has sent something, its bytes unread. Those that were closed are dropped.
    pub(crate) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get_mut(index) {
            match waiting.stream.poll_spoken(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(spoken) => {
                    if let Some(waiting) = self.waiting.remove(index).filter(|_| spoken) {
                        return Poll::Ready(waiting);
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Drops those that were closed before they had sent anything.
    pub(crate) fn drop_closed(&mut self, cx: &mut Context<'_>) {
        self.waiting.retain_mut(|waiting| {
            if !waiting.spoken
                && let Poll::Ready(spoken) = waiting.stream.poll_spoken(cx)
            {
                waiting.spoken = spoken;
                return spoken;
            }
            true
        });
    }
}
