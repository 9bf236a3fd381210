//! TCP ports forwarded through a TCP allocation, either way: `tcp_listen` and `tcp_forward`.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::counters::LiveCounters;
use crate::dial::dial;
use crate::event::{EventKind, TurnEvent};
use crate::listen::{Incoming, Listener};
use crate::sockopt::{TcpOptions, be_patient, tune_tcp};
use crate::supervisor::Reporter;
use crate::turn::{AwaitAllocation, ConnectPeer, RelayStream, TurnClientActor, TurnError};

/// A local side that has sent its end may still be answered for this long after the peer's last byte. A server need
/// not know half-closed connections (coturn resets both ends, and loses the tail): the end is passed on last.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while another local connection waits for its turn: mostly the end was of both halves.
const HURRIED_LINGER_TIMEOUT: Duration = Duration::from_millis(300);
/// The other end of a closed connection has this long to take the last bytes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// After a connection has ended the server refuses another to the same peer (446) for a moment, or for as long as
/// somebody else has one: each further wait is twice as long.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// For so long the peer may fail to take another (447), where it is itself behind a server: that has not noticed
/// the end yet, and allows only one from each address.
const PEER_NOTICES_TIMEOUT: Duration = Duration::from_secs(1);
/// A local connection waits so long for one with the peer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(50);
/// After a connection that could not be made the next local one waits for so long, twice as long after each further …
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// … and at most so long.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Bytes in one read.
const COPY_LEN: usize = 64 << 10;

impl TurnClientActor {
    /// Takes local connections at all ports of `tcp_listen`.
    pub(crate) fn listen_for_tcp(&mut self, ctx: &mut Context<Self>) -> io::Result<()> {
        for (index, listen) in self.config.tcp_listen.iter().enumerate() {
            let listener = self.sockets.listener(index)?.expect("the supervisor has bound one for each port");
            let listener = Listener::new(listener)?;
            let door = Door { listener, reporter: self.reporter.clone(), next: None };
            let serving = beside(serve(door, listen.peer, ctx.address(), self.forwards.counters.clone()));
            ctx.spawn(serving.into_actor(self));
        }
        Ok(())
    }

    /// Joins an accepted connection with one to the service.
    pub(crate) fn forward_stream(&self, stream: RelayStream, to: SocketAddr, ctx: &mut Context<Self>) {
        // Not the options of connections to the server: this one stays here.
        let (counters, reporter) = (self.forwards.counters.clone(), self.reporter.clone());
        let joined = beside(async move {
            match dial(&to.into(), &TcpOptions::default(), LINGER_TIMEOUT).await {
                Ok((local, _)) => {
                    let _ = be_patient(&local);
                    join(stream, local, pending(), &counters).await;
                }
                Err(error) => {
                    let (peer, error) = (stream.peer(), error.to_string());
                    let failed = TurnEvent::TcpForwardFailed { peer, service: to, error };
                    reporter.report(EventKind::Turn(failed));
                }
            }
        });
        ctx.spawn(joined.into_actor(self));
    }
}

/// Runs it in a task of its own, for whatever wakes an actor polls all that is spawned on it; ends it when this is
/// dropped. A panic is passed on.
async fn beside(work: impl Future<Output = ()> + 'static) {
    let mut task = JoinSet::new();
    task.spawn_local(work);
    if let Some(Err(error)) = task.join_next().await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Where local connections come in, one after the other.
struct Door {
    listener: Listener,
    reporter: Reporter,
    /// Came while the one before it was there.
    next: Option<TcpStream>,
}

impl Door {
    /// Waits until a connection is there.
    async fn knock(&mut self) {
        while self.next.is_none() {
            let local_tcp = self.listener.local();
            match poll_fn(|cx| self.listener.poll_accept(cx)).await {
                Incoming::Peer(local, _) => self.next = Some(local),
                Incoming::Paused(error) => {
                    self.reporter.report(EventKind::AcceptPaused { local_tcp, error: error.to_string() });
                }
                Incoming::Resumed => self.reporter.report(EventKind::AcceptResumed { local_tcp }),
            }
        }
    }
}

/// One local connection after the other, each over one with the peer: a server allows only one at a time. The next
/// waits, those behind it in the kernel's queue.
async fn serve(mut door: Door, peer: SocketAddr, client: Addr<TurnClientActor>, counters: Arc<LiveCounters>) {
    let mut ended = None;
    let mut pause = Duration::ZERO;
    loop {
        // A server that refuses is not to be asked as often as somebody knocks.
        sleep(pause).await;
        door.knock().await;
        let Some(local) = door.next.take() else { continue };
        let _ = tune_tcp(&local).and_then(|()| be_patient(&local));
        // What went wrong has been told as an event; the connection is closed by being dropped.
        if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, connect(&client, peer, ended)).await {
            join(stream, local, door.knock(), &counters).await;
            ended = Some(Instant::now());
            pause = Duration::ZERO;
        } else {
            pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        }
    }
}

/// `ended`: when the connection before did.
async fn connect(
    client: &Addr<TurnClientActor>,
    peer: SocketAddr,
    ended: Option<Instant>,
) -> Result<RelayStream, TurnError> {
    let is_fresh = || ended.is_some_and(|ended| ended.elapsed() < PEER_NOTICES_TIMEOUT);
    let gone = TurnError::NoAllocation { retrying: false };
    let mut wait = RETRY_INTERVAL;
    loop {
        match client.send(ConnectPeer { peer }).await {
            Ok(Err(TurnError::NoAllocation { retrying: true })) => {
                if !client.send(AwaitAllocation).await.unwrap_or(false) {
                    return Err(gone);
                }
            }
            Ok(Err(TurnError::Refused { code, .. })) if code == 446 || code == 447 && is_fresh() => {
                sleep(wait).await;
                wait *= 2;
            }
            Ok(done) => return done,
            Err(_) => return Err(gone),
        }
    }
}

/// Copies both ways until the peer has closed, or the local side has and no answer comes any more: for less long
/// once `hurried`.
async fn join(
    relay: RelayStream,
    local: TcpStream,
    hurried: impl Future<Output = ()>,
    counters: &LiveCounters,
) {
    let (mut from_relay, mut to_relay) = tokio::io::split(relay);
    let (mut from_local, mut to_local) = local.into_split();
    let has_peer_ended = {
        let last = Cell::new(Instant::now());
        let up = pin!(copy(&mut from_local, &mut to_relay, |len| counters.sent_to_tcp(0, len as u64)));
        let mut down = pin!(copy(&mut from_relay, &mut to_local, |len| {
            last.set(Instant::now());
            counters.sent_to_udp(0, len as u64);
        }));
        let ended = tokio::select! {
            _ = &mut down => None,
            ended = up => Some(ended),
        };
        if let Some(Ok(())) = ended {
            last.set(Instant::now());
            linger(down, &last, hurried).await;
        }
        ended.is_none()
    };
    if has_peer_ended {
        let _ = to_local.shutdown().await;
        // Closed with unread bytes it would be reset, and what was sent before be lost.
        let mut nowhere = tokio::io::sink();
        let _ = timeout(DRAIN_TIMEOUT, copy(&mut from_local, &mut nowhere, |_| {})).await;
    }
    let _ = to_relay.shutdown().await;
}

/// Waits for `answer`, or until nothing of it has come for too long since `last`.
async fn linger(
    mut answer: impl Future<Output = io::Result<()>> + Unpin,
    last: &Cell<Instant>,
    hurried: impl Future<Output = ()>,
) {
    let mut hurried = pin!(hurried);
    let mut patience = LINGER_TIMEOUT;
    while last.get().elapsed() < patience {
        tokio::select! {
            _ = &mut answer => return,
            () = &mut hurried, if patience == LINGER_TIMEOUT => patience = HURRIED_LINGER_TIMEOUT,
            () = sleep_until(last.get() + patience) => {}
        }
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    each: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        each(len);
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
    }
}
