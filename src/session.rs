//! `RelaySessionActor`: the seed's TCPHandler.
//!
//! It owns the local UDP side and the TCP side, introduces the two ends of each link to each other, and
//! steps aside: datagrams pass it by.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::accept::Accept;
use crate::clock::{OncePerSecond, now};
use crate::config::{ChildId, MAX_LISTENERS, Remote, SessionConfig};
use crate::counters::{Counters, LiveCounters};
use crate::event::{Cause, EventKind};
use crate::handshakes::Handshakes;
use crate::lane::LaneMaker;
use crate::link::{Ending, Mortal, Obituary, Part};
use crate::link_stream::Stream;
use crate::links::{Link, Phase};
use crate::listen::{Listener, Lobby};
use crate::session_relay::SessionRelay;
use crate::session_turn::SessionTurn;
use crate::sockets::Sockets;
use crate::sockopt::TcpOptions;
use crate::supervisor::{Reporter, SupervisorActor};
use crate::udp::{ApplicationRules, Applications, Intake, StopEndpoint, UdpEndpointActor};
use crate::udp_io::UdpIo;

pub use crate::lane::LinkId;
pub use crate::sockopt::SocketError;
pub use crate::tls::TlsError;
pub use state::SessionState;

pub(crate) mod admission;
mod state;

/// In back-off, and while no peer has come, datagrams are held for this long at most.
const IDLE_HOLD: Duration = Duration::from_secs(1);

/// The seed's `Connect`: calls `remote`, and again whenever the connection is lost, until
/// [`Disconnect`]. What was dialed before is closed. A session has one allocation: to call through a TURN server
/// ends a `turn_listen` of another server, or for the other address family.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Connect {
    /// Where to.
    pub remote: Remote,
}

/// The seed's `Listen`: waits for peers at these addresses, and no longer at others. Answers with the
/// addresses, the ports chosen by the system in place of port 0.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Vec<SocketAddr>, SocketError>")]
pub struct Listen {
    /// At most 16 addresses.
    pub local_tcp: Vec<SocketAddr>,
}

/// The seed's `Disconnect`: closes the TCP side, keeps the UDP socket. [`Connect`] and [`Listen`] work again
/// after it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Disconnect;

/// Asks how the session is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SessionInfo")]
pub struct GetSession;

/// How a session is: the seed's read-only properties and what it has carried.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's name.
    pub name: ChildId,
    /// The seed's `State`: the best of its links'.
    #[serde(flatten)]
    pub state: SessionState,
    /// The real address of the local UDP socket.
    pub local_udp: Option<SocketAddr>,
    /// The service that datagrams are forwarded to.
    pub udp_forward: Option<SocketAddr>,
    /// Where it listens, with the real ports.
    pub local_tcp: Vec<SocketAddr>,
    /// Whom it calls.
    pub remote: Option<Remote>,
    /// Its links, by number.
    pub links: Vec<LinkInfo>,
    /// Accepted connections that have sent nothing yet, are at their TLS handshake, or wait for a place.
    pub waiting: usize,
    /// What was carried and dropped since the session was first started, restarts included.
    pub counters: Counters,
}

/// How one link is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LinkInfo {
    /// Its number.
    pub link: LinkId,
    /// `Idle`, `Backoff`, `Connecting` or `Connected`.
    #[serde(flatten)]
    pub state: SessionState,
    /// The far end, while connected.
    pub peer: Option<SocketAddr>,
    /// The local application, once known, or the service.
    pub udp: Option<SocketAddr>,
    /// What it has carried and dropped.
    pub counters: Counters,
}

/// From the supervisor: a part of the session, or of the TURN client, has ended, and this is when it comes again, if it does.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct PartEnded {
    pub(crate) part: Part,
    pub(crate) round: u64,
    pub(crate) ending: Ending,
    pub(crate) again_in: Option<Duration>,
}

/// From the supervisor: start that part afresh. For a link that is to dial, names resolved again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RestartPart {
    pub(crate) part: Part,
}

/// A peer has come through a relay: it is let in as if a listener had accepted it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct PeerArrived {
    pub(crate) stream: Stream,
    pub(crate) peer: SocketAddr,
}

/// From the supervisor: close everything in order, then end.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

/// What a session's actor is made from; the sockets are the same in each of its lives.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) config: SessionConfig,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) life: u64,
    pub(crate) stats_interval: Duration,
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) reporter: Reporter,
    pub(crate) token: CancellationToken,
}

/// The seed's TCPHandler: forwards the datagrams of local UDP parties through TCP. Started by
/// [`StartSession`](crate::supervisor::StartSession).
#[derive(Debug)]
pub struct RelaySessionActor {
    pub(crate) config: SessionConfig,
    pub(crate) options: TcpOptions,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) reporter: Reporter,
    pub(crate) maker: Arc<LaneMaker>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    /// The link that is there from the beginning, peer or no peer; see `links.rs`.
    pub(crate) primary: Option<LinkId>,
    pub(crate) local: Option<LocalSocket>,
    pub(crate) handshakes: Handshakes,
    pub(crate) lobby: Lobby,
    pub(crate) lobby_timer: Option<SpawnHandle>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) refusals: OncePerSecond,
    pub(crate) stopping: bool,
    pub(crate) turn: Option<SessionTurn>,
    pub(crate) turn_rounds: u64,
    pub(crate) relay: Option<SessionRelay>,
    /// Cancelled when the supervisor is gone, however it went.
    supervised: CancellationToken,
    supervisor: Addr<SupervisorActor>,
    obituary: Obituary,
    life: u64,
    stats_interval: Duration,
    /// Counts what belongs to no link.
    counters: Arc<LiveCounters>,
    reported: SessionState,
}

/// The socket that local applications send to.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    pub(crate) io: Arc<UdpIo>,
    pub(crate) endpoint: Addr<UdpEndpointActor>,
}

impl RelaySessionActor {
    pub(crate) fn new(seed: Seed) -> Self {
        let Seed { config, sockets, life, stats_interval, supervisor, reporter, token } = seed;
        let maker = LaneMaker::new(config.queue_bytes, config.connect_hold, sockets.totals.clone());
        let child = config.name.clone();
        let who = Mortal { child, life, part: Part::Session, round: 0, again: true };
        Self {
            options: TcpOptions::from(&config),
            maker: Arc::new(maker),
            counters: sockets.totals.counters(),
            obituary: Obituary::new(who, supervisor.clone()),
            config,
            sockets,
            reporter,
            links: BTreeMap::new(),
            primary: None,
            local: None,
            handshakes: Handshakes::default(),
            lobby: Lobby::default(),
            lobby_timer: None,
            listeners: Vec::new(),
            refusals: OncePerSecond::default(),
            supervised: token,
            stopping: false,
            turn: None,
            turn_rounds: 0,
            relay: None,
            supervisor,
            life,
            stats_interval,
            reported: SessionState::Idle,
        }
    }

    /// The obituary of a part that is about to begin.
    pub(crate) fn obituary(&self, part: Part, again: bool) -> Obituary {
        let round = match part {
            Part::Link(id) => self.links.get(&id).map_or(0, |link| link.round),
            _ => 0,
        };
        let who = Mortal { child: self.config.name.clone(), life: self.life, part, round, again };
        Obituary::new(who, self.supervisor.clone())
    }

    /// Datagrams are held for this long while nobody is being dialed.
    pub(crate) fn idle_hold(&self) -> Duration {
        self.config.connect_hold.min(IDLE_HOLD)
    }

    fn open(&mut self, ctx: &mut Context<Self>) -> Result<(), Ending> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Ending::new(Cause::Broken, format!("{what}: {error}"))
        };
        let udp = self.sockets.udp(0).map_err(|error| failed("duplicating the UDP socket", &error))?;
        if let Some(udp) = udp {
            let io = Arc::new(UdpIo::new(udp).map_err(|error| failed("setting up the UDP socket", &error))?);
            self.ensure_primary();
            self.start_local_endpoint(io, ctx);
        }
        self.reporter.report(EventKind::SessionStarted {
            local_udp: self.local.as_ref().map(|local| local.io.local()),
            udp_forward: self.config.udp_forward,
        });
        self.start_accepting().map_err(|error| failed("listening", &error))?;
        self.start_turn_listen(ctx);
        if self.sockets.remote().is_some() {
            self.ensure_primary();
            self.dial_all(ctx);
        }
        self.state_may_have_changed();
        Ok(())
    }

    pub(crate) fn start_local_endpoint(&mut self, io: Arc<UdpIo>, ctx: &mut Context<Self>) {
        let rules = ApplicationRules {
            max_sources: self.config.source_limit(),
            source_idle: self.config.source_idle,
            app: self.config.application(),
        };
        let intake = if self.is_at_relay() {
            self.relayed_intake(&io, rules)
        } else {
            let known = self.links.values().map(|link| link.lane.clone()).collect();
            let (maker, counters) = (self.maker.clone(), self.counters.clone());
            let (session, reporter) = (ctx.address(), self.reporter.clone());
            Intake::Applications(Box::new(Applications::new(
                rules, known, maker, counters, session, reporter,
            )))
        };
        let endpoint = self.start_endpoint(&io, intake, None);
        self.local = Some(LocalSocket { io, endpoint });
    }

    pub(crate) fn start_endpoint(
        &self,
        io: &Arc<UdpIo>,
        intake: Intake,
        link: Option<LinkId>,
    ) -> Addr<UdpEndpointActor> {
        let obituary = self.obituary(Part::Endpoint(link), true);
        UdpEndpointActor::new(io.clone(), intake, self.reporter.clone(), obituary).start()
    }

    pub(crate) fn state(&self) -> SessionState {
        let is_listening = !self.listeners.is_empty() || self.is_turn_listening();
        let waiting = if is_listening { SessionState::Listening } else { SessionState::Idle };
        self.links.values().map(|link| link.phase.state()).fold(waiting, SessionState::best)
    }

    /// To be called after anything that may have changed it.
    pub(crate) fn state_may_have_changed(&mut self) {
        let state = self.state();
        if state != self.reported {
            self.reported = state;
            self.reporter.report(EventKind::StateChanged { state });
        }
    }

    fn info(&self) -> SessionInfo {
        let now = now();
        self.expire_relayed(now);
        let links = self.links.iter().map(|(id, link)| {
            link.lane.flow.expire(now);
            LinkInfo {
                link: *id,
                state: link.phase.state(),
                peer: link.phase.peer(),
                udp: link.lane.party().map(|party| party.to),
                counters: link.lane.counters.snapshot(),
            }
        });
        SessionInfo {
            name: self.config.name.clone(),
            state: self.state(),
            local_udp: self.local.as_ref().map(|local| local.io.local()),
            udp_forward: self.config.udp_forward,
            local_tcp: self.sockets.local_tcp(),
            remote: self.sockets.remote(),
            links: links.collect(),
            waiting: self.handshakes.len() + self.lobby.len(),
            counters: self.sockets.totals.snapshot(),
        }
    }

    fn report_stats(&mut self, ctx: &mut Context<Self>) {
        let info = self.info();
        let connected = info.links.iter().filter(|link| link.state == SessionState::Connected).count();
        self.reporter.report(EventKind::Stats { connected, counters: info.counters });
        // Not `run_interval`: it would make up for missed ticks in a burst.
        ctx.run_later(self.stats_interval, Self::report_stats);
    }

    /// Ends the actor once all links have closed and nobody else holds the local UDP socket: when the supervisor
    /// hears of it the ports are free.
    pub(crate) fn stop_if_done(&mut self, ctx: &mut Context<Self>) {
        let is_up = |link: &Link| matches!(link.phase, Phase::Up { .. });
        self.stop_turn_if_unused();
        let is_done = self.local.is_none() && !self.links.values().any(is_up) && self.is_turn_gone();
        if self.stopping && is_done {
            self.obituary.end(Ending::new(Cause::Told, "stopped"));
            ctx.stop();
        }
    }

    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    pub(crate) fn supervisor(&self) -> Addr<SupervisorActor> {
        self.supervisor.clone()
    }

    /// Cancelled when the supervisor is gone.
    pub(crate) fn supervised(&self) -> CancellationToken {
        self.supervised.clone()
    }

    /// Whether a peer at this address is let in.
    pub(crate) fn is_allowed(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.config.allow.is_empty() || self.config.allow.iter().any(|net| net.contains(&peer))
    }
}

impl Actor for RelaySessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Err(ending) = self.open(ctx) {
            self.obituary.end(ending);
            ctx.stop();
            return;
        }
        ctx.spawn(Accept::default());
        if !self.stats_interval.is_zero() {
            ctx.run_later(self.stats_interval, Self::report_stats);
        }
        let token = self.supervised.clone();
        let gone = async move { token.cancelled().await }.into_actor(self);
        // Nobody is left to say that the links have closed: no waiting for them.
        ctx.spawn(gone.map(|(), _, ctx| ctx.stop()));
    }
}

/// However the session ends, by a panic too, its other actors end with it.
impl Drop for RelaySessionActor {
    fn drop(&mut self) {
        self.links.values().for_each(Link::abandon);
        self.abandon_turn();
        self.abandon_relay();
        if let Some(local) = &self.local {
            local.endpoint.do_send(StopEndpoint);
        }
    }
}

impl RelaySessionActor {
    fn stop(&mut self, ctx: &mut Context<Self>) {
        if !self.stopping {
            self.stopping = true;
            self.disconnect(ctx);
            // Between two lives of the endpoint nobody would answer.
            self.local = self.local.take().filter(|local| local.endpoint.connected());
            if let Some(local) = &self.local {
                local.endpoint.do_send(StopEndpoint);
            }
        }
        self.stop_if_done(ctx);
    }
}

impl Handler<Stop> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.stop(ctx);
    }
}

impl Handler<GetSession> for RelaySessionActor {
    type Result = MessageResult<GetSession>;

    fn handle(&mut self, _: GetSession, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.info())
    }
}

impl Handler<Connect> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: Connect, ctx: &mut Self::Context) {
        self.change_remote(message.remote, ctx);
        self.ensure_primary();
        self.dial_all(ctx);
        self.stop_turn_if_unused();
        self.state_may_have_changed();
    }
}

impl Handler<Listen> for RelaySessionActor {
    type Result = Result<Vec<SocketAddr>, SocketError>;

    fn handle(&mut self, message: Listen, ctx: &mut Self::Context) -> Self::Result {
        let refused = |source| SocketError::Listen {
            addr: message.local_tcp.first().copied().unwrap_or(SocketAddr::from(([0; 4], 0))),
            source,
        };
        if message.local_tcp.len() > MAX_LISTENERS {
            return Err(refused(io::Error::new(io::ErrorKind::InvalidInput, "more than 16 addresses")));
        }
        if self.is_at_relay() && !message.local_tcp.is_empty() {
            return Err(refused(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the peer comes through a relay",
            )));
        }
        self.leave_relay(ctx);
        self.sockets.listen(&message.local_tcp, &self.options)?;
        self.start_accepting().map_err(refused)?;
        self.state_may_have_changed();
        Ok(self.sockets.local_tcp())
    }
}

impl Handler<Disconnect> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, _: Disconnect, ctx: &mut Self::Context) {
        self.disconnect(ctx);
        self.stop_turn_if_unused();
        self.state_may_have_changed();
    }
}

/// The wall clock's time after `wait`, for people.
pub(crate) fn in_wall_time(wait: Duration) -> SystemTime {
    SystemTime::now() + wait
}
