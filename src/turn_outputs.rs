//! What a `TurnClientActor` does with what its core says, and how an allocation begins and ends.

use std::net::SocketAddr;
use std::task::Waker;
use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::clock::now;
use crate::event::{Cause, TurnEvent};
use crate::link::Ending;
use crate::session::in_wall_time;
use crate::transport::Transport;
use crate::turn::allocation::Output;
use crate::turn::connections::{GATE_TIMEOUT, Key};
use crate::turn::{
    ChannelNumber, ConnectionId, Ended, PeerConnectionAttempt, Phase, RelayConnectionAccepted, RelayStream,
    TurnClientActor, TurnError,
};
use crate::turn_dial::ServerDialer;
use crate::turn_io::{Opened, Opening, Running};
use crate::turn_stream::RelayStreamEnded;

/// An allocation that lived this long has proven itself.
const PROVEN_LIFETIME: Duration = Duration::from_secs(10);
/// Redirections followed in one attempt (300, RFC 8489 §10).
const MAX_HOPS: usize = 3;

impl TurnClientActor {
    /// Begins an attempt, unless one is under way or none is wanted.
    pub(crate) fn allocate_if_wanted(&mut self, ctx: &mut Context<Self>) {
        if self.is_wanted()
            && self.ended.is_none()
            && matches!(self.phase, Phase::Idle | Phase::Backoff { .. })
        {
            self.round += 1;
            self.open(Vec::new(), ctx);
        }
    }

    /// The supervisor says that it is time. It may say so for an earlier failure, after which somebody has sent
    /// [`Allocate`](crate::turn::Allocate): then the later one's time is waited for.
    pub(crate) fn retry(&mut self, ctx: &mut Context<Self>) {
        let Phase::Backoff { due, .. } = self.phase else { return };
        match due.checked_duration_since(now()).filter(|left| !left.is_zero()) {
            Some(left) => _ = ctx.run_later(left, Self::retry),
            None => self.allocate_if_wanted(ctx),
        }
    }

    /// Connects to the server, or to the last of those it sent us to.
    fn open(&mut self, hops: Vec<SocketAddr>, ctx: &mut Context<Self>) {
        let opening =
            Opening::new(&self.config, self.options.clone(), self.sockets.wishes().addresses_tried, hops);
        let opened = opening.open().into_actor(self).map(|opened, act, ctx| act.opened(opened, ctx));
        self.phase = Phase::Opening(ctx.spawn(opened));
        self.forwards.hold();
        self.state_may_have_changed();
    }

    fn opened(&mut self, opened: Result<Opened, TurnError>, ctx: &mut Context<Self>) {
        let running = opened.and_then(|opened| {
            Running::new(now(), opened, &self.config, self.setup(), self.forwards.counters.clone())
        });
        match running {
            Ok(running) => {
                self.phase = Phase::Running(Box::new(running));
                self.outputs(ctx);
                self.state_may_have_changed();
            }
            Err(error) => {
                self.phase = Phase::Idle;
                self.ended_with(error, None, ctx);
            }
        }
    }

    /// After the core was told something outside of [`Drive`](crate::turn_io::Drive), which then has its turn: it may
    /// have been polled already in this one, and there is a timer to be set.
    pub(crate) fn outputs(&mut self, ctx: &mut Context<Self>) {
        self.take_outputs(ctx);
        self.drive.iter().for_each(Waker::wake_by_ref);
    }

    /// Does all that the core wants done. The only place that takes its outputs.
    pub(crate) fn take_outputs(&mut self, ctx: &mut Context<Self>) {
        while let Phase::Running(running) = &mut self.phase
            && let Some(output) = running.core.poll_output()
        {
            self.output(output, ctx);
        }
    }

    fn output(&mut self, output: Output, ctx: &mut Context<Self>) {
        match output {
            Output::Send(bytes) => self.send_control(&bytes),
            Output::SendData { key, bytes } => {
                if let Phase::Running(running) = &mut self.phase {
                    running.data.send(key, &bytes);
                }
            }
            Output::Allocated { relayed, mapped, lifetime } => self.allocated(relayed, mapped, lifetime),
            Output::RefreshFailed { error } => self.report(TurnEvent::RefreshFailed { error }),
            Output::Permitted { peers } => {
                for (missing, _) in &mut self.waiting.permit {
                    missing.retain(|peer| !peers.contains(peer));
                }
                for (_, waiting) in self.waiting.permit.extract_if(.., |(missing, _)| missing.is_empty()) {
                    let _ = waiting.send(Ok(()));
                }
                self.report(TurnEvent::PermissionsCreated { peers });
            }
            Output::PermissionsFailed { peers, error } => {
                let concerned = self
                    .waiting
                    .permit
                    .extract_if(.., |(missing, _)| peers.iter().any(|peer| missing.contains(peer)));
                for (_, waiting) in concerned {
                    let _ = waiting.send(Err(error.clone()));
                }
                self.report(TurnEvent::PermissionsFailed { peers, error });
            }
            Output::ChannelBound { channel, peer } => {
                self.answer_bind(peer, &Ok(ChannelNumber(channel)));
                self.open_path(peer, channel);
                self.report(TurnEvent::ChannelBound { peer, channel: ChannelNumber(channel) });
            }
            Output::ChannelFailed { peer, error } => {
                self.answer_bind(peer, &Err(error.clone()));
                self.report(TurnEvent::ChannelFailed { peer, error });
            }
            Output::ChannelClosed { peer } => self.forwards.close_path(peer),
            Output::Attempt { key, connection, peer } => {
                self.attempt(key, ConnectionId(connection), peer, ctx)
            }
            Output::AttemptRefused { peer } => self.refuse_attempt(peer),
            Output::Dial { key } => self.dial_data(key, ctx),
            Output::Bound { key, connection, peer } => self.bound(key, ConnectionId(connection), peer, ctx),
            Output::ConnectionFailed { key, peer, error } => self.connection_failed(key, peer, error),
            Output::WantCredentials { rejected, realm } => self.want_credentials(rejected, realm, ctx),
            Output::Ended { error } => self.core_ended(error, ctx),
        }
    }

    fn answer_bind(&mut self, peer: SocketAddr, answer: &Result<ChannelNumber, TurnError>) {
        for waiting in self.waiting.bind.remove(&peer).into_iter().flatten() {
            let _ = waiting.send(answer.clone());
        }
    }

    fn allocated(&mut self, relayed: SocketAddr, mapped: SocketAddr, lifetime: Duration) {
        let Phase::Running(running) = &mut self.phase else { return };
        running.granted = Some((relayed, now()));
        let server = running.server;
        for waiting in self.waiting.allocate.drain(..) {
            let _ = waiting.send(Ok(()));
        }
        for waiting in self.waiting.ready.drain(..) {
            let _ = waiting.send(());
        }
        let replaces = self.last_relayed.replace(relayed).filter(|old| *old != relayed);
        self.report(TurnEvent::AllocationCreated { server, relayed, mapped, lifetime, replaces });
        self.state_may_have_changed();
    }

    fn attempt(&mut self, key: Key, connection: ConnectionId, peer: SocketAddr, ctx: &mut Context<Self>) {
        let Phase::Running(running) = &mut self.phase else { return };
        let is_taken = self.gate.streams.is_some() || self.config.tcp_forward.is_some();
        // The server lets a forbidden peer in until the permission has run out.
        if !is_taken || !running.core.permissions().is_granted(now(), peer.ip()) {
            return running.core.reject(key);
        }
        let Some(gate) = self.gate.gate.clone() else { return running.core.accept(now(), key) };
        let asked = gate.send(PeerConnectionAttempt { connection, peer });
        let decided = async move { matches!(tokio::time::timeout(GATE_TIMEOUT, asked).await, Ok(Ok(true))) };
        ctx.spawn(decided.into_actor(self).map(move |is_accepted, act, ctx| {
            if let Phase::Running(running) = &mut act.phase {
                if is_accepted { running.core.accept(now(), key) } else { running.core.reject(key) }
            }
            act.outputs(ctx);
        }));
    }

    fn dial_data(&mut self, key: Key, ctx: &mut Context<Self>) {
        let Phase::Running(running) = &self.phase else { return };
        let dial = running.dial_data(ServerDialer::new(&self.config, self.options.clone()));
        ctx.spawn(dial.into_actor(self).map(move |dialed, act, ctx| act.data_dialed(key, dialed, ctx)));
    }

    fn data_dialed(&mut self, key: Key, dialed: Result<Transport, TurnError>, ctx: &mut Context<Self>) {
        // It may be another allocation by now, to which the key means nothing.
        if let Phase::Running(running) = &mut self.phase {
            match dialed {
                Ok(_) if running.core.connections().get(key).is_none() => {}
                Ok(stream) => {
                    running.data.insert(key, stream);
                    running.core.data_opened(now(), key);
                }
                Err(error) => running.core.data_failed(key, error.to_string()),
            }
            self.outputs(ctx);
        }
    }

    fn bound(&mut self, key: Key, connection: ConnectionId, peer: SocketAddr, ctx: &mut Context<Self>) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some((stream, early)) = running.data.take(key) else { return };
        let client = ctx.address().recipient::<RelayStreamEnded>();
        let stream = RelayStream::new(stream, early, peer, connection, client, key.0);
        self.streams.insert(key, (connection, peer));
        self.report(TurnEvent::RelayConnectionCreated { connection, peer });
        match (self.waiting.connect.remove(&key), &self.gate.streams, self.config.tcp_forward) {
            // Where nobody waits any more the stream is dropped, and so closed.
            (Some(waiting), ..) => {
                let _ = waiting.send(Ok(stream));
            }
            // One message for each of at most 256 connections, so the mailbox's capacity need not bound it.
            (None, Some(streams), _) => streams.do_send(RelayConnectionAccepted { stream }),
            (None, None, Some(to)) => self.forward_stream(stream, to, ctx),
            (None, None, None) => {}
        }
    }

    /// Tells of one a second: who is turned away may come again at once.
    fn refuse_attempt(&mut self, peer: SocketAddr) {
        if let Some(more) = self.refused_attempts.pass(now()) {
            tracing::warn!(%peer, more, "there are too many relay connections, or too many wait for the gate");
            self.report(TurnEvent::PeerConnectionRejected { peer });
        }
    }

    fn connection_failed(&mut self, key: Key, peer: SocketAddr, error: TurnError) {
        if let Phase::Running(running) = &mut self.phase {
            running.data.take(key);
        }
        if let Some(waiting) = self.waiting.connect.remove(&key) {
            let _ = waiting.send(Err(error.clone()));
        }
        self.report(match error {
            TurnError::NotAccepted => TurnEvent::PeerConnectionRejected { peer },
            error => TurnEvent::RelayConnectionBindingFailed { peer, error },
        });
    }

    /// The core has said its last. A redirection goes on elsewhere.
    fn core_ended(&mut self, error: TurnError, ctx: &mut Context<Self>) {
        let Phase::Running(running) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        self.next_key = running.core.connections().next_key();
        self.forwards.close_paths();
        running.close();
        let Running { granted, mut hops, server, .. } = *running;
        // 437: the server still remembers an earlier user of our port. Once more then, from another one.
        let goes_on_at = match error {
            TurnError::Redirected { to } if to != server => Some(to),
            TurnError::Refused { request: "Allocate", code: 437, .. } => Some(server),
            _ => None,
        };
        if let Some(to) = goes_on_at
            && granted.is_none()
            && self.is_wanted()
            && hops.len() < MAX_HOPS
            && is_server(to, server)
            && !hops.contains(&to)
        {
            hops.push(to);
            return self.open(hops, ctx);
        }
        self.ended_with(error, granted, ctx);
        self.stop_if_done(ctx);
    }

    /// The one road for every end, of an attempt or of an allocation. What is to be told is told when the
    /// supervisor has said whether there will be another.
    pub(crate) fn ended_with(
        &mut self,
        error: TurnError,
        granted: Option<(SocketAddr, Instant)>,
        ctx: &mut Context<Self>,
    ) {
        if granted.is_none() && error != TurnError::Told {
            // Over UDP nothing else says that an address is wrong.
            self.sockets.wishes().addresses_tried += 1;
        }
        // Told to deallocate and, since then, to allocate: they wait for the next one.
        if error != TurnError::Told || !self.is_wanted() {
            for waiting in self.waiting.allocate.drain(..) {
                let _ = waiting.send(Err(error.clone()));
            }
        }
        for (_, waiting) in self.waiting.permit.drain(..) {
            let _ = waiting.send(Err(error.clone()));
        }
        for waiting in self.waiting.bind.drain().flat_map(|(_, waiting)| waiting) {
            let _ = waiting.send(Err(error.clone()));
        }
        for waiting in self.waiting.deallocate.drain(..) {
            let _ = waiting.send(());
        }
        let cause = match &error {
            TurnError::Told => Cause::Told,
            error if error.is_refusal() => Cause::Refused,
            _ => Cause::Broken,
        };
        let mut ending = Ending::new(cause, error.to_string());
        ending.proven = granted.is_some_and(|(_, since)| now().duration_since(since) >= PROVEN_LIFETIME);
        self.ended = Some(Ended { error, relayed: granted.map(|(relayed, _)| relayed) });
        self.allocation_obituary().end(ending);
        self.state_may_have_changed();
        if self.stopping {
            // Nobody will tell an actor that is gone.
            self.allocation_ended(None, ctx);
        }
    }

    /// The supervisor has heard of the end.
    pub(crate) fn allocation_ended(&mut self, retry_in: Option<Duration>, ctx: &mut Context<Self>) {
        let Some(Ended { error, relayed }) = self.ended.take() else { return };
        let retry_in = retry_in.filter(|_| self.is_wanted());
        match relayed {
            Some(relayed) => self.report(TurnEvent::AllocationDeleted { relayed, cause: error, retry_in }),
            None if error == TurnError::Told => {}
            None => self.report(TurnEvent::AllocationFailed { error, retry_in }),
        }
        match retry_in {
            Some(wait) => {
                self.phase = Phase::Backoff { until: in_wall_time(wait), due: now() + wait };
            }
            // Told to allocate since.
            None if !self.waiting.allocate.is_empty() => self.allocate_if_wanted(ctx),
            None => {
                self.sockets.wishes().allocation = Some(false);
                self.waiting.ready.clear();
            }
        }
        self.state_may_have_changed();
    }
}

/// Whether a redirection names an address that a server can have. It comes without integrity: it must not lead to this
/// machine, unless the one who sends it is on it.
fn is_server(to: SocketAddr, from: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    let is_somebody = to.port() != 0 && !ip.is_unspecified() && !ip.is_multicast();
    is_somebody && (!ip.is_loopback() || from.ip().to_canonical().is_loopback())
}

impl Handler<RelayStreamEnded> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: RelayStreamEnded, _: &mut Self::Context) {
        let key = Key(message.key);
        let Some((connection, peer)) = self.streams.remove(&key) else { return };
        if let Phase::Running(running) = &mut self.phase {
            running.core.stream_ended(key);
        }
        if let Some(error) = message.error {
            self.report(TurnEvent::RelayConnectionError { connection, peer, error });
        }
        self.report(TurnEvent::RelayConnectionClosed { connection, peer });
    }
}
