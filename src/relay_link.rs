//! `RelayLinkActor`: one value is the life of one connection to a relay, and carries all flows of a session.
//!
//! What comes is taken apart: datagrams go to their flows at once, STUN to the core (`relay/side.rs`), whose outputs
//! are done here. It never dials and never restarts: that is the supervisor's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::clock::{OncePerSecond, now};
use crate::counters::DropReason;
use crate::event::{Cause, EventKind, SideEvent};
use crate::lane::LaneMaker;
use crate::link::{Ending, Obituary, Wait};
use crate::relay::messages;
use crate::relay::side::{Output, Present, Side, SideError};
use crate::relay_paths::{ChannelPath, Full, RelayPaths, Way};
use crate::session::RelaySessionActor;
use crate::sockets::Sockets;
use crate::sockopt;
use crate::stream::{FrameReader, FrameSink, FrameWriter, ReadEnd, Taken, TurnSink, take_turn};
use crate::supervisor::Reporter;
use crate::tcp::{Close, told};
use crate::tls::TlsError;
use crate::transport::Transport;
use crate::udp_io::UdpIo;

/// An unfinished message has this long.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// What was queued when the connection is told to close may still go out for this long, and the relay be told.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Silent channels are looked for this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Rounds in one turn of the task.
const MAX_TURNS: usize = 2;

/// To the session: what the relay has said.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum RelayNews {
    Joined {
        relay: SocketAddr,
        lifetime: Duration,
    },
    PeerPresent(Present),
    PeerGone,
    /// 300: whom to call next.
    Redirected {
        to: SocketAddr,
        domain: Option<String>,
    },
    /// The peer has opened a channel that leads to the service: its socket wants an endpoint.
    ServiceWanted {
        path: Arc<ChannelPath>,
        io: Arc<UdpIo>,
    },
    /// These flows have ended: their endpoints are to stop.
    FlowsEnded(Vec<Arc<ChannelPath>>),
}

/// Where channels lead that the peer opens.
#[derive(Debug)]
pub(crate) enum Door {
    /// To a service, over a socket for each.
    Service { to: SocketAddr, sockets: Arc<Sockets>, maker: Arc<LaneMaker> },
    /// To the local application, over the socket that it sends to.
    Application(Arc<UdpIo>),
}

/// Which redirections are followed.
#[derive(Debug)]
pub(crate) struct Hops {
    /// How many more of them.
    pub(crate) left: usize,
    /// Relays that were sent to before: not again.
    pub(crate) visited: Vec<SocketAddr>,
}

impl Hops {
    fn may_follow(&self, to: SocketAddr) -> bool {
        self.left > 0 && !self.visited.contains(&to)
    }
}

/// The session's side of a [`RelayLinkActor`].
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) paths: Arc<RelayPaths>,
    pub(crate) door: Door,
    /// Channels that the peer may have open.
    pub(crate) limit: usize,
    pub(crate) session: Addr<RelaySessionActor>,
    pub(crate) reporter: Reporter,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct RelayLinkActor {
    stream: Transport,
    reader: FrameReader,
    writer: FrameWriter,
    talk: Talk,
    timer: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
    obituary: Obituary,
}

#[derive(Debug)]
struct Closing {
    cause: Cause,
    deadline: Pin<Box<Sleep>>,
    is_leaving: bool,
}

/// What the connection is about: the core, and what is done with its outputs.
#[derive(Debug)]
struct Talk {
    side: Side,
    house: House,
    relay: SocketAddr,
    hops: Hops,
    /// What follows on `superseded`: with TLS it is believed, without it may come from anybody.
    is_believed: bool,
    refused: OncePerSecond,
    joined: bool,
    /// When to look for silent channels, while a peer is there.
    sweep: Option<Instant>,
    end: Option<End>,
    now: Instant,
}

#[derive(Debug)]
enum End {
    Left,
    Error(SideError),
}

impl RelayLinkActor {
    pub(crate) fn new(
        stream: Transport,
        relay: SocketAddr,
        side: Side,
        house: House,
        hops: Hops,
        obituary: Obituary,
    ) -> Self {
        // What is left of an earlier connection, whose actor may have panicked, is not for this one.
        house.paths.connection_ended();
        let is_believed = matches!(stream, Transport::Tls(_));
        let refused = OncePerSecond::default();
        let talk = Talk {
            side,
            house,
            relay,
            hops,
            is_believed,
            refused,
            joined: false,
            sweep: None,
            end: None,
            now: now(),
        };
        Self {
            stream,
            reader: FrameReader::new(MESSAGE_TIMEOUT, MESSAGE_TIMEOUT),
            writer: FrameWriter::default(),
            talk,
            timer: None,
            closing: None,
            obituary,
        }
    }

    /// Reads, thinks, writes, as far as it goes for now; ready with the end of the connection.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..MAX_TURNS {
            let now = now();
            self.talk.now = now;
            self.poll_read(cx, now);
            self.talk.handle_timeout();
            let written = self.writer.poll(cx, &mut self.stream, &self.talk.house.paths.flow, now);
            if let Poll::Ready(error) = written {
                self.talk.lost(broken("written to", &error, self.talk.joined));
            }
            if self.talk.end.is_some() || self.poll_closing(cx).is_ready() {
                // The error of a connection that is gone changes nothing.
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
                return Poll::Ready(self.ending());
            }
            if self.poll_timer(cx).is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) {
        let mut heard = false;
        let end = self.reader.poll(cx, &mut self.stream, &mut self.talk, now, |_| heard = true);
        if heard {
            self.talk.side.heard(now);
        }
        let Poll::Ready(end) = end else { return };
        match end {
            ReadEnd::Closed => self.talk.lost(SideError::Closed),
            ReadEnd::Broken(error) => self.talk.lost(broken("read from", &error, self.talk.joined)),
            // It has been said what was wrong.
            ReadEnd::Malformed => {}
            ReadEnd::UnfinishedFrame | ReadEnd::SinkStuck => {
                let what = format!("stood still in the middle of a message for {MESSAGE_TIMEOUT:?}");
                self.talk.lost(SideError::Lost(what));
            }
        }
    }

    /// What is queued goes out, then the relay is told; ready when there is no more time for it.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        if !closing.is_leaving && self.talk.house.paths.flow.is_empty() {
            closing.is_leaving = true;
            self.talk.leave();
            cx.waker().wake_by_ref();
        }
        closing.deadline.as_mut().poll(cx)
    }

    /// Sets the timer to the next deadline; ready if that has come already.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.talk.poll_timeout().map(tokio::time::Instant::from_std) else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }

    fn ending(&self) -> Ending {
        let ending = match (&self.closing, &self.talk.end) {
            (None, Some(End::Error(error @ SideError::Superseded { own: false })))
                if self.talk.is_believed =>
            {
                let detail = format!("{error}: this one stays away");
                Ending { wait: Wait::ForEver, ..Ending::new(error.cause(), detail) }
            }
            (None, Some(End::Error(error))) => {
                let wait = error.retry_after().map_or(Wait::ByCause, Wait::AtLeast);
                Ending { wait, ..Ending::new(error.cause(), error.to_string()) }
            }
            (closing, _) => {
                let cause = closing.as_ref().map_or(Cause::Told, |closing| closing.cause);
                Ending::new(cause, told(cause))
            }
        };
        Ending { proven: self.talk.joined, ..ending }
    }
}

fn broken(doing: &str, error: &io::Error, joined: bool) -> SideError {
    // A relay that does not like our certificate says so after the handshake (TLS 1.3), before all else.
    if let Some(refused) = TlsError::within(error).filter(|error| error.is_refusal() && !joined) {
        return SideError::Tls(refused.to_string());
    }
    SideError::Lost(format!("broke while it was {doing}: {error}"))
}

impl Talk {
    fn poll_timeout(&self) -> Option<Instant> {
        [self.side.poll_timeout(), self.sweep].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self) {
        if self.side.poll_timeout().is_some_and(|due| due <= self.now) {
            self.side.handle_timeout(self.now);
        }
        if self.sweep.is_some_and(|due| due <= self.now) {
            self.sweep = Some(self.now + SWEEP_INTERVAL);
            let ended = self.house.paths.expire(self.now);
            self.flows_ended(ended);
        }
        self.outputs();
    }

    fn lost(&mut self, error: SideError) {
        self.side.lost(error);
        self.outputs();
    }

    fn leave(&mut self) {
        self.side.leave(self.now);
        self.outputs();
    }

    /// Does all that the core wants done.
    fn outputs(&mut self) {
        while let Some(output) = self.side.poll_output() {
            match output {
                Output::Send(message) => {
                    if self.house.paths.flow.push_control(message.into()).is_err() {
                        self.side.lost(SideError::Lost("does not take what is sent".into()));
                    }
                }
                Output::Joined { lifetime } => {
                    self.joined = true;
                    self.tell(RelayNews::Joined { relay: self.relay, lifetime });
                }
                Output::PeerPresent(present) => {
                    let strangers = self.house.paths.peer_present(self.now, self.side.name(), &present.side);
                    self.sweep = Some(self.now + SWEEP_INTERVAL);
                    self.flows_ended(strangers);
                    self.tell(RelayNews::PeerPresent(present));
                }
                Output::MaySend => self.house.paths.may_send(self.now),
                Output::PeerGone => {
                    self.sweep = None;
                    self.house.paths.peer_gone();
                    self.tell(RelayNews::PeerGone);
                }
                Output::Left => self.end = Some(End::Left),
                Output::Ended(error) => self.ended(error),
            }
        }
    }

    fn ended(&mut self, error: SideError) {
        let error = match error {
            SideError::Redirected { to, domain } if self.hops.may_follow(to) && to != self.relay => {
                self.tell(RelayNews::Redirected { to, domain: domain.clone() });
                SideError::Redirected { to, domain }
            }
            SideError::Redirected { to, .. } => SideError::RedirectedTooOften { to },
            error => error,
        };
        self.end = Some(End::Error(error));
    }

    fn flows_ended(&self, paths: Vec<Arc<ChannelPath>>) {
        if !paths.is_empty() {
            self.tell(RelayNews::FlowsEnded(paths));
        }
    }

    /// Bounded by what one read brings: the session has its turn before the next.
    fn tell(&self, news: RelayNews) {
        self.house.session.do_send(news);
    }

    /// A flow for a channel that the peer opens.
    fn accept(&mut self, channel: u16) -> Option<Arc<ChannelPath>> {
        let paths = &self.house.paths;
        match paths.make_room(self.now, self.house.limit) {
            Ok(silent) => self.flows_ended(silent.into_iter().collect()),
            Err(Full) => {
                if let Some(more) = self.refused.pass(self.now) {
                    self.house
                        .reporter
                        .report(EventKind::Side(SideEvent::RelayChannelRefused { channel, more }));
                }
                return None;
            }
        }
        let (to, sockets, maker) = match &self.house.door {
            Door::Application(io) => return Some(paths.accept_application(self.now, channel, io.clone())),
            Door::Service { to, sockets, maker } => (*to, sockets, maker),
        };
        // One alone keeps its port whatever happens to the session's actor.
        let socket = match paths.lone_peer() {
            Some(peer) => sockets.service_for(&peer, to),
            None => sockopt::connect_udp(to),
        };
        let io = socket.map_err(|error| error.to_string());
        match io.and_then(|socket| UdpIo::new(socket).map_err(|error| error.to_string())) {
            Ok(io) => {
                let io = Arc::new(io);
                let path = paths.accept_service(self.now, channel, io.clone(), to, maker.number());
                self.tell(RelayNews::ServiceWanted { path: path.clone(), io });
                Some(path)
            }
            Err(error) => {
                if self.refused.pass(self.now).is_some() {
                    let actor = format!("UdpEndpointActor of channel {channel:#06x}");
                    self.house.reporter.report(EventKind::ActorFailed { actor, error, retry_in: None });
                }
                None
            }
        }
    }
}

impl TurnSink for Talk {
    fn message_len(&mut self, bytes: &[u8]) -> Result<Option<usize>, ()> {
        messages::message_len(bytes).map_err(|error| self.lost(error.into()))
    }

    fn channel<'d>(&mut self, channel: u16, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        let path = match self.house.paths.incoming(self.now, channel) {
            Way::Open(path) => Some(path),
            Way::New => self.accept(channel),
            Way::Unopened => None,
        };
        if let Some(path) = path {
            return path.deliver(self.now, datagrams);
        }
        self.house.paths.counters.dropped(DropReason::NoApplication, datagrams.count() as u64);
        // Not a call, but no less work: it counts, or a peer could keep this thread busy.
        1
    }

    fn message(&mut self, message: &[u8]) {
        self.side.handle_message(self.now, message);
        // Now, for datagrams behind a Peer indication are of another pairing.
        self.outputs();
    }
}

impl FrameSink for Talk {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        take_turn(self, bytes)
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn last_sent(&self) -> Option<Instant> {
        None
    }

    fn datagrams(&self, _: &[u8]) -> u64 {
        0
    }
}

impl Actor for RelayLinkActor {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Drive);
    }
}

/// The one future of the actor: polls its I/O each time anything wakes it.
struct Drive;

impl ActorFuture<RelayLinkActor> for Drive {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut RelayLinkActor,
        ctx: &mut actix::Context<RelayLinkActor>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let ending = ready!(act.poll_io(cx));
        act.talk.house.paths.connection_ended();
        act.obituary.end(ending);
        ctx.stop();
        Poll::Ready(())
    }
}

impl Handler<Close> for RelayLinkActor {
    type Result = ();

    fn handle(&mut self, message: Close, _: &mut Self::Context) {
        let cause = message.cause;
        self.closing.get_or_insert_with(|| {
            let deadline = Box::pin(tokio::time::sleep(CLOSE_TIMEOUT));
            Closing { cause, deadline, is_leaving: false }
        });
    }
}

#[cfg(test)]
#[path = "relay_link_tests.rs"]
mod tests;
