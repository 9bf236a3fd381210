//! Takes what a relay's side sends: STUN messages to the pure core (`relay/connection.rs`), whole runs of ChannelData,
//! copied once, straight into the peer's queue.
//!
//! It waits for its peer only while that is quick: what a slow one does not take is dropped.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use tokio::time::Sleep;

use crate::clock::now;
use crate::config::RelayConfig;
use crate::counters::DropReason;
use crate::datagrams::Batch;
use crate::relay::TcpRelayActor;
use crate::relay::connection::{Connection, Ending, JoinAnswer, JoinRequest, Output};
use crate::relay::directory::{Newcomer, Pairing, Refused};
use crate::relay::messages::{self, Closing, Peer, PeerStatus, Reason, Refusal};
use crate::relay::pace::Pace;
use crate::relay::runs::{self, Run};
use crate::relay_buffers;
use crate::relay_conn::{JoinWanted, Rejected, SideLeaves};
use crate::relay_desk::{Desk, Meeting, SharedRate, Told};
use crate::stream::{FrameSink, Taken};

/// While so many bytes of control wait for a side, nothing more that it asks is read.
const MAX_CONTROL_LEN: usize = 16 << 10;
/// Messages that are answered after one read: each costs some HMACs, and its neighbours on the thread have datagrams.
const MAX_MESSAGES: usize = 8;

/// Takes what the side sends.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) core: Connection,
    pub(crate) desk: Arc<Desk>,
    config: Arc<RelayConfig>,
    relay: Addr<TcpRelayActor>,
    /// Its peer, and where its datagrams go, while there is one.
    pub(crate) met: Option<Meeting>,
    rate: Option<SharedRate>,
    /// The peer's.
    pace: Pace,
    /// How many of the bytes that come next have been here before.
    seen: usize,
    /// Of this turn.
    pub(crate) now: Instant,
    pub(crate) ended: Option<Ending>,
    /// It has been told so much that it has not read that what it was told last is lost.
    pub(crate) is_deaf: bool,
}

impl Side {
    pub(crate) fn new(
        core: Connection,
        desk: Arc<Desk>,
        config: Arc<RelayConfig>,
        relay: Addr<TcpRelayActor>,
    ) -> Self {
        let (now, pace) = (now(), Pace::new(now(), true));
        let (met, rate, seen, ended, is_deaf) = Default::default();
        Self { core, desk, config, relay, met, rate, pace, seen, now, ended, is_deaf }
    }

    pub(crate) fn told(&mut self, told: Told) {
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
            // Seen to before.
            Told::Abandoned | Told::Move(_) => {}
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
        if !self.is_deaf {
            self.desk.flow.admit(way.pairing);
        }
    }

    /// Pending while the pair has sent more than it may.
    pub(crate) fn poll_rate(&self, cx: &mut Context<'_>, pause: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
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
        poll_pause(cx, pause, self.now + wait)
    }

    /// Pending while the peer's queue is long and the peer quick.
    pub(crate) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        pause: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<()> {
        let Some(Meeting { way, .. }) = &self.met else { return Poll::Ready(()) };
        if way.to.flow.poll_short(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.pace.wait_until(self.now, way.to.flow.taken()) {
            Some(until) => poll_pause(cx, pause, until),
            None => Poll::Ready(()),
        }
    }

    pub(crate) fn outputs(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send(bytes) => {
                    // What a side asks is not read while so much waits; but its peer may come and go.
                    self.is_deaf |= self.desk.flow.push_control(bytes.into()).is_err();
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

    pub(crate) fn is_congested(&self) -> bool {
        self.desk.flow.control_len() > MAX_CONTROL_LEN
    }

    /// Takes whole messages from the beginning of `bytes`.
    fn cut(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let (mut used, mut messages) = (0, 0);
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
                    if runs::is_data(rest) {
                        self.desk.counters.dropped(DropReason::TooLong, 1);
                    } else if self.is_congested() {
                        return (used, Taken::Blocked);
                    } else if messages == MAX_MESSAGES {
                        return (used, Taken::Some);
                    } else {
                        messages += 1;
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
        let Run { datagrams, payload, .. } = run;
        match &self.met {
            Some(Meeting { way, .. }) if self.core.may_forward() => {
                let frames = relay_buffers::copied(frames);
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
            if let Some(rate) = &self.rate {
                rate.lock().unwrap_or_else(PoisonError::into_inner).take(self.now, fresh);
            }
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

fn poll_pause(cx: &mut Context<'_>, pause: &mut Option<Pin<Box<Sleep>>>, until: Instant) -> Poll<()> {
    let until = until.into();
    let pause = pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
    pause.as_mut().reset(until);
    pause.as_mut().poll(cx)
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
