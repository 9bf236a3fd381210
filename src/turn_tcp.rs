//! TCP ports forwarded through a TCP allocation, either way: `tcp_listen` and `tcp_forward`.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use actix::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dial::dial;
use crate::event::EventKind;
use crate::listen::{Incoming, Listener};
use crate::sockopt::{TcpOptions, tune_tcp};
use crate::supervisor::Reporter;
use crate::turn::{ConnectPeer, RelayStream, TurnClientActor, TurnError};

/// A local side that has sent its end may still be answered for this long after the peer's last byte. A server need
/// not know half-closed connections (coturn resets both ends, and loses the tail): the end is passed on last.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// The other end of a closed connection has this long to take the last bytes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// After a connection has ended the server refuses another to the same peer (446) for a moment.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// So long is that tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(50);
/// Bytes in one read.
const COPY_LEN: usize = 64 << 10;

impl TurnClientActor {
    /// Takes local connections at all ports of `tcp_listen`.
    pub(crate) fn listen_for_tcp(&mut self, ctx: &mut Context<Self>) -> io::Result<()> {
        for (index, listen) in self.config.tcp_listen.iter().enumerate() {
            let listener = self.sockets.listener(index)?.expect("the supervisor has bound one for each port");
            let listener = Listener::new(listener)?;
            let serving = serve(listener, listen.peer, ctx.address(), self.reporter.clone());
            ctx.spawn(serving.into_actor(self));
        }
        Ok(())
    }

    /// Joins an accepted connection with one to the service.
    pub(crate) fn forward_stream(&self, stream: RelayStream, to: SocketAddr, ctx: &mut Context<Self>) {
        // Not the options of connections to the server: this one stays here.
        let joined = async move {
            match dial(&to.into(), &TcpOptions::default(), LINGER_TIMEOUT).await {
                Ok((local, _)) => join(stream, local).await,
                Err(error) => tracing::warn!(%to, peer = %stream.peer(), %error, "the service is not there"),
            }
        };
        ctx.spawn(joined.into_actor(self));
    }
}

/// One local connection after the other, each over one with the peer: a server allows only one at a time. The next
/// waits in the kernel's queue.
async fn serve(mut listener: Listener, peer: SocketAddr, client: Addr<TurnClientActor>, reporter: Reporter) {
    loop {
        let local_tcp = listener.local();
        match poll_fn(|cx| listener.poll_accept(cx)).await {
            Incoming::Peer(local, _) => {
                let _ = tune_tcp(&local);
                // What went wrong has been told as an event; the connection is closed by being dropped.
                if let Ok(stream) = connect(&client, peer).await {
                    join(stream, local).await;
                }
            }
            Incoming::Paused(error) => {
                reporter.report(EventKind::AcceptPaused { local_tcp, error: error.to_string() });
            }
            Incoming::Resumed => reporter.report(EventKind::AcceptResumed { local_tcp }),
        }
    }
}

async fn connect(client: &Addr<TurnClientActor>, peer: SocketAddr) -> Result<RelayStream, TurnError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        // No answer in time, or the client is gone.
        let Ok(Ok(connected)) = timeout_at(deadline, client.send(ConnectPeer { peer })).await else {
            return Err(TurnError::NoAllocation { retrying: false });
        };
        match connected {
            Err(TurnError::Refused { code: 446, .. } | TurnError::NoAllocation { retrying: true })
                if Instant::now() + RETRY_INTERVAL < deadline =>
            {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// Copies both ways until the peer has closed, or the local side has and no answer comes any more.
async fn join(relay: RelayStream, local: TcpStream) {
    let (mut from_relay, mut to_relay) = tokio::io::split(relay);
    let (mut from_local, mut to_local) = local.into_split();
    let has_peer_ended = {
        let last = Cell::new(Instant::now());
        let up = pin!(copy(&mut from_local, &mut to_relay, || {}));
        let mut down = pin!(copy(&mut from_relay, &mut to_local, || last.set(Instant::now())));
        let ended = tokio::select! {
            _ = &mut down => None,
            ended = up => Some(ended),
        };
        if let Some(Ok(())) = ended {
            last.set(Instant::now());
            while timeout_at(last.get() + LINGER_TIMEOUT, &mut down).await.is_err()
                && last.get().elapsed() < LINGER_TIMEOUT
            {}
        }
        ended.is_none()
    };
    if has_peer_ended {
        let _ = to_local.shutdown().await;
        // Closed with unread bytes it would be reset, and what was sent before be lost.
        let mut nowhere = tokio::io::sink();
        let _ = timeout(DRAIN_TIMEOUT, copy(&mut from_local, &mut nowhere, || {})).await;
    }
    let _ = to_relay.shutdown().await;
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    each: impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        each();
        to.write_all(&buffer[..len]).await?;
    }
}
