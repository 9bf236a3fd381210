//! A session that meets its peer at a TCP relay (`Remote::Relay`).
//!
//! Its one link, the primary, is a connection to the relay, which carries the flows of all local applications, or of
//! the peer's towards a service. Links are dialed, told of and restarted as those of a direct session; what differs is
//! here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use crate::clock::now;
use crate::config::{HostPort, RelayRemote, Remote};
use crate::dial::dial;
use crate::event::{Cause, EventKind, SideEvent};
use crate::lane::LinkId;
use crate::link::{Ending, Part};
use crate::links::Phase;
use crate::relay::messages::Instance;
use crate::relay::side::{Setup, Side};
use crate::relay_link::{Door, Hops, House, RelayLinkActor, RelayNews};
use crate::relay_paths::{ChannelPath, RelayPaths};
use crate::session::{RelaySessionActor, SessionState};
use crate::session_tls::failed;
use crate::sockopt::SocketError;
use crate::stun;
use crate::tcp::{Close, TcpPeerActor};
use crate::tls::{Connector, RELAY_PROTOCOL};
use crate::transport::Transport;
use crate::turn::transactions::Ids;
use crate::udp::{ApplicationRules, Intake, StopEndpoint, UdpEndpointActor};
use crate::udp_io::UdpIo;
use crate::udp_relayed::RelayedApplications;

/// Redirections followed in one attempt.
const MAX_HOPS: usize = 3;
/// A relay that was sent to is not gone to again for this long, unless it let us in.
const HOP_LIFETIME: Duration = Duration::from_secs(300);

/// What a session needs of a relay, through all connections to it.
#[derive(Debug)]
pub(crate) struct SessionRelay {
    paths: Arc<RelayPaths>,
    /// The sockets towards the service, by the numbers of their endpoints.
    services: BTreeMap<LinkId, Service>,
    /// Where the relays have sent us since one let us in, and when.
    hops: Vec<(SocketAddr, Instant)>,
    /// Redirections of the present attempt.
    followed: usize,
    /// Whom to call next instead of the relay that is configured: an address, and the name its certificate must have.
    next: Option<(SocketAddr, Option<String>)>,
    /// The peer as it was last told of, so that it is told of once.
    told: Option<(String, Option<String>)>,
}

#[derive(Debug)]
struct Service {
    path: Arc<ChannelPath>,
    io: Arc<UdpIo>,
    endpoint: Addr<UdpEndpointActor>,
}

impl SessionRelay {
    /// Where a relay may send us at this moment.
    fn hops(&mut self, now: Instant) -> Hops {
        self.hops.retain(|(_, at)| now < *at + HOP_LIFETIME);
        let visited = self.hops.iter().map(|(to, _)| *to).collect();
        Hops { left: MAX_HOPS.saturating_sub(self.followed), visited }
    }
}

/// The actor that a link's connection belongs to.
#[derive(Debug)]
pub(crate) enum Carrier {
    Peer(Addr<TcpPeerActor>),
    Relay(Addr<RelayLinkActor>, Standing),
}

/// How a session stands with its relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has not been let in yet.
    Joining,
    Waiting,
    Paired,
}

impl Carrier {
    pub(crate) fn close(&self, cause: Cause) {
        match self {
            Self::Peer(actor) => actor.do_send(Close { cause }),
            Self::Relay(actor, _) => actor.do_send(Close { cause }),
        }
    }

    pub(crate) fn state(&self) -> SessionState {
        match self {
            Self::Peer(_) | Self::Relay(_, Standing::Paired) => SessionState::Connected,
            Self::Relay(_, Standing::Joining) => SessionState::Connecting,
            Self::Relay(_, Standing::Waiting) => SessionState::Waiting,
        }
    }

    /// Whether there is somebody behind the connection, or can be.
    pub(crate) fn is_let_in(&self) -> bool {
        !matches!(self, Self::Relay(_, Standing::Joining))
    }
}

impl RelaySessionActor {
    /// Whether it meets its peer at a relay.
    pub(crate) fn is_at_relay(&self) -> bool {
        matches!(self.sockets.remote(), Some(Remote::Relay(_)))
    }

    /// The flows, made when they are first needed.
    fn relay(&mut self) -> &mut SessionRelay {
        let primary = self.ensure_primary();
        let counters = self.links.get(&primary).map(|link| link.lane.counters.clone()).unwrap_or_default();
        let (config, hold) = (&self.config, self.config.connect_hold);
        self.relay.get_or_insert_with(|| {
            let app = config.application();
            let paths = RelayPaths::new(counters, config.queue_bytes, config.max_queue_delay, hold, app);
            SessionRelay {
                paths: Arc::new(paths),
                services: BTreeMap::new(),
                hops: Vec::new(),
                followed: 0,
                next: None,
                told: None,
            }
        })
    }

    /// What the endpoint of the local socket does with datagrams, if they go through a relay.
    pub(crate) fn relayed_intake(&mut self, io: &Arc<UdpIo>, rules: ApplicationRules) -> Intake {
        let link = self.ensure_primary();
        let paths = self.relay().paths.clone();
        let applications = RelayedApplications::new(rules, paths, io.clone(), link, self.reporter.clone());
        Intake::Relayed(Box::new(applications))
    }

    /// A connection to the relay, or to the one that it has sent us to.
    pub(crate) fn dial_relay(
        &mut self,
        remote: &RelayRemote,
    ) -> impl Future<Output = Result<(Transport, SocketAddr), Ending>> + use<> {
        let (options, timeout) = (self.options.clone(), self.config.connect_timeout);
        let mut config = self.config.clone();
        config.remote = Some(remote.clone().into());
        // A message may say what no configuration may.
        let valid = config.validate().map_err(|error| Ending::new(Cause::Refused, error.to_string()));
        let relay = self.relay();
        relay.paths.set_hold(config.connect_hold);
        let (to, name) = match relay.next.take() {
            Some((to, domain)) => (to.into(), domain.unwrap_or_else(|| remote.relay.host.clone())),
            None => {
                relay.followed = 0;
                (remote.relay.clone(), remote.relay.host.clone())
            }
        };
        let (to, tls): (HostPort, _) = (to, remote.tls.clone());
        async move {
            valid?;
            let connector = tls.map(|tls| Connector::new(&tls, Some(RELAY_PROTOCOL)));
            let connector = connector.transpose().map_err(failed)?;
            let broken = |error: &dyn fmt::Display| Ending::new(Cause::Broken, error.to_string());
            let (tcp, peer) = dial(&to, &options, timeout).await.map_err(|error| broken(&error))?;
            let stream = match connector {
                None => tcp.into(),
                Some(connector) => connector.connect(tcp, &name).await.map_err(failed)?.into(),
            };
            Ok((stream, peer))
        }
    }

    /// The connection is there: what happens on it from here on, it does itself.
    pub(crate) fn dialed_relay(
        &mut self,
        id: LinkId,
        remote: RelayRemote,
        result: Result<(Transport, SocketAddr), Ending>,
        ctx: &mut Context<Self>,
    ) {
        let attached = result.and_then(|(stream, peer)| {
            let attached = self.attach_relay(id, remote, stream, peer, ctx);
            attached.map_err(|error| Ending::new(Cause::Broken, error.to_string()))
        });
        if let Err(failed) = attached {
            self.obituary(Part::Link(id), true).end(failed);
        }
    }

    fn attach_relay(
        &mut self,
        id: LinkId,
        remote: RelayRemote,
        stream: Transport,
        peer: SocketAddr,
        ctx: &mut Context<Self>,
    ) -> Result<(), SocketError> {
        if self.stopping {
            return Ok(());
        }
        let (session, reporter) = (ctx.address(), self.reporter.clone());
        let limit = self.config.max_sources;
        let (sockets, maker) = (self.sockets.clone(), self.maker.clone());
        let instance = Instance(self.sockets.instance());
        let door = match (&self.local, self.config.udp_forward) {
            (Some(local), _) => Door::Application(local.io.clone()),
            (None, to) => {
                let to = to.expect("validated: there is local_udp or udp_forward");
                Door::Service { to, sockets, maker }
            }
        };
        let relay = self.relay();
        let hops = relay.hops(now());
        let paths = relay.paths.clone();
        let house = House { paths, door, limit, session, reporter };
        let setup = Setup { remote, relay: peer, instance, ids: Ids::new(stun::random_id) };
        let side = Side::new(now(), setup);
        let obituary = self.obituary(Part::Link(id), true);
        let actor = RelayLinkActor::new(stream, peer, side, house, hops, obituary).start();
        if let Some(link) = self.links.get_mut(&id) {
            let carrier = Carrier::Relay(actor, Standing::Joining);
            link.phase = Phase::Up { carrier, peer, since: now(), dialed: true, relayed: false };
        }
        self.state_may_have_changed();
        Ok(())
    }

    /// A connection to the relay has ended, or came to nothing. Gives the event to tell of it, if it is not that of
    /// any link.
    pub(crate) fn relay_link_ended(
        &mut self,
        link: LinkId,
        ending: &Ending,
        again_in: Option<Duration>,
    ) -> Option<EventKind> {
        let hold = self.idle_hold();
        let from = self.links.get(&link).and_then(|link| link.phase.peer());
        let relay = self.relay.as_mut().filter(|_| self.primary == Some(link))?;
        relay.told = None;
        relay.paths.set_hold(hold);
        match (ending.cause, &relay.next, from) {
            // Another session has the place: this one stays away until it is told to call again.
            (Cause::Superseded, ..) if again_in.is_none() => self.sockets.set_remote(None),
            (Cause::Redirected, Some((to, _)), Some(from)) => {
                return Some(EventKind::Side(SideEvent::RelayRedirected { link, from, to: *to }));
            }
            _ => {}
        }
        None
    }

    /// Told to call somebody else, or in another way: what was there before ends.
    pub(crate) fn change_remote(&mut self, remote: Remote, ctx: &mut Context<Self>) {
        if self.sockets.remote().as_ref() == Some(&remote) {
            return;
        }
        let was_at_relay = self.relay.is_some();
        self.sockets.set_remote(Some(remote));
        if was_at_relay {
            self.leave_relay(ctx);
        }
        if self.is_at_relay() {
            self.end_other_ways(ctx);
            self.change_local_endpoint(ctx);
        }
    }

    /// Flows and sockets of a relay are of no use any more.
    pub(crate) fn leave_relay(&mut self, ctx: &mut Context<Self>) {
        self.abandon_relay();
        if self.relay.take().is_some() && !self.is_at_relay() {
            self.change_local_endpoint(ctx);
        }
    }

    /// At a relay a session has one link and no other way.
    fn end_other_ways(&mut self, ctx: &mut Context<Self>) {
        self.stop_accepting();
        self.sockets.set_turn_listen(None);
        let links: Vec<_> = self.links.keys().copied().collect();
        for id in links {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if let Some((_, endpoint)) = link.service.take() {
                endpoint.do_send(StopEndpoint);
            }
            match link.phase {
                // An accepted one is in the way of the connection to the relay.
                Phase::Up { .. } => link.close(Cause::Replaced),
                Phase::Dialing(attempt) => {
                    ctx.cancel_future(attempt);
                    link.phase = Phase::Idle;
                }
                Phase::Idle | Phase::Backoff { .. } => {}
            }
            link.doomed = self.primary != Some(id);
            if link.doomed && !matches!(link.phase, Phase::Up { .. }) {
                self.forget(id);
            }
        }
    }

    /// The local applications' datagrams go another way from now on.
    fn change_local_endpoint(&mut self, ctx: &mut Context<Self>) {
        let Some(local) = self.local.take() else { return };
        local.endpoint.do_send(StopEndpoint);
        // A registration of its own: that of the endpoint that stops may still be woken.
        match self.sockets.udp(0).map(|socket| socket.map(UdpIo::new)) {
            Ok(Some(Ok(io))) => self.start_local_endpoint(Arc::new(io), ctx),
            error => tracing::error!(?error, "registering the UDP socket anew"),
        }
    }

    fn flows_ended(&mut self, paths: &[Arc<ChannelPath>]) {
        let Some(relay) = &mut self.relay else { return };
        for endpoint in paths.iter().filter_map(|path| path.endpoint) {
            if let Some(service) = relay.services.remove(&endpoint) {
                service.endpoint.do_send(StopEndpoint);
            }
        }
    }

    fn serve(&mut self, path: Arc<ChannelPath>, io: Arc<UdpIo>) {
        let Some(id) = path.endpoint else { return };
        // Of another relay's connection, which is being closed.
        if !self.relay.as_ref().is_some_and(|relay| relay.paths.has(&path)) {
            return;
        }
        let endpoint = self.start_endpoint(&io, Intake::RelayedService(path.clone()), Some(id));
        if let Some(relay) = &mut self.relay {
            relay.services.insert(id, Service { path, io, endpoint });
        }
    }

    /// The endpoint of a channel's socket has panicked, or its socket was broken.
    pub(crate) fn restart_service(&mut self, id: LinkId) {
        if let Some(Service { path, io, .. }) =
            self.relay.as_mut().and_then(|relay| relay.services.remove(&id))
        {
            self.serve(path, io);
        }
    }

    /// The session is gone: so are its sockets towards the service.
    pub(crate) fn abandon_relay(&self) {
        let services = self.relay.iter().flat_map(|relay| relay.services.values());
        services.for_each(|service| service.endpoint.do_send(StopEndpoint));
    }

    #[cfg(feature = "test-panic")]
    pub(crate) fn relayed_services(&self) -> impl Iterator<Item = &Addr<UdpEndpointActor>> {
        self.relay.iter().flat_map(|relay| relay.services.values()).map(|service| &service.endpoint)
    }

    /// Counts what has become too old, so that statistics are up to date.
    pub(crate) fn expire_relayed(&self, now: Instant) {
        self.relay.iter().for_each(|relay| relay.paths.count_expired(now));
    }

    fn stand(&mut self, standing: Standing) {
        let link = self.primary.and_then(|id| self.links.get_mut(&id));
        if let Some(Phase::Up { carrier: Carrier::Relay(_, stands), .. }) = link.map(|link| &mut link.phase) {
            *stands = standing;
        }
        self.state_may_have_changed();
    }
}

impl Handler<RelayNews> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, news: RelayNews, _: &mut Self::Context) {
        // It may be late news of a connection that the session has left.
        if self.relay.is_none() {
            return;
        }
        let link = self.ensure_primary();
        match news {
            RelayNews::Joined { relay, lifetime } => {
                let hold = self.idle_hold();
                let state = self.relay();
                (state.hops, state.followed) = (Vec::new(), 0);
                state.paths.set_hold(hold);
                self.reporter.report(EventKind::Side(SideEvent::RelayJoined { link, relay, lifetime }));
                self.stand(Standing::Waiting);
            }
            RelayNews::PeerPresent(present) => {
                let (side, user) = (present.side.as_str().to_owned(), present.user);
                let who = Some((side.clone(), user.clone()));
                if self.relay().told != who {
                    self.relay().told = who;
                    self.reporter.report(EventKind::Side(SideEvent::RelayPeerPresent { link, side, user }));
                }
                if let Some(wait) = present.slowed {
                    self.reporter.report(EventKind::Side(SideEvent::RelaySlowed { link, wait }));
                }
                self.stand(Standing::Paired);
            }
            RelayNews::PeerGone => {
                self.relay().told = None;
                self.reporter.report(EventKind::Side(SideEvent::RelayPeerGone { link }));
                self.stand(Standing::Waiting);
            }
            RelayNews::Redirected { to, domain } => {
                let relay = self.relay();
                relay.followed += 1;
                relay.hops.push((to, now()));
                relay.next = Some((to, domain));
            }
            RelayNews::ServiceWanted { path, io } => self.serve(path, io),
            RelayNews::FlowsEnded(paths) => self.flows_ended(&paths),
        }
    }
}
