//! The two halves of a link's stream: frames out of a flow into it, frames out of it into UDP.
//!
//! What a frame is, RFC 4571's or a message of a TURN stream, only the flow and the sink know.
//!
//! Each half is polled by the same future and never waits for the other: a peer that does not read must not
//! keep us from reading, a UDP socket that is full must not keep us from writing.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::flow::Flow;
use crate::tcp::channel_data::{self, MAX_MESSAGE_LEN, Payloads};
use crate::tcp::framing::MAX_FRAME_LEN;

/// What a write may hold while the stream has a backlog: more would only age in the socket.
const BACKLOG_WRITE_LEN: usize = 16 << 10;
/// What a write may hold while the stream takes everything at once.
const FREE_WRITE_LEN: usize = 64 << 10;
/// Writes in one turn of the task, so that its neighbours on the thread get theirs.
const MAX_WRITES: usize = 8;
/// Reads in one turn; each may bring many datagrams.
const MAX_READS: usize = 2;
/// One read takes at most this; the frame it completes stands in front of it.
const READ_LEN: usize = 64 << 10;
/// The longest frame of any stream.
const MAX_REST_LEN: usize = if MAX_MESSAGE_LEN > MAX_FRAME_LEN { MAX_MESSAGE_LEN } else { MAX_FRAME_LEN };

thread_local! {
    // An arbiter's, not a link's: a link that idles owns no buffer.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_REST_LEN + READ_LEN]);
}

/// Takes frames from a flow and writes them, few at a time while the stream is slow.
#[derive(Debug, Default)]
pub(crate) struct FrameWriter {
    backlog: bool,
    /// The stream takes so much that nothing grows old in it, also while it has a backlog.
    is_quick: bool,
}

impl FrameWriter {
    /// Says whether the stream is quick, so that few large writes are better than many small ones; says whether it was.
    pub(crate) fn set_quick(&mut self, is_quick: bool) -> bool {
        std::mem::replace(&mut self.is_quick, is_quick)
    }

    /// Writes until the flow is empty or the stream takes no more; is never ready but with an error. What a stream
    /// has taken but not sent (TLS) goes out before more frames are made of what may still grow too old.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
        flow: &Flow,
        now: Instant,
    ) -> Poll<io::Error> {
        for _ in 0..MAX_WRITES {
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => {
                    self.backlog = true;
                    return Poll::Pending;
                }
            }
            let max = if self.backlog && !self.is_quick { BACKLOG_WRITE_LEN } else { FREE_WRITE_LEN };
            let Poll::Ready(frames) = flow.poll_front(cx, now, max) else {
                self.backlog = false;
                return Poll::Pending;
            };
            let written = match Pin::new(&mut *stream).poll_write(cx, &frames) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => written,
            };
            flow.advance(match &written {
                Poll::Ready(Ok(written)) => *written,
                _ => 0,
            });
            match written {
                Poll::Ready(Ok(written)) if written == frames.len() => {}
                Poll::Ready(Ok(_)) => self.backlog = true,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => {
                    self.backlog = true;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// How far a sink got with the frames it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// With all whole frames.
    All,
    /// Not with all, for it has worked for long enough: it goes on at the next turn of the task.
    Some,
    /// Not with all, for it takes no more until it is ready again.
    Blocked,
    /// Not with all, for what follows is no frame: the stream cannot be understood any more.
    Malformed,
}

/// What a reader hands its frames to.
pub(crate) trait FrameSink {
    /// Takes the whole frames at the beginning of `bytes`; says how long those are that it is done with.
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken);
    /// Waits until it takes frames again.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// When it last got a frame out, whoever gave it.
    fn last_sent(&self) -> Option<Instant>;
    /// How many datagrams stand in `rest`, the one that is cut included.
    fn datagrams(&self, rest: &[u8]) -> u64;
}

/// System calls, or control messages, for what one read of a TURN stream brought; then the task's neighbours have
/// their turn.
const MAX_CALLS: usize = 64;
/// Datagrams of one channel taken together: empty ones cost a call each and the far side nothing.
const MAX_RUN: usize = 1024;

/// Who is handed what a TURN stream brings, once it is taken apart.
pub(crate) trait TurnSink {
    /// The length of the first message, padding included, as soon as it is known; `Err`: it is none.
    fn message_len(&mut self, bytes: &[u8]) -> Result<Option<usize>, ()>;
    /// Datagrams of one channel; says how many system calls they took.
    fn channel<'d>(&mut self, channel: u16, datagrams: impl Iterator<Item = &'d [u8]>) -> usize;
    /// A whole STUN message.
    fn message(&mut self, message: &[u8]);
}

/// Takes the whole messages at the beginning of `bytes`, as a [`FrameSink`] does.
pub(crate) fn take_turn(sink: &mut impl TurnSink, bytes: &[u8]) -> (usize, Taken) {
    let (mut used, mut calls) = (0, 0);
    while used < bytes.len() && calls < MAX_CALLS {
        let rest = &bytes[used..];
        let len = match sink.message_len(rest) {
            Ok(Some(len)) if len <= rest.len() => len,
            Ok(_) => return (used, Taken::All),
            Err(()) => return (used, Taken::Malformed),
        };
        if let Some((channel, _)) = channel_data::parse(rest) {
            let mut payloads = Payloads::new(rest, channel);
            calls += sink.channel(channel, payloads.by_ref().take(MAX_RUN));
            used += payloads.used();
        } else {
            sink.message(&rest[..len]);
            calls += 1;
            used += len;
        }
    }
    (used, if used < bytes.len() { Taken::Some } else { Taken::All })
}

/// Why a reader ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// The stream's orderly end.
    Closed,
    Broken(io::Error),
    /// What came is no frame.
    Malformed,
    UnfinishedFrame,
    SinkStuck,
}

/// Reads frames and hands them to a sink; stops reading while the sink is full.
#[derive(Debug)]
pub(crate) struct FrameReader {
    /// What the sink has not taken: the beginning of a frame, or also frames where it did not take all.
    rest: Vec<u8>,
    /// How many bytes of `rest` it has taken since.
    used: usize,
    taken: Taken,
    /// Since when the same frame has been unfinished, or the sink full.
    stalled: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    frame_timeout: Duration,
    sink_timeout: Duration,
}

impl FrameReader {
    pub(crate) fn new(frame_timeout: Duration, sink_timeout: Duration) -> Self {
        Self {
            rest: Vec::new(),
            used: 0,
            taken: Taken::All,
            stalled: None,
            alarm: None,
            frame_timeout,
            sink_timeout,
        }
    }

    /// Without its alarm, which belongs to the thread.
    pub(crate) fn still(self) -> Self {
        Self { alarm: None, ..self }
    }

    /// Datagrams of the peer that are here and have not gone on to `sink`, the one that is cut included.
    pub(crate) fn unfinished(&self, sink: &impl FrameSink) -> u64 {
        sink.datagrams(&self.rest[self.used..])
    }

    /// Reads until the stream has no more or the sink is full; is ready only with the end. `heard` is called
    /// for each read that brought bytes.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        sink: &mut impl FrameSink,
        now: Instant,
        mut heard: impl FnMut(Instant),
    ) -> Poll<ReadEnd> {
        for _ in 0..MAX_READS {
            if self.taken == Taken::Blocked {
                match sink.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(ReadEnd::Broken(error)),
                    Poll::Pending => return self.poll_alarm(cx, sink.last_sent(), now),
                }
            }
            if self.taken == Taken::All {
                match READ.with_borrow_mut(|buffer| self.read(cx, stream, sink, now, buffer)) {
                    Poll::Ready(Ok(())) => heard(now),
                    Poll::Ready(Err(end)) => return Poll::Ready(end),
                    Poll::Pending => return self.poll_alarm(cx, None, now),
                }
            } else {
                self.go_on(sink, now);
            }
            match self.taken {
                Taken::All | Taken::Blocked => {}
                Taken::Some => break,
                Taken::Malformed => return Poll::Ready(ReadEnd::Malformed),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read behind the beginning of a frame that is here already.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        sink: &mut impl FrameSink,
        now: Instant,
        buffer: &mut [u8],
    ) -> Poll<Result<(), ReadEnd>> {
        // Less than the longest frame: there is room for the whole read.
        let kept = self.rest.len();
        let mut read = ReadBuf::new(&mut buffer[kept..kept + READ_LEN]);
        ready!(Pin::new(stream).poll_read(cx, &mut read)).map_err(ReadEnd::Broken)?;
        let end = kept + read.filled().len();
        if end == kept {
            return Poll::Ready(Err(ReadEnd::Closed));
        }
        buffer[..kept].copy_from_slice(&self.rest);
        let (used, taken) = sink.take(&buffer[..end]);
        self.rest.clear();
        self.rest.extend_from_slice(&buffer[used..end]);
        self.used = 0;
        self.after(used, taken, now);
        Poll::Ready(Ok(()))
    }

    /// One more try with what the sink has not taken.
    fn go_on(&mut self, sink: &mut impl FrameSink, now: Instant) {
        let (used, taken) = sink.take(&self.rest[self.used..]);
        self.used += used;
        self.after(used, taken, now);
        if taken == Taken::All {
            self.rest.drain(..self.used);
            self.used = 0;
        }
    }

    fn after(&mut self, used: usize, taken: Taken, now: Instant) {
        if used > 0 || self.taken != taken {
            self.stalled = None;
        }
        self.taken = taken;
        if self.rest.len() == self.used {
            // An idle link owns no buffer.
            self.rest = Vec::new();
            self.used = 0;
        } else {
            self.stalled.get_or_insert(now);
        }
    }

    /// Nothing can be done for now: is that so for too long? The alarm is not moved with every frame; when it
    /// rings too early it is set anew.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, sent: Option<Instant>, now: Instant) -> Poll<ReadEnd> {
        let Some(since) = self.stalled.max(self.stalled.and(sent)) else { return Poll::Pending };
        let (timeout, end) = if self.taken == Taken::Blocked {
            (self.sink_timeout, ReadEnd::SinkStuck)
        } else {
            (self.frame_timeout, ReadEnd::UnfinishedFrame)
        };
        if now >= since + timeout {
            return Poll::Ready(end);
        }
        loop {
            let deadline = (since + timeout).into();
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if alarm.deadline() > deadline {
                alarm.as_mut().reset(deadline);
            }
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= deadline {
                return Poll::Ready(end);
            }
            alarm.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
#[path = "stream/tests.rs"]
mod tests;
