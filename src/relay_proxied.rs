//! Connections that a proxy in front of the relay makes: where they wait until its PROXY header has said who calls.
//!
//! Each is a task of its own on the relay's thread: one that idles is not looked at, holds up nobody, and ends when the
//! time to join is over.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use rustix::net::{RecvFlags, recv};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::timeout_at;

use crate::config::RelayConfig;
use crate::event::JoinRefusal;
use crate::relay::connection::JOIN_TIMEOUT;
use crate::relay::proxy::{self, Header, Wrong};

/// Those whose header is not yet complete; at most [`Proxied::LIMIT`] at once, a newcomer ends the oldest.
#[derive(Debug, Default)]
pub(crate) struct Proxied {
    tasks: JoinSet<Heard>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    task: AbortHandle,
    proxy: SocketAddr,
}

/// What became of a connection.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Its header has been read, and nothing behind it.
    Caller { tcp: TcpStream, peer: SocketAddr, accepted: Instant },
    /// It was closed: the proxy said nothing that would do.
    Refused { proxy: SocketAddr, reason: JoinRefusal },
    /// The proxy closed it: some see so whether the relay is there.
    Gone,
}

impl Proxied {
    /// Each costs a descriptor and some KiB. A proxy sends its header at once, so few wait at a time.
    pub(crate) const LIMIT: usize = 1024;

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Reads another one's header; gives back the proxy whose connection was ended for it.
    pub(crate) fn begin(
        &mut self,
        tcp: TcpStream,
        proxy: SocketAddr,
        accepted: Instant,
    ) -> Option<SocketAddr> {
        let is_full = self.waiting.len() >= Self::LIMIT;
        let evicted = if is_full { self.waiting.pop_front() } else { None };
        if let Some(evicted) = &evicted {
            evicted.task.abort();
        }
        let task = self.tasks.spawn(hear(tcp, proxy, accepted));
        self.waiting.push_back(Waiting { task, proxy });
        evicted.map(|evicted| evicted.proxy)
    }

    /// The next that waits no more.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        loop {
            match ready!(self.tasks.poll_join_next_with_id(cx)) {
                // An empty set wakes nobody; a newcomer comes with a look at this.
                None => return Poll::Pending,
                Some(Ok((id, heard))) => {
                    if self.remove(id) {
                        return Poll::Ready(heard);
                    }
                }
                // Evicted, and told of then; or a bug.
                Some(Err(error)) => {
                    if error.is_panic() {
                        tracing::error!("reading a PROXY header panicked (a bug)");
                    }
                    self.remove(error.id());
                }
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.tasks = JoinSet::new();
    }

    /// Whether it was there.
    fn remove(&mut self, id: Id) -> bool {
        let index = self.waiting.iter().position(|waiting| waiting.task.id() == id);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }
}

/// Whether a connection from there must begin with a PROXY header.
pub(crate) fn is_proxy(config: &RelayConfig, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    config.proxy_protocol.iter().any(|network| network.contains(&ip))
}

/// Reads the header if all of it is here, and else nothing.
pub(crate) fn read_now(tcp: &TcpStream) -> Option<Header> {
    let mut bytes = [0; proxy::MAX_LEN];
    // Not through tokio, which does not know yet that there is something.
    let (seen, _) = recv(tcp, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT).ok()?;
    let header = proxy::parse(&bytes[..seen]).ok()??;
    let (read, _) = recv(tcp, &mut bytes[..header.len], RecvFlags::DONTWAIT).ok()?;
    (read == header.len).then_some(header)
}

async fn hear(mut tcp: TcpStream, proxy: SocketAddr, accepted: Instant) -> Heard {
    let reason = match timeout_at((accepted + JOIN_TIMEOUT).into(), read_header(&mut tcp)).await {
        Ok(Ok(Ok(header))) => return Heard::Caller { tcp, peer: header.source.unwrap_or(proxy), accepted },
        Ok(Ok(Err(Wrong::Missing))) => JoinRefusal::NoProxyHeader,
        Ok(Ok(Err(Wrong::Malformed))) => JoinRefusal::BadProxyHeader,
        Ok(Err(error)) => {
            tracing::debug!(%proxy, %error, "waiting for a PROXY header");
            return Heard::Gone;
        }
        Err(_) => JoinRefusal::LateProxyHeader,
    };
    Heard::Refused { proxy, reason }
}

/// Reads a header and not a byte more: what is behind it belongs to TLS, or is the caller's first message.
async fn read_header(tcp: &mut TcpStream) -> io::Result<Result<Header, Wrong>> {
    let mut bytes = [0; proxy::MAX_LEN];
    let mut len = 0;
    loop {
        let seen = tcp.peek(&mut bytes[len..]).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = match proxy::parse(&bytes[..len + seen]) {
            Ok(header) => header,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let end = header.map_or(len + seen, |header| header.len);
        tcp.read_exact(&mut bytes[len..end]).await?;
        len = end;
        if let Some(header) = header {
            return Ok(Ok(header));
        }
    }
}
