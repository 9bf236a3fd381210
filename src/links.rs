//! The links of a session: dialed, adopted, ended, dialed again.
//!
//! The *primary* link is there from the beginning wherever one peer or one application is expected: with
//! `local_udp`, when connecting, and with `max_peers = 1`. It keeps its number, its lane and its UDP socket
//! while connections come and go. Further links belong to further applications (when connecting) or to
//! accepted peers, and go with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;

use crate::clock::now;
use crate::config::Remote;
use crate::event::{Cause, EventKind, Refusal};
use crate::lane::{Lane, LinkId, UdpParty};
use crate::link::{Ending, Part};
use crate::link_stream::Stream;
use crate::session::admission::{Incumbent, SILENT_TIMEOUT};
use crate::session::{PartEnded, RelaySessionActor, RestartPart, SessionState, in_wall_time};
use crate::session_relay::Carrier;
use crate::sockopt::{self, SocketError};
use crate::tcp::TcpPeerActor;
use crate::udp::{
    Intake, LinkWanted, OfferLane, SourceAppeared, SourceForgotten, StopEndpoint, UdpEndpointActor,
};
use crate::udp_io::UdpIo;

/// A link whose application has sent nothing for this long may stay down when it is lost.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(5);

/// One link, with or without a connection at the moment.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) lane: Arc<Lane>,
    pub(crate) phase: Phase,
    /// Counts attempts and connections, so that late news of an earlier one is told apart.
    pub(crate) round: u64,
    /// Its own socket towards the service; `None` where applications share the session's.
    pub(crate) service: Option<(Arc<UdpIo>, Addr<UdpEndpointActor>)>,
    /// Remove it when its connection has ended.
    pub(crate) doomed: bool,
}

/// What a link is doing.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Nothing: not told to, or waiting for a peer.
    Idle,
    /// Failed; the supervisor will say when to dial again.
    Backoff { until: SystemTime },
    /// A connection is being made.
    Dialing(SpawnHandle),
    /// A connection is up.
    Up { carrier: Carrier, peer: SocketAddr, since: Instant, dialed: bool, relayed: bool },
}

impl Phase {
    pub(crate) fn state(&self) -> SessionState {
        match self {
            Self::Idle => SessionState::Idle,
            Self::Backoff { until } => SessionState::Backoff { until: *until },
            Self::Dialing(_) => SessionState::Connecting,
            Self::Up { carrier, .. } => carrier.state(),
        }
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Up { peer, .. } => Some(*peer),
            _ => None,
        }
    }
}

impl Link {
    fn new(lane: Arc<Lane>) -> Self {
        Self { lane, phase: Phase::Idle, round: 0, service: None, doomed: false }
    }

    /// What a newcomer would have to replace.
    pub(crate) fn incumbent(&self) -> Option<Incumbent> {
        match self.phase {
            // Dialed: it is the peer that was asked for, so it counts as having spoken.
            Phase::Up { since, dialed, .. } => {
                let heard = self.lane.last_from_tcp().or(dialed.then_some(since));
                Some(Incumbent { since, heard })
            }
            _ => None,
        }
    }

    /// The session is gone: so are the link's actors.
    pub(crate) fn abandon(&self) {
        self.close(Cause::Told);
        if let Some((_, endpoint)) = &self.service {
            endpoint.do_send(StopEndpoint);
        }
    }

    /// Whether an accepted connection is up.
    fn is_accepted(&self) -> bool {
        matches!(self.phase, Phase::Up { dialed: false, .. })
    }

    pub(crate) fn close(&self, cause: Cause) {
        if let Phase::Up { carrier, .. } = &self.phase {
            carrier.close(cause);
        }
    }
}

impl RelaySessionActor {
    pub(crate) fn ensure_primary(&mut self) -> LinkId {
        if let Some(primary) = self.primary {
            return primary;
        }
        let to = self.config.udp_forward.or(self.config.application());
        let lane = self.maker.make(to.map(|to| UdpParty { to, from: None }));
        lane.flow.set_max_age(self.idle_hold());
        let id = lane.link;
        self.links.insert(id, Link::new(lane));
        self.primary = Some(id);
        id
    }

    /// Dials all links that have no connection, or one that was dialed for another remote.
    pub(crate) fn dial_all(&mut self, ctx: &mut Context<Self>) {
        let ids: Vec<_> = self.links.keys().copied().collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            match &link.phase {
                // It dials when it has ended.
                Phase::Up { dialed: true, .. } => link.close(Cause::Replaced),
                Phase::Up { dialed: false, .. } => {}
                Phase::Dialing(attempt) => {
                    ctx.cancel_future(*attempt);
                    link.phase = Phase::Idle;
                    self.dial(id, ctx);
                }
                Phase::Idle | Phase::Backoff { .. } => self.dial(id, ctx),
            }
        }
    }

    /// A link of a session that calls somebody is being dialed, up, in back-off or dormant, never just idle.
    pub(crate) fn dial_if_idle(&mut self, id: LinkId, ctx: &mut Context<Self>) {
        let idle = |link: &&Link| matches!(link.phase, Phase::Idle) && !link.lane.dormant.load(Relaxed);
        if self.links.get(&id).filter(idle).is_some() {
            self.dial(id, ctx);
        }
    }

    fn dial(&mut self, id: LinkId, ctx: &mut Context<Self>) {
        let Some(remote) = self.sockets.remote() else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        if !matches!(link.phase, Phase::Idle | Phase::Backoff { .. }) || self.stopping {
            return;
        }
        link.round += 1;
        link.lane.flow.set_max_age(self.config.connect_hold);
        let attempt = match remote {
            Remote::Direct(remote) => {
                let attempt = self.dial_direct(remote).into_actor(self);
                ctx.spawn(attempt.map(move |result, act, _| act.dialed(id, result)))
            }
            Remote::Relay(_) if self.primary != Some(id) => return,
            Remote::Relay(remote) => {
                let attempt = self.dial_relay(&remote).into_actor(self);
                ctx.spawn(attempt.map(move |result, act, ctx| act.dialed_relay(id, *remote, result, ctx)))
            }
            Remote::Turn(remote) => {
                let attempt = self.dial_turn(&remote, ctx).into_actor(self);
                ctx.spawn(attempt.map(move |result, act, _| act.dialed(id, result)))
            }
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Dialing(attempt);
        }
        self.state_may_have_changed();
    }

    fn dialed(&mut self, id: LinkId, result: Result<(Stream, SocketAddr), Ending>) {
        let failed = match result {
            Ok((stream, peer)) => match self.attach(id, stream, peer, now(), true) {
                Ok(()) => return,
                Err(error) => Ending::new(Cause::Broken, error.to_string()),
            },
            Err(failed) => failed,
        };
        // The supervisor hears of it as of a connection that ended: it says when to try again.
        self.obituary(Part::Link(id), true).end(failed);
    }

    /// A connection for a link, made or accepted at `since`: from here on they are on their own.
    ///
    /// # Errors
    /// The link has no UDP socket of its own yet and none could be opened.
    pub(crate) fn attach(
        &mut self,
        id: LinkId,
        stream: Stream,
        peer: SocketAddr,
        since: Instant,
        dialed: bool,
    ) -> Result<(), SocketError> {
        if self.stopping {
            // The UDP side is closing: the connection is closed by being dropped.
            return Ok(());
        }
        let udp = self.udp_of(id)?;
        if let Some(link) = self.links.get_mut(&id).filter(|_| !dialed) {
            link.round += 1;
        }
        let obituary = self.obituary(Part::Link(id), dialed);
        let reporter = self.reporter.clone();
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.lane.flow.set_max_age(self.config.max_queue_delay);
        link.lane.connection_begins();
        let relayed = matches!(stream, Stream::Relayed(_));
        let actor = TcpPeerActor::new(stream, link.lane.clone(), udp, reporter, obituary).start();
        link.phase = Phase::Up { carrier: Carrier::Peer(actor), peer, since, dialed, relayed };
        self.reporter.report(EventKind::PeerConnected { link: id, peer });
        self.state_may_have_changed();
        Ok(())
    }

    /// The socket that the link's datagrams leave from.
    fn udp_of(&mut self, id: LinkId) -> Result<Arc<UdpIo>, SocketError> {
        if let Some(local) = &self.local {
            return Ok(local.io.clone());
        }
        if let Some((io, _)) = self.links.get(&id).and_then(|link| link.service.as_ref()) {
            return Ok(io.clone());
        }
        let to = self.config.udp_forward.expect("validated: there is local_udp or udp_forward");
        let is_lasting = self.primary == Some(id);
        let socket = if is_lasting { self.sockets.service(to)? } else { sockopt::connect_udp(to)? };
        let io = UdpIo::new(socket).map_err(|source| SocketError::ConnectUdp { to, source })?;
        let io = Arc::new(io);
        self.start_service_endpoint(id, io.clone());
        Ok(io)
    }

    fn start_service_endpoint(&mut self, id: LinkId, io: Arc<UdpIo>) {
        if let Some(lane) = self.links.get(&id).map(|link| link.lane.clone()) {
            let endpoint = self.start_endpoint(&io, Intake::Service(lane), Some(id));
            if let Some(link) = self.links.get_mut(&id) {
                link.service = Some((io, endpoint));
            }
        }
    }

    /// Whether another of many peers may come in: there is room, or it is made by ending the connection that
    /// has been silent longest, both ways and for 5 s at least.
    pub(crate) fn make_room(&mut self) -> bool {
        let taken = || self.links.values().filter(|link| link.is_accepted() && !link.doomed);
        if taken().count() < self.config.peer_limit() {
            return true;
        }
        let silent = taken().min_by_key(|link| link.lane.last_activity());
        let silent =
            silent.filter(|link| link.lane.last_activity().is_none_or(|at| now() >= at + SILENT_TIMEOUT));
        let Some(id) = silent.map(|link| link.lane.link) else { return false };
        if let Some(link) = self.links.get_mut(&id) {
            link.doomed = true;
            link.close(Cause::Replaced);
        }
        true
    }

    /// A link for an accepted peer, one of many.
    pub(crate) fn adopt(&mut self, stream: Stream, peer: SocketAddr) {
        let to = self.config.udp_forward.map(|to| UdpParty { to, from: None });
        let lane = self.maker.make(to);
        let id = lane.link;
        self.links.insert(id, Link::new(lane));
        if let Err(error) = self.attach(id, stream, peer, now(), false) {
            tracing::warn!(%peer, %error, "cannot serve a peer");
            self.refuse(peer, Refusal::NoSocket);
            self.remove(id);
        }
    }

    fn remove(&mut self, id: LinkId) {
        if let Some(link) = self.links.remove(&id) {
            link.lane.flow.close();
            if let Some((_, endpoint)) = link.service {
                endpoint.do_send(StopEndpoint);
            }
        }
    }

    /// The link has got a connection another way.
    pub(crate) fn stop_dialing(&mut self, id: LinkId, ctx: &mut Context<Self>) {
        if let Some(link) = self.links.get_mut(&id)
            && let Phase::Dialing(attempt) = link.phase
        {
            ctx.cancel_future(attempt);
            link.phase = Phase::Idle;
        }
    }

    /// Closes the TCP side, whatever it is doing.
    pub(crate) fn disconnect(&mut self, ctx: &mut Context<Self>) {
        self.sockets.set_remote(None);
        self.sockets.set_turn_listen(None);
        self.stop_accepting();
        let hold = self.idle_hold();
        for link in self.links.values_mut() {
            link.lane.flow.set_max_age(hold);
            match &link.phase {
                Phase::Up { .. } => link.close(Cause::Told),
                Phase::Dialing(attempt) => {
                    ctx.cancel_future(*attempt);
                    link.phase = Phase::Idle;
                }
                Phase::Backoff { .. } => link.phase = Phase::Idle,
                Phase::Idle => {}
            }
        }
    }

    fn link_ended(&mut self, id: LinkId, message: PartEnded, ctx: &mut Context<Self>) {
        let PartEnded { ending, again_in, round, .. } = message;
        if self.links.get(&id).is_none_or(|link| link.round != round) {
            return;
        }
        // Told to disconnect in the meantime: the restart that is due finds nobody to call.
        let remote = self.sockets.remote();
        let is_dormant = again_in.is_some() && self.is_unused(id);
        let retry_in = again_in.filter(|_| remote.is_some() && !is_dormant);
        let redirection = self.relay_link_ended(id, &ending, again_in);
        let hold = self.idle_hold();
        let Some(link) = self.links.get_mut(&id) else { return };
        link.lane.flow.set_max_age(hold);
        link.lane.dormant.store(is_dormant, Relaxed);
        let Ending { cause, detail, .. } = ending;
        let event = match (&link.phase, remote) {
            (Phase::Up { carrier, peer, .. }, _) if carrier.is_let_in() => {
                Some(EventKind::PeerDisconnected { link: id, peer: *peer, cause, detail, retry_in })
            }
            (Phase::Dialing(_) | Phase::Up { .. }, Some(remote)) => {
                Some(EventKind::ConnectFailed { link: id, remote, error: detail, retry_in })
            }
            (Phase::Up { .. }, None) => None,
            _ => return,
        };
        redirection.or(event).into_iter().for_each(|event| self.reporter.report(event));
        let was_accepted = link.is_accepted();
        link.phase = match retry_in {
            Some(wait) => Phase::Backoff { until: in_wall_time(wait) },
            None => Phase::Idle,
        };
        if link.doomed || (was_accepted && self.primary != Some(id)) {
            if again_in.is_some() {
                self.forget(id);
            } else {
                self.remove(id);
            }
        }
        self.admit_waiting(ctx);
        self.dial_if_idle(id, ctx);
        self.state_may_have_changed();
        self.stop_if_done(ctx);
    }

    /// Whether a lost link may stay down until its application sends again: that has been silent for a while,
    /// and either another one has not, or the link is not the one that the far side may use first. Else the
    /// links of an application's earlier ports would fight with its present one for the far side's only place.
    fn is_unused(&self, id: LinkId) -> bool {
        let now = now();
        let is_silent = |link: &Link| {
            let last = link.lane.last_from_udp();
            link.lane.flow.is_empty() && last.is_some_and(|last| now >= last + UNUSED_TIMEOUT)
        };
        let others_talk = || self.links.iter().any(|(other, link)| *other != id && !is_silent(link));
        self.local.is_some()
            && self.links.get(&id).is_some_and(is_silent)
            && (self.primary != Some(id) || others_talk())
    }

    fn restart_link(&mut self, id: LinkId, ctx: &mut Context<Self>) {
        if matches!(self.links.get(&id), Some(Link { phase: Phase::Backoff { .. }, .. })) {
            self.dial(id, ctx);
        }
    }

    fn source_forgotten(&mut self, source: SocketAddr, lane: &Lane, ctx: &mut Context<Self>) {
        let id = lane.link;
        self.reporter.report(EventKind::SourceForgotten { link: id, source });
        let is_primary = self.primary == Some(id);
        let Some(link) = self.links.get_mut(&id) else { return };
        if is_primary {
            // Whoever comes next gets a fresh connection: the far side's service still knows the old one.
            link.lane.set_party(self.config.application().map(|to| UdpParty { to, from: None }));
            link.close(Cause::Forgotten);
            if let Some(local) = &self.local {
                local.endpoint.do_send(OfferLane(link.lane.clone()));
            }
            return;
        }
        match link.phase {
            Phase::Up { .. } => {
                link.doomed = true;
                link.close(Cause::Forgotten);
            }
            Phase::Dialing(attempt) => {
                ctx.cancel_future(attempt);
                self.forget(id);
            }
            Phase::Idle | Phase::Backoff { .. } => self.forget(id),
        }
        self.state_may_have_changed();
    }

    /// Removes a link without a connection; the supervisor forgets its failures.
    pub(crate) fn forget(&mut self, id: LinkId) {
        self.remove(id);
        self.obituary(Part::Link(id), true).end(Ending::new(Cause::Forgotten, "its application is silent"));
    }
}

impl Handler<PartEnded> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: PartEnded, ctx: &mut Self::Context) {
        match message.part {
            Part::Link(id) => self.link_ended(id, message, ctx),
            Part::Endpoint(None) if self.stopping => {
                self.local = None;
                self.stop_if_done(ctx);
            }
            // The supervisor will say when it is to be started again.
            Part::Endpoint(_) | Part::Session | Part::Relay => {}
            Part::Turn | Part::Allocation => self.turn_part_ended(message, ctx),
        }
    }
}

impl Handler<RestartPart> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: RestartPart, ctx: &mut Self::Context) {
        match message.part {
            Part::Session | Part::Relay => {}
            Part::Turn | Part::Allocation => self.restart_turn_part(message, ctx),
            Part::Link(id) => self.restart_link(id, ctx),
            Part::Endpoint(None) => {
                if let Some(local) = self.local.take() {
                    self.start_local_endpoint(local.io, ctx);
                }
            }
            Part::Endpoint(Some(id)) => {
                let io = self.links.get(&id).and_then(|link| link.service.as_ref()).map(|(io, _)| io.clone());
                if let Some(io) = io {
                    self.start_service_endpoint(id, io);
                } else {
                    self.restart_service(id);
                }
            }
        }
    }
}

impl Handler<SourceAppeared> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: SourceAppeared, ctx: &mut Self::Context) {
        let SourceAppeared { source, lane } = message;
        let id = lane.link;
        self.reporter.report(EventKind::SourceAppeared { link: id, source });
        self.links.entry(id).or_insert_with(|| Link::new(lane));
        self.dial_if_idle(id, ctx);
        self.state_may_have_changed();
    }
}

impl Handler<LinkWanted> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, LinkWanted(id): LinkWanted, ctx: &mut Self::Context) {
        self.dial(id, ctx);
    }
}

impl Handler<SourceForgotten> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: SourceForgotten, ctx: &mut Self::Context) {
        let SourceForgotten { source, lane, replaced } = message;
        if replaced {
            self.reporter.report(EventKind::SourceForgotten { link: lane.link, source });
        } else {
            self.source_forgotten(source, &lane, ctx);
        }
    }
}
