//! A relay's connection from the accept until bytes can come, on the thread where it is to stay, and the news of its
//! end.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::clock::now;
use crate::config::RelayConfig;
use crate::event::LeaveCause;
use crate::relay::TcpRelayActor;
use crate::relay::connection::{Connection, JOIN_TIMEOUT};
use crate::relay::directory::ConnectionKey;
use crate::relay_conn::{Outcome, RelayConnection};
use crate::relay_desk::Desk;
use crate::sockopt;
use crate::tls::{Acceptor, TlsError};
use crate::transport::Transport;

/// What the system may hold of a side that is slowed. Above, no rate is low enough to matter.
const MIN_RECEIVE_LEN: usize = 16 << 10;
const MAX_RECEIVE_LEN: usize = 4 << 20;

/// A connection was closed because its TLS handshake failed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct HandshakeFailed {
    pub(crate) peer: SocketAddr,
    pub(crate) error: TlsError,
}

/// It is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ConnectionEnded {
    pub(crate) key: ConnectionKey,
    pub(crate) cause: LeaveCause,
}

/// Tells the relay's actor of a connection's end, whatever ended it.
#[derive(Debug)]
struct Farewell {
    key: ConnectionKey,
    cause: LeaveCause,
    relay: Addr<TcpRelayActor>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let cause = if std::thread::panicking() { LeaveCause::Panicked } else { self.cause };
        // One message for each connection that lived, so the mailbox's capacity need not bound it.
        self.relay.do_send(ConnectionEnded { key: self.key, cause });
    }
}

/// A connection that has just been accepted, on its way to its thread.
#[derive(Debug)]
pub(crate) struct Arrival {
    tcp: std::net::TcpStream,
    desk: Arc<Desk>,
    config: Arc<RelayConfig>,
    core: Connection,
    /// If it is to speak TLS.
    acceptor: Option<Acceptor>,
    accepted: Instant,
    farewell: Farewell,
}

impl Arrival {
    /// One that was accepted at this time, as its core knows.
    pub(crate) fn new(
        tcp: std::net::TcpStream,
        accepted: Instant,
        acceptor: Option<Acceptor>,
        desk: Arc<Desk>,
        config: Arc<RelayConfig>,
        core: Connection,
        relay: Addr<TcpRelayActor>,
    ) -> Self {
        // Where its thread is gone, or ends, nobody says anything else.
        let farewell = Farewell { key: desk.key, cause: LeaveCause::Restarting, relay };
        Self { tcp, desk, config, core, acceptor, accepted, farewell }
    }

    /// The whole life of the connection. To be called on the thread where it is to stay.
    pub(crate) async fn serve(self) {
        let Self { tcp, desk, config, core, acceptor, accepted, mut farewell } = self;
        let tcp = match TcpStream::from_std(tcp) {
            Ok(tcp) => tcp,
            Err(error) => {
                tracing::warn!(peer = %desk.peer, %error, "cannot serve a connection");
                farewell.cause = LeaveCause::Broken;
                return;
            }
        };
        if let Err(error) = sockopt::tune_tcp(&tcp) {
            // It has gone already; whoever reads will find out.
            tracing::debug!(peer = %desk.peer, %error, "tuning an accepted connection");
        }
        if let Some(rate) = config.max_rate {
            hold_little(&tcp, rate);
        }
        let stream = match acceptor {
            None => Transport::from(tcp),
            Some(acceptor) => {
                let left = JOIN_TIMEOUT.saturating_sub(now().saturating_duration_since(accepted));
                // Not a part of this future, which lives for long.
                let handshake = Box::pin(acceptor.accept(tcp, left));
                tokio::select! {
                    result = handshake => match result {
                        Ok(stream) => stream.into(),
                        Err(error) => {
                            farewell.relay.do_send(HandshakeFailed { peer: desk.peer, error });
                            farewell.cause = LeaveCause::Broken;
                            return;
                        }
                    },
                    // Whatever it is told before it can ask for anything, it has to go.
                    _ = poll_fn(|cx| desk.poll_told(cx)) => {
                        farewell.cause = LeaveCause::Limit;
                        return;
                    }
                }
            }
        };
        let relay = farewell.relay.clone();
        go_on(RelayConnection::new(stream, core, desk, config, relay), farewell).await;
    }
}

/// Of a pair that is slowed the system would hold seconds of what is not read yet: it may hold what comes in 1/16 s, or
/// 16 KiB if that is more. A system that refuses it goes on as before.
fn hold_little(tcp: &TcpStream, rate: u64) {
    let len = usize::try_from(rate / 16).unwrap_or(usize::MAX).clamp(MIN_RECEIVE_LEN, MAX_RECEIVE_LEN);
    let _ = SockRef::from(tcp).set_recv_buffer_size(len);
}

/// The life of a connection on one thread, and the way to the next.
async fn go_on(mut connection: RelayConnection, mut farewell: Farewell) {
    let to = match (&mut connection).await {
        Outcome::Over(cause) => return farewell.cause = cause,
        Outcome::Moves(to) => to,
    };
    let still = match connection.still() {
        Ok(still) => still,
        Err(error) => return not_moved(&error, farewell),
    };
    // If that thread is gone the connection is dropped, and the farewell tells of it.
    to.spawn_fn(move || match still.wake() {
        Ok(connection) => _ = actix_rt::spawn(go_on(connection, farewell)),
        Err(error) => not_moved(&error, farewell),
    });
}

fn not_moved(error: &io::Error, mut farewell: Farewell) {
    tracing::warn!(%error, "a connection could not go on on its peer's thread");
    farewell.cause = LeaveCause::Broken;
}
