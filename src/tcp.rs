//! `TcpPeerActor`: one value is the life of one TCP connection.
//!
//! It moves frames between the connection and a lane until either end is gone, then dies and says why. It
//! never dials and never restarts: that is the supervisor's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::clock::now;
use crate::counters::DropReason;
use crate::event::{Cause, EventKind};
use crate::lane::Lane;
use crate::link::{Ending, Obituary};
use crate::link_stream::Stream;
use crate::stream::{FrameReader, FrameSink, FrameWriter, ReadEnd, Taken};
use crate::supervisor::Reporter;
use crate::tls::TlsError;
use crate::udp_io::{Full, UdpIo};

pub(crate) mod channel_data;
pub(crate) mod framing;

/// An unfinished frame has this long.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// A UDP socket that takes nothing for this long ends the connection.
const UDP_TIMEOUT: Duration = Duration::from_secs(5);
/// What was queued when the connection is told to close may still go out for this long.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection that lived this long has proven itself.
pub(crate) const PROVEN_LIFETIME: Duration = Duration::from_secs(10);

/// Ends the connection in order: what is queued is sent (for at most 0.5 s), then FIN.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Close {
    /// What the disconnection is told to be.
    pub cause: Cause,
}

/// One TCP connection, direct or relayed, that carries datagrams, framed by RFC 4571, for one local UDP party.
/// Started by a [`RelaySessionActor`](crate::session::RelaySessionActor) with a connection that was dialed or
/// accepted; stops by itself when the connection ends.
#[derive(Debug)]
pub struct TcpPeerActor {
    stream: Stream,
    lane: Arc<Lane>,
    reader: FrameReader,
    writer: FrameWriter,
    udp: UdpSender,
    obituary: Obituary,
    closing: Option<Closing>,
    began: Instant,
    heard: bool,
}

#[derive(Debug)]
struct Closing {
    cause: Cause,
    deadline: Pin<Box<Sleep>>,
    /// Everything is sent but the stream's own end.
    ending: bool,
}

impl TcpPeerActor {
    pub(crate) fn new(
        stream: Stream,
        lane: Arc<Lane>,
        udp: Arc<UdpIo>,
        reporter: Reporter,
        obituary: Obituary,
    ) -> Self {
        Self {
            stream,
            udp: UdpSender { io: udp, lane: lane.clone(), reporter, full: Full::default() },
            lane,
            reader: FrameReader::new(FRAME_TIMEOUT, UDP_TIMEOUT),
            writer: FrameWriter::default(),
            obituary,
            closing: None,
            began: now(),
            heard: false,
        }
    }

    fn close(&mut self, cause: Cause) {
        self.closing.get_or_insert_with(|| Closing {
            cause,
            deadline: Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)),
            ending: false,
        });
    }

    /// Both halves, as far as they go for now; ready with the end of the connection.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let now = now();
        if let Poll::Ready(end) = self.poll_read(cx, now) {
            return Poll::Ready(end);
        }
        let is_ending = self.closing.as_ref().is_some_and(|closing| closing.ending);
        if !is_ending && let Poll::Ready(error) = self.writer.poll(cx, &mut self.stream, &self.lane.flow, now)
        {
            return Poll::Ready(broken("writing to", &error, self.heard));
        }
        self.poll_closing(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Ending> {
        let (lane, heard) = (&self.lane, &mut self.heard);
        let end = ready!(self.reader.poll(cx, &mut self.stream, &mut self.udp, now, |now| {
            *heard = true;
            lane.heard_from_tcp(now);
        }));
        Poll::Ready(match end {
            ReadEnd::Closed => Ending::new(Cause::Closed, "closed by the peer"),
            ReadEnd::Broken(error) => broken("reading from", &error, self.heard),
            ReadEnd::Malformed => Ending::new(Cause::Broken, "the peer sent what is no frame"),
            ReadEnd::UnfinishedFrame => {
                Ending::new(Cause::UnfinishedFrame, "a frame begun was not finished within 10 s")
            }
            ReadEnd::SinkStuck => Ending::new(Cause::UdpStuck, "the local UDP socket took nothing for 5 s"),
        })
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        let ending = Ending::new(closing.cause, told(closing.cause));
        let in_time = closing.deadline.as_mut().poll(cx).is_pending();
        if in_time && !closing.ending && !self.lane.flow.is_empty() {
            return Poll::Pending;
        }
        closing.ending = true;
        // A plain socket's FIN needs no waiting, what TLS says before it may; the error of a connection that is gone
        // changes nothing.
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        if in_time && ended.is_pending() { Poll::Pending } else { Poll::Ready(ending) }
    }

    fn finish(&mut self, mut ending: Ending) {
        ending.proven = self.heard || now().duration_since(self.began) >= PROVEN_LIFETIME;
        self.lane.counters.dropped(DropReason::ConnectionLost, self.reader.unfinished(&self.udp));
        self.lane.flow.restart();
        self.obituary.end(ending);
    }
}

/// `heard`: something has come over it.
fn broken(doing: &str, error: &io::Error, heard: bool) -> Ending {
    // A server that does not like our certificate says so after the handshake (TLS 1.3), before all else.
    if let Some(refused) = TlsError::within(error).filter(|error| error.is_refusal() && !heard) {
        return Ending::new(Cause::Refused, refused.to_string());
    }
    Ending::new(Cause::Broken, format!("{doing} the connection failed: {error}"))
}

/// Why somebody ended a connection that could have gone on.
pub(crate) fn told(cause: Cause) -> &'static str {
    match cause {
        Cause::Replaced => "a newer connection took its place",
        Cause::Forgotten => "its application is silent",
        _ => "told to disconnect",
    }
}

impl Actor for TcpPeerActor {
    type Context = Context_;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Drive);
    }
}

type Context_ = actix::Context<TcpPeerActor>;

/// The one future of the actor: polls its I/O each time anything wakes it.
struct Drive;

impl ActorFuture<TcpPeerActor> for Drive {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut TcpPeerActor,
        ctx: &mut Context_,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let ending = ready!(act.poll_io(cx));
        act.finish(ending);
        ctx.stop();
        Poll::Ready(())
    }
}

impl Handler<Close> for TcpPeerActor {
    type Result = ();

    fn handle(&mut self, message: Close, _: &mut Context_) {
        self.close(message.cause);
    }
}

/// Sends the datagrams that came over TCP to the lane's UDP party.
#[derive(Debug)]
struct UdpSender {
    io: Arc<UdpIo>,
    lane: Arc<Lane>,
    reporter: Reporter,
    full: Full,
}

impl FrameSink for UdpSender {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let counters = &self.lane.counters;
        let Some(party) = self.lane.party() else {
            let (used, datagrams) = framing::whole_frames(bytes, usize::MAX);
            counters.dropped(DropReason::NoApplication, datagrams);
            return (used, Taken::All);
        };
        let sent = self.io.send_frames(bytes, party.to, party.from);
        if sent.datagrams > 0 {
            counters.sent_to_udp(sent.datagrams, sent.bytes);
        }
        counters.dropped(DropReason::TooLong, sent.too_long);
        counters.dropped(DropReason::SendFailed, sent.failed);
        if sent.refused > 0 {
            counters.dropped(DropReason::ServiceUnreachable, sent.refused);
            report_unreachable(&self.lane.unreachable, &self.reporter, party.to);
        }
        let taken = match framing::first_datagram(&bytes[sent.used..]) {
            None => Taken::All,
            Some(_) if sent.blocked => Taken::Blocked,
            Some(_) => Taken::Some,
        };
        (sent.used, taken)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_writable(cx, &mut self.full)
    }

    fn last_sent(&self) -> Option<Instant> {
        self.io.last_sent()
    }

    fn datagrams(&self, rest: &[u8]) -> u64 {
        let (len, count) = framing::whole_frames(rest, usize::MAX);
        count + u64::from(len < rest.len())
    }
}

/// Says once that the service answers "port unreachable", until it has answered otherwise.
pub(crate) fn report_unreachable(known: &AtomicBool, reporter: &Reporter, service: SocketAddr) {
    if !known.swap(true, Relaxed) {
        reporter.report(EventKind::ServiceUnreachable { service });
    }
}
