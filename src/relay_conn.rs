//! One connection of a relay: a future on one thread, from its first byte to its end.
//!
//! What it reads goes two ways: STUN messages to the pure core (`relay/connection.rs`), whole runs of ChannelData,
//! copied once, straight into the peer's queue. What others have put into its own queue it writes. It never waits for
//! its peer: what that does not take is dropped there.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::clock::now;
use crate::config::RelayConfig;
use crate::counters::DropReason;
use crate::datagrams::Batch;
use crate::event::LeaveCause;
use crate::link_stream::Stream;
use crate::relay::TcpRelayActor;
use crate::relay::connection::{CLOSING_TIMEOUT, Connection, Ending, JoinAnswer, JoinRequest, Output};
use crate::relay::directory::{ConnectionKey, Newcomer, Pairing, Refused};
use crate::relay::messages::{self, Closing, Peer, PeerStatus, Reason, Refusal};
use crate::relay::runs::{self, Run};
use crate::relay_desk::{Desk, Meeting, SharedRate, Told};
use crate::stream::{FrameReader, FrameSink, FrameWriter, ReadEnd, Taken};

/// A message begun has this long; and a side that takes none of its answers.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// While so many bytes of control wait for a side, nothing more that it asks is read.
const MAX_CONTROL_LEN: usize = 16 << 10;
/// Reads in one turn of a connection that is being closed.
const MAX_DISCARDS: usize = 16;

/// To the relay's actor: a connection wants to be a side.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct JoinWanted {
    pub(crate) key: ConnectionKey,
    pub(crate) who: Newcomer,
}

/// Somebody claimed to be a user and was not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Rejected {
    pub(crate) peer: SocketAddr,
}

/// It is no side any more, and is being closed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SideLeaves {
    pub(crate) key: ConnectionKey,
    pub(crate) ending: Ending,
}

/// See the file's head. Its output is why it ended.
#[derive(Debug)]
pub(crate) struct RelayConnection {
    stream: Stream,
    reader: FrameReader,
    writer: FrameWriter,
    side: Side,
    /// For the core's deadlines.
    timer: Option<Pin<Box<Sleep>>>,
    /// It is not read from before this, for its pair has sent too much.
    pause: Option<Pin<Box<Sleep>>>,
    closing: Option<Shut>,
}

/// A connection that is being closed in order.
#[derive(Debug)]
struct Shut {
    cause: LeaveCause,
    deadline: Pin<Box<Sleep>>,
    /// FIN has been sent.
    is_done: bool,
}

impl Future for RelayConnection {
    type Output = LeaveCause;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LeaveCause> {
        let this = self.get_mut();
        if this.closing.is_none()
            && let Poll::Ready(cause) = this.poll_open(cx)
        {
            this.count_unfinished();
            return Poll::Ready(cause);
        }
        this.poll_closing(cx)
    }
}

impl RelayConnection {
    pub(crate) fn new(
        stream: Stream,
        core: Connection,
        desk: Arc<Desk>,
        config: Arc<RelayConfig>,
        relay: Addr<TcpRelayActor>,
    ) -> Self {
        Self {
            stream,
            reader: FrameReader::new(MESSAGE_TIMEOUT, MESSAGE_TIMEOUT),
            writer: FrameWriter::default(),
            side: Side { core, desk, config, relay, met: None, rate: None, seen: 0, now: now(), ended: None },
            timer: None,
            pause: None,
            closing: None,
        }
    }

    /// Orders, both halves of the stream, and the clock, as far as they go for now. Ready where the connection is gone;
    /// pending, with `closing` set, where it is to be closed in order.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<LeaveCause> {
        let now = now();
        let Self { stream, reader, writer, side, pause, .. } = self;
        side.now = now;
        while let Poll::Ready(told) = side.desk.poll_told(cx) {
            match told {
                Told::Abandoned => return Poll::Ready(LeaveCause::Restarting),
                Told::PlaceNeeded => {
                    // At once: those who only knock must not cost a descriptor each for any longer.
                    side.told(told);
                    let _ = writer.poll(cx, stream, &side.desk.flow, now);
                    return Poll::Ready(LeaveCause::Limit);
                }
                told => side.told(told),
            }
        }
        if side.ended.is_none()
            && side.poll_rate(cx, pause).is_ready()
            && let Poll::Ready(end) = reader.poll(cx, stream, side, now, |_| {})
        {
            match end {
                ReadEnd::Closed => return Poll::Ready(LeaveCause::Left),
                // The core has seen why.
                ReadEnd::Malformed => {}
                ReadEnd::Broken(_) | ReadEnd::UnfinishedFrame | ReadEnd::SinkStuck => {
                    return Poll::Ready(LeaveCause::Broken);
                }
            }
        }
        let was_congested = side.is_congested();
        if writer.poll(cx, stream, &side.desk.flow, now).is_ready() {
            return Poll::Ready(LeaveCause::Broken);
        }
        if was_congested && !side.is_congested() {
            // It is read again.
            cx.waker().wake_by_ref();
        }
        self.poll_timer(cx);
        if let Some(ending) = self.side.ended {
            self.begin_closing(ending);
        }
        Poll::Pending
    }

    /// Sets the timer to the core's next deadline, and tells the core of those that have come.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        while let Some(due) = self.side.core.poll_timeout() {
            let deadline = due.into();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // Not moved with every byte: where it rings too early it is set anew.
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let now = now();
            if due <= now {
                self.side.core.handle_timeout(now);
                self.side.outputs();
                // What it says is written at the next turn, at once.
                cx.waker().wake_by_ref();
            }
            if let Some(due) = self.side.core.poll_timeout() {
                timer.as_mut().reset(due.into());
            }
        }
    }

    fn count_unfinished(&self) {
        let unfinished = self.reader.unfinished(&self.side);
        self.side.desk.counters.dropped(DropReason::ConnectionLost, unfinished);
    }

    /// What is queued for the side as control is still to be written, data is not.
    fn begin_closing(&mut self, ending: Ending) {
        self.side.met = None;
        self.side.desk.flow.part();
        self.count_unfinished();
        let deadline = Box::pin(tokio::time::sleep(CLOSING_TIMEOUT));
        self.closing = Some(Shut { cause: cause_of(ending), deadline, is_done: false });
        self.timer = None;
    }

    /// Sends what is to be sent, then FIN, and discards input until the side's FIN comes, or for 1 s: closing a socket
    /// with unread input would reset the connection, and lose what was sent last.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<LeaveCause> {
        let Self { stream, writer, side, closing, .. } = self;
        let Some(shut) = closing else { return Poll::Pending };
        if !shut.is_done {
            let flow = &side.desk.flow;
            if writer.poll(cx, stream, flow, now()).is_ready() {
                return Poll::Ready(shut.cause);
            }
            shut.is_done = flow.is_empty() && Pin::new(&mut *stream).poll_shutdown(cx).is_ready();
        }
        for _ in 0..MAX_DISCARDS {
            let mut discarded = [0; 4096];
            let mut read = ReadBuf::new(&mut discarded);
            match Pin::new(&mut *stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(shut.cause),
                Poll::Pending => return shut.deadline.as_mut().poll(cx).map(|()| shut.cause),
            }
        }
        cx.waker().wake_by_ref();
        shut.deadline.as_mut().poll(cx).map(|()| shut.cause)
    }
}

pub(crate) fn cause_of(ending: Ending) -> LeaveCause {
    match ending {
        Ending::Left => LeaveCause::Left,
        Ending::Idle | Ending::Deaf => LeaveCause::Idle,
        Ending::LifetimeOver => LeaveCause::LifetimeOver,
        Ending::Protocol(_) => LeaveCause::ProtocolError,
        Ending::NotJoined | Ending::TooMuchUnjoined | Ending::TooManyRefused => LeaveCause::Limit,
        Ending::Told(closing) => match closing.reason {
            Reason::Superseded => LeaveCause::Superseded,
            Reason::Restarting => LeaveCause::Restarting,
            _ => LeaveCause::Limit,
        },
    }
}

/// Takes what the side sends.
#[derive(Debug)]
struct Side {
    core: Connection,
    desk: Arc<Desk>,
    config: Arc<RelayConfig>,
    relay: Addr<TcpRelayActor>,
    /// Its peer, and where its datagrams go, while there is one.
    met: Option<Meeting>,
    rate: Option<SharedRate>,
    /// How many of the bytes that come next have been here before.
    seen: usize,
    /// Of this turn.
    now: Instant,
    ended: Option<Ending>,
}

impl Side {
    fn told(&mut self, told: Told) {
        let now = self.now;
        match told {
            Told::Joined(meeting, rate) => {
                self.rate = rate;
                self.core.join_answered(now, JoinAnswer::Joined { is_peer_there: meeting.is_some() });
                if let Some(meeting) = meeting {
                    self.meet(meeting);
                }
            }
            Told::Refused(refused, retry_after) => {
                let refusal = Refusal { retry_after, ..Refusal::new(code_of(refused)) };
                self.core.join_answered(now, JoinAnswer::Refused(refusal));
            }
            Told::PeerPresent(meeting) => self.meet(meeting),
            Told::Slowed(pairing, wait) => self.slow(pairing, wait),
            Told::PeerGone => {
                self.met = None;
                let gone = Peer { status: PeerStatus::Gone, side: None, user: None, retry_after: None };
                self.core.peer(now, &gone);
            }
            Told::Superseded(by) => {
                self.core.close(Closing { instance: Some(by), ..Closing::new(Reason::Superseded) });
            }
            Told::Restarting(after) => {
                self.core.close(Closing { retry_after: Some(after), ..Closing::new(Reason::Restarting) });
            }
            Told::PlaceNeeded => self.core.close(Closing::new(Reason::Limit)),
            Told::Abandoned => {}
            #[cfg(feature = "test-panic")]
            Told::Panic => panic!("told to panic"),
        }
        self.outputs();
    }

    fn meet(&mut self, meeting: Meeting) {
        self.introduce(&meeting, None);
        self.met = Some(meeting);
    }

    /// Its peer is who it was, and each of the two is read from more slowly. The news ends all channels, so what is under
    /// way on them is dropped.
    fn slow(&mut self, pairing: Pairing, wait: Duration) {
        if let Some(meeting) = self.met.take_if(|met| met.way.pairing == pairing) {
            self.desk.flow.meet_again(pairing);
            self.introduce(&meeting, Some(wait));
            self.met = Some(meeting);
        }
    }

    fn introduce(&mut self, meeting: &Meeting, retry_after: Option<Duration>) {
        let Meeting { way, side, user } = meeting;
        let (side, user) = (Some(side.clone()), user.as_ref().map(|user| user.to_string()));
        let here = Peer { status: PeerStatus::Present, side, user, retry_after };
        self.core.peer(self.now, &here);
        self.outputs();
        // Its datagrams go behind the news of it.
        self.desk.flow.admit(way.pairing);
    }

    /// Pending while the pair has sent more than it may.
    fn poll_rate(&self, cx: &mut Context<'_>, pause: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        let Some(rate) = &self.rate else { return Poll::Ready(()) };
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wait) = rate.wait(self.now) else { return Poll::Ready(()) };
        if let Some(Meeting { way, .. }) = &self.met
            && rate.tells(way.pairing)
        {
            self.desk.tell(Told::Slowed(way.pairing, wait));
            way.to.tell(Told::Slowed(way.pairing, wait));
        }
        drop(rate);
        let deadline = (self.now + wait).into();
        let pause = pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        pause.as_mut().reset(deadline);
        pause.as_mut().poll(cx)
    }

    fn outputs(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send(bytes) => {
                    // Does not happen: a side that takes nothing is not read from, and orders are few.
                    if self.desk.flow.push_control(bytes.into()).is_err() {
                        tracing::warn!(peer = %self.desk.peer, "a message to a side is lost: too many wait");
                    }
                }
                Output::Join(JoinRequest { user, pair, side, instance }) => {
                    let who = Newcomer { user, pair, side, instance };
                    self.relay.do_send(JoinWanted { key: self.desk.key, who });
                }
                Output::Close(ending) => {
                    self.ended = Some(ending);
                    self.relay.do_send(SideLeaves { key: self.desk.key, ending });
                }
            }
        }
        if self.core.take_rejected() {
            self.relay.do_send(Rejected { peer: self.desk.peer });
        }
    }

    fn is_congested(&self) -> bool {
        self.desk.flow.control_len() > MAX_CONTROL_LEN
    }

    /// Takes whole messages from the beginning of `bytes`.
    fn cut(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let mut used = 0;
        while self.ended.is_none() {
            let rest = &bytes[used..];
            let run = runs::first_run(rest, self.config.max_datagram);
            if run.len > 0 {
                self.forward(&rest[..run.len], run);
                used += run.len;
                continue;
            }
            match messages::message_len(rest) {
                Ok(Some(len)) if len <= rest.len() => {
                    if runs::begun(rest) > 0 {
                        self.desk.counters.dropped(DropReason::TooLong, 1);
                    } else if self.is_congested() {
                        return (used, Taken::Blocked);
                    } else {
                        self.core.handle_message(self.now, wall_seconds(), &rest[..len]);
                        self.outputs();
                    }
                    used += len;
                }
                Ok(_) => return (used, Taken::All),
                Err(error) => {
                    self.core.protocol_error(error);
                    self.outputs();
                }
            }
        }
        (bytes.len(), Taken::Malformed)
    }

    fn forward(&self, frames: &[u8], run: Run) {
        let Run { len, datagrams, payload } = run;
        if let Some(rate) = &self.rate {
            rate.lock().unwrap_or_else(PoisonError::into_inner).take(self.now, len);
        }
        match &self.met {
            Some(Meeting { way, .. }) if self.core.may_forward() => {
                let frames = Bytes::copy_from_slice(frames);
                way.to.flow.push_of(way.pairing, self.now, Batch { frames, datagrams, payload });
            }
            _ => self.desk.counters.dropped(DropReason::NoPeer, datagrams),
        }
    }
}

impl FrameSink for Side {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let fresh = bytes.len() - self.seen.min(bytes.len());
        if fresh > 0 {
            self.core.heard(self.now, fresh);
            self.outputs();
        }
        let (used, taken) = self.cut(bytes);
        self.seen = bytes.len() - used;
        (used, taken)
    }

    /// What it waits for, the writer of the same connection does.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_congested() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn last_sent(&self) -> Option<Instant> {
        None
    }

    fn datagrams(&self, rest: &[u8]) -> u64 {
        runs::begun(rest)
    }
}

fn code_of(refused: Refused) -> u16 {
    match refused {
        Refused::NotYours => 403,
        Refused::TwoOthers => 409,
        Refused::SessionsUsedUp => 486,
        Refused::Full => 508,
    }
}

/// Since 1970, for credentials that expire.
fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
