//! TLS handshakes with peers that were accepted: where they wait before the lobby.
//!
//! Each is a task of its own on the session's thread: one that idles is not looked at, holds up nobody, and ends
//! after 10 s.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::{AbortHandle, Id, JoinSet};

use crate::tls::{Acceptor, HANDSHAKE_TIMEOUT, TlsError};
use crate::tls_stream::TlsStream;

/// The handshakes of one session; at most [`Handshakes::LIMIT`] at once, a newcomer ends the oldest.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    tasks: JoinSet<Result<TlsStream, TlsError>>,
    under_way: VecDeque<Handshake>,
}

#[derive(Debug)]
struct Handshake {
    task: AbortHandle,
    peer: SocketAddr,
    since: Instant,
}

impl Handshakes {
    /// Each costs a descriptor and some ten KiB.
    pub(crate) const LIMIT: usize = 128;
    /// Nobody is evicted sooner: that is some round trips for who means it. Until then newcomers wait in the
    /// kernel's queue.
    const GRACE: Duration = Duration::from_secs(1);

    /// Until when nobody can come in: it is full, and its oldest came just now.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let oldest = self.under_way.front().filter(|_| self.under_way.len() >= Self::LIMIT)?;
        Some(oldest.since + Self::GRACE).filter(|until| *until > now)
    }

    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Begins another; gives back the peer whose handshake was ended for it.
    pub(crate) fn begin(
        &mut self,
        acceptor: Acceptor,
        tcp: TcpStream,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        let is_full = self.under_way.len() >= Self::LIMIT;
        let evicted = if is_full { self.under_way.pop_front() } else { None };
        if let Some(evicted) = &evicted {
            evicted.task.abort();
        }
        let task = self.tasks.spawn(async move { acceptor.accept(tcp, HANDSHAKE_TIMEOUT).await });
        self.under_way.push_back(Handshake { task, peer, since: now });
        evicted.map(|evicted| evicted.peer)
    }

    /// The next that is over, well or not.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<(SocketAddr, Result<TlsStream, TlsError>)> {
        loop {
            match ready!(self.tasks.poll_join_next_with_id(cx)) {
                // An empty set wakes nobody; a newcomer comes with a look at this.
                None => return Poll::Pending,
                Some(Ok((id, result))) => {
                    if let Some(handshake) = self.remove(id) {
                        return Poll::Ready((handshake.peer, result));
                    }
                }
                // Evicted, and told of then; or a bug.
                Some(Err(error)) => {
                    if error.is_panic() {
                        tracing::error!("a TLS handshake panicked (a bug)");
                    }
                    self.remove(error.id());
                }
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.under_way.clear();
        self.tasks = JoinSet::new();
    }

    fn remove(&mut self, id: Id) -> Option<Handshake> {
        let index = self.under_way.iter().position(|handshake| handshake.task.id() == id)?;
        self.under_way.remove(index)
    }
}
