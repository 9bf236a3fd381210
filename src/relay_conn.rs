//! One connection of a relay: a future on one thread, from its first byte to its end.
//!
//! What it reads goes to its [`Side`]; what others have put into its own queue it writes. When it joins and its peer is
//! there already it moves to the peer's thread: what goes between two threads costs a wake-up, and cold caches.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix::prelude::*;
use actix_rt::ArbiterHandle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::clock::now;
use crate::config::RelayConfig;
use crate::counters::DropReason;
use crate::event::LeaveCause;
use crate::relay::TcpRelayActor;
use crate::relay::connection::{CLOSING_TIMEOUT, Connection, Ending};
use crate::relay::directory::{ConnectionKey, Newcomer};
use crate::relay::messages::Reason;
use crate::relay::pace::Pace;
use crate::relay_desk::{Desk, Told};
use crate::relay_pump::Side;
use crate::sockopt;
use crate::stream::{FrameReader, FrameWriter, ReadEnd};
use crate::transport::{Still, Transport};

/// A message begun has this long; and a side that takes none of its answers.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
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

/// How a connection's future ends.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The connection is over.
    Over(LeaveCause),
    /// It is to go on on this thread, where its peer is: see [`RelayConnection::still`].
    Moves(ArbiterHandle),
}

/// A connection between two threads, without what belongs to a thread.
#[derive(Debug)]
pub(crate) struct StillConnection {
    stream: Still,
    reader: FrameReader,
    side: Side,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct RelayConnection {
    stream: Transport,
    reader: FrameReader,
    writer: FrameWriter,
    side: Side,
    /// How fast the side itself takes what it is sent.
    pace: Pace,
    /// For the core's deadlines.
    timer: Option<Pin<Box<Sleep>>>,
    /// It is not read from before this: its pair has sent too much, or its peer's queue is long.
    pause: Option<Pin<Box<Sleep>>>,
    /// What waits for the side is looked through for what is too old, also while it takes nothing and nothing comes.
    expiry: Option<Pin<Box<Sleep>>>,
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
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        if this.closing.is_none()
            && let Poll::Ready(outcome) = this.poll_open(cx)
        {
            if let Outcome::Over(_) = outcome {
                this.count_unfinished();
            }
            return Poll::Ready(outcome);
        }
        this.poll_closing(cx).map(Outcome::Over)
    }
}

impl StillConnection {
    /// To be called on the thread where it is to go on.
    ///
    /// # Errors
    /// The thread cannot wait for it.
    pub(crate) fn wake(self) -> io::Result<RelayConnection> {
        Ok(RelayConnection::of(self.stream.wake()?, self.reader, self.side))
    }
}

impl RelayConnection {
    pub(crate) fn new(
        stream: Transport,
        core: Connection,
        desk: Arc<Desk>,
        config: Arc<RelayConfig>,
        relay: Addr<TcpRelayActor>,
    ) -> Self {
        let reader = FrameReader::new(MESSAGE_TIMEOUT, MESSAGE_TIMEOUT);
        Self::of(stream, reader, Side::new(core, desk, config, relay))
    }

    fn of(stream: Transport, reader: FrameReader, side: Side) -> Self {
        let (writer, timer, pause, expiry, closing) = Default::default();
        Self { stream, reader, writer, side, pace: Pace::new(now(), false), timer, pause, expiry, closing }
    }

    /// Leaves its thread. How far it has written its flow knows.
    ///
    /// # Errors
    /// The thread does not let it go.
    pub(crate) fn still(self) -> io::Result<StillConnection> {
        let Self { stream, reader, side, .. } = self;
        Ok(StillConnection { stream: stream.still()?, reader: reader.still(), side })
    }

    /// Orders, both halves of the stream, and the clock, as far as they go for now. Ready where the connection is gone;
    /// pending, with `closing` set, where it is to be closed in order.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let now = now();
        let Self { stream, reader, writer, side, pace, pause, .. } = self;
        side.now = now;
        while let Poll::Ready(told) = side.desk.poll_told(cx) {
            match told {
                Told::Abandoned => return over(LeaveCause::Restarting),
                Told::Move(to) => return Poll::Ready(Outcome::Moves(to)),
                Told::PlaceNeeded => {
                    // At once: those who only knock must not cost a descriptor each for any longer.
                    side.told(told);
                    let _ = writer.poll(cx, stream, &side.desk.flow, now);
                    return over(LeaveCause::Limit);
                }
                told => side.told(told),
            }
        }
        if side.is_deaf {
            return over(LeaveCause::Deaf);
        }
        if side.ended.is_none()
            && side.poll_rate(cx, pause).is_ready()
            && side.poll_room(cx, pause).is_ready()
            && let Poll::Ready(end) = reader.poll(cx, stream, side, now, |_| {})
        {
            match end {
                ReadEnd::Closed => return over(LeaveCause::Left),
                // The core has seen why.
                ReadEnd::Malformed => {}
                ReadEnd::Broken(_) | ReadEnd::UnfinishedFrame | ReadEnd::SinkStuck => {
                    return over(LeaveCause::Broken);
                }
            }
        }
        let is_quick = pace.has_been_quick(now, side.desk.flow.taken());
        if writer.set_quick(is_quick) != is_quick {
            sockopt::set_quick(stream.tcp(), is_quick);
        }
        let was_congested = side.is_congested();
        if writer.poll(cx, stream, &side.desk.flow, now).is_ready() {
            return over(LeaveCause::Broken);
        }
        if was_congested && !side.is_congested() {
            // It is read again.
            cx.waker().wake_by_ref();
        }
        self.poll_expiry(cx);
        self.poll_timer(cx);
        if let Some(ending) = self.side.ended {
            self.begin_closing(ending);
        }
        Poll::Pending
    }

    /// Drops what has become too old. The alarm is not moved with every datagram: where it rings too early it is set anew.
    fn poll_expiry(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(expiry) = &mut self.expiry
                && expiry.as_mut().poll(cx).is_pending()
            {
                return;
            }
            let Poll::Ready(due) = self.side.desk.flow.poll_expiry(cx, now()) else {
                self.expiry = None;
                return;
            };
            // Timers are good for no less than 1 ms.
            let due = (due + Duration::from_millis(1)).into();
            match &mut self.expiry {
                Some(expiry) => expiry.as_mut().reset(due),
                expiry => *expiry = Some(Box::pin(tokio::time::sleep_until(due))),
            }
        }
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
        while let Poll::Ready(told) = side.desk.poll_told(cx) {
            if matches!(told, Told::PlaceNeeded | Told::Abandoned) {
                return Poll::Ready(shut.cause);
            }
        }
        if !shut.is_done {
            let flow = &side.desk.flow;
            if writer.poll(cx, stream, flow, now()).is_ready() {
                return Poll::Ready(shut.cause);
            }
            // Data may have come in again, from a peer that has yet to hear of this; it goes nowhere.
            shut.is_done = flow.control_len() == 0 && Pin::new(&mut *stream).poll_shutdown(cx).is_ready();
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

fn over(cause: LeaveCause) -> Poll<Outcome> {
    Poll::Ready(Outcome::Over(cause))
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
