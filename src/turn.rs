//! `TurnClientActor`: a TURN client (RFC 8656), with TCP allocations (RFC 6062).
//!
//! It owns the control connection to the server and drives the pure core (`turn/allocation.rs`), one value for
//! each allocation. Datagrams pass its mailbox by; a bound relay connection is handed over and is its owner's.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use actix::prelude::*;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::clock::{OncePerSecond, now};
use crate::config::{TurnConfig, TurnUri};
use crate::counters::TurnCounters;
use crate::event::{Cause, EventKind, TurnEvent, TurnState};
use crate::link::{Ending, Mortal, Obituary, Part};
use crate::session::{PartEnded, RestartPart, Stop};
use crate::sockets::Sockets;
use crate::sockopt::TcpOptions;
use crate::supervisor::{Reporter, SupervisorActor};
use crate::turn_forwards::Forwards;
use crate::turn_io::{Drive, Running};

pub(crate) use crate::turn_handlers::AwaitAllocation;
pub use crate::turn_stream::{ConnectionId, RelayStream};
pub use error::TurnError;

mod alive;
pub(crate) mod allocation;
mod answers;
mod binding;
pub(crate) mod channels;
pub(crate) mod connections;
mod error;
mod login;
mod pace;
pub(crate) mod permissions;
pub(crate) mod transactions;

/// The seed's `start`: makes an allocation, and again when it is lost, until [`Deallocate`]. Answers when the
/// allocation is there (at once if it is already), or with the failure of the first attempt.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<AllocationInfo, TurnError>")]
pub struct Allocate;

/// The seed's `stop`: deletes the allocation on the server; answers when that is done, after 1 s at the latest.
/// Permissions and channels stay wished for and come back with the next [`Allocate`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Deallocate;

/// Lets these addresses send to the relayed address, or connect to it (CreatePermission, RFC 8656 §10), from now
/// on and through every allocation to come. Answers when the server has permitted all of them, or with the first
/// refusal; at most 1,024 addresses in all. One that was refused is asked for again, every 30 s and with every new
/// allocation, until [`Forbid`] takes it back.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), TurnError>")]
pub struct Permit {
    /// The peers' addresses; ports do not count.
    pub peers: Vec<IpAddr>,
}

/// Takes permissions back, and the channels to these addresses. TURN has no message for that: what these peers
/// send is dropped here at once, and their attempts to connect are rejected; by the server only when the permission
/// has run out (5 minutes). Connections that are there stay.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Forbid {
    /// The peers' addresses.
    pub peers: Vec<IpAddr>,
}

/// A channel's number (RFC 8656 §12): 0x4000 to 0x4FFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChannelNumber(pub u16);

impl std::fmt::Display for ChannelNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// Binds a channel to this peer (RFC 8656 §12), which saves 32 bytes a datagram and permits the peer, from now on
/// and through every allocation to come. Answers when it is bound; at most 1,024 channels.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<ChannelNumber, TurnError>")]
pub struct BindChannel {
    /// The peer's address and port.
    pub peer: SocketAddr,
}

/// Sends datagrams to a peer: over its channel, or as Send indications to one that is only permitted. The answer
/// says whether they could be sent, not whether they arrived.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), TurnError>")]
pub struct SendDatagrams {
    /// The peer.
    pub peer: SocketAddr,
    /// At most 65,504 bytes each, and all together what `queue_bytes` says; the rest is dropped and counted.
    pub datagrams: Vec<Bytes>,
}

/// Datagrams that came from a peer: a batch a message, for who asked by [`DeliverDatagrams`].
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct DatagramsReceived {
    /// The peer.
    pub peer: SocketAddr,
    /// In the order they came.
    pub datagrams: Vec<Bytes>,
}

/// From now on datagrams of peers that no `udp_forward` names go to this recipient (the seed's
/// `onRelayDataReceived`), `None`: to nobody. What its mailbox does not take is dropped and counted.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct DeliverDatagrams {
    /// Who takes them.
    pub to: Option<Recipient<DatagramsReceived>>,
}

/// The seed's `sendConnectRequest`: asks the server to connect to a peer (RFC 6062 §4.3). Answers with the stream
/// when it carries bytes, or says why not; a silent peer takes the server 30 s. At most 256 connections at once,
/// and one to each peer address (446).
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<RelayStream, TurnError>")]
pub struct ConnectPeer {
    /// The peer's address and port.
    pub peer: SocketAddr,
}

/// The one question: a peer wants to connect to the relayed address, is it let in? (the seed's
/// `onPeerConnectionAttempt`). No answer within 5 s says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "bool")]
pub struct PeerConnectionAttempt {
    /// The server's number for the connection.
    pub connection: ConnectionId,
    /// The peer.
    pub peer: SocketAddr,
}

/// A peer's connection that was accepted, ready to be read and written.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RelayConnectionAccepted {
    /// The bytes to and from the peer.
    pub stream: RelayStream,
}

/// Who decides on peers' attempts, and who takes the connections. Without a gate all permitted peers are let in
/// (the seed's default); without anybody to take connections (and without `tcp_forward`) nobody is.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct SetGate {
    /// Is asked.
    pub gate: Option<Recipient<PeerConnectionAttempt>>,
    /// Takes the accepted connections; in place of `tcp_forward`, if there is one.
    pub streams: Option<Recipient<RelayConnectionAccepted>>,
}

/// Asks how the client is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "AllocationInfo")]
pub struct GetAllocation;

/// How a TURN client is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AllocationInfo {
    /// The server, as configured.
    pub server: TurnUri,
    /// What the client is doing.
    #[serde(flatten)]
    pub state: TurnState,
    /// The relayed address, while there is an allocation.
    pub relayed: Option<SocketAddr>,
    /// Our address as the server sees it, while there is an allocation.
    pub mapped: Option<SocketAddr>,
    /// Where local applications send UDP to, in the order of `udp_forward`.
    pub local_udp: Vec<SocketAddr>,
    /// Where local TCP connections are taken, in the order of `tcp_listen`.
    pub local_tcp: Vec<SocketAddr>,
    /// The addresses that the server lets send to us.
    pub permissions: Vec<IpAddr>,
    /// The channels that are bound.
    pub channels: Vec<(ChannelNumber, SocketAddr)>,
    /// The relay connections that carry bytes (the seed's `connections`).
    pub connections: Vec<(ConnectionId, SocketAddr)>,
    /// What was carried and dropped since the client was first started, restarts included.
    pub counters: TurnCounters,
}

/// What a TURN client's actor is made from; the sockets are the same in each of its lives.
#[derive(Debug)]
pub(crate) struct TurnSeed {
    pub(crate) config: TurnConfig,
    pub(crate) sockets: Arc<Sockets>,
    /// Whose part it is: that of a slot of its own, or a session's. Its `part` is `Part::Turn` in both cases.
    pub(crate) who: Mortal,
    pub(crate) stats_interval: Duration,
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) reporter: Reporter,
    pub(crate) token: CancellationToken,
}

/// What the client is doing.
#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    /// Failed; the supervisor will say when to try again.
    Backoff {
        until: SystemTime,
        due: Instant,
    },
    /// The server is being resolved and connected to.
    Opening(SpawnHandle),
    Running(Box<Running>),
}

/// An allocation, or the attempt to get one, that has ended and is not reported yet: when it is tried again the
/// supervisor will say.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) error: TurnError,
    pub(crate) relayed: Option<SocketAddr>,
}

/// Where an answer goes.
type Waiter<T> = oneshot::Sender<Result<T, TurnError>>;

/// Those who wait for an answer.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) allocate: Vec<Waiter<()>>,
    /// For the next success, over any number of failures.
    pub(crate) ready: Vec<oneshot::Sender<()>>,
    pub(crate) deallocate: Vec<oneshot::Sender<()>>,
    /// With the addresses that are still to be permitted.
    pub(crate) permit: Vec<(BTreeSet<IpAddr>, Waiter<()>)>,
    pub(crate) bind: HashMap<SocketAddr, Vec<Waiter<ChannelNumber>>>,
    pub(crate) connect: HashMap<connections::Key, Waiter<RelayStream>>,
}

/// A client of one TURN server. Started by [`StartTurn`](crate::supervisor::StartTurn), or by a session that
/// goes through the server.
#[derive(Debug)]
pub struct TurnClientActor {
    pub(crate) config: TurnConfig,
    pub(crate) options: TcpOptions,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) reporter: Reporter,
    pub(crate) who: Mortal,
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) phase: Phase,
    /// Counts attempts, so that late news of an earlier one is told apart.
    pub(crate) round: u64,
    /// Connections are numbered from here.
    pub(crate) next_key: u64,
    pub(crate) ended: Option<Ended>,
    pub(crate) last_relayed: Option<SocketAddr>,
    pub(crate) waiting: Waiting,
    pub(crate) gate: SetGate,
    pub(crate) refused_attempts: OncePerSecond,
    pub(crate) forwards: Forwards,
    /// Bound connections that somebody owns.
    pub(crate) streams: HashMap<connections::Key, (ConnectionId, SocketAddr)>,
    pub(crate) icmp: OncePerSecond,
    /// Wakes the future that drives the core.
    pub(crate) drive: Option<Waker>,
    pub(crate) stopping: bool,
    pub(crate) obituary: Obituary,
    reported: TurnState,
    /// Cancelled when the supervisor is gone, however it went.
    supervised: CancellationToken,
    stats_interval: Duration,
}

impl TurnClientActor {
    pub(crate) fn new(seed: TurnSeed) -> Self {
        let TurnSeed { config, sockets, who, stats_interval, supervisor, reporter, token } = seed;
        // A session's clients follow each other: late news of one must not be taken for its successor's.
        let first_round = who.round << 32;
        let mut forwards = Forwards::new(&config, &sockets.totals);
        let gate = {
            let mut wishes = sockets.wishes();
            forwards.deliver_to(wishes.datagrams.clone());
            // In the first life only: what was forbidden since stays so.
            if wishes.allocation.is_none() {
                wishes.allocation = Some(config.allocate);
                wishes.permissions.extend(config.permit.iter().copied());
                wishes.channels.extend(config.udp_forward.iter().map(|forward| forward.peer));
            }
            wishes.gate.clone()
        };
        Self {
            options: TcpOptions::from(&config),
            forwards,
            config,
            sockets,
            reporter,
            obituary: Obituary::new(who.clone(), supervisor.clone()),
            who,
            supervisor,
            phase: Phase::Idle,
            round: first_round,
            next_key: 0,
            ended: None,
            last_relayed: None,
            waiting: Waiting::default(),
            gate: gate.unwrap_or(SetGate { gate: None, streams: None }),
            refused_attempts: OncePerSecond::default(),
            streams: HashMap::new(),
            icmp: OncePerSecond::default(),
            drive: None,
            stopping: false,
            reported: TurnState::Idle,
            supervised: token,
            stats_interval,
        }
    }

    pub(crate) fn report(&self, event: TurnEvent) {
        self.reporter.report(EventKind::Turn(event));
    }

    /// Whether there is to be an allocation.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.stopping && self.sockets.wishes().allocation == Some(true)
    }

    pub(crate) fn state(&self) -> TurnState {
        match &self.phase {
            Phase::Idle => TurnState::Idle,
            Phase::Backoff { until, .. } => TurnState::Backoff { until: *until },
            Phase::Opening(_) => TurnState::Connecting,
            Phase::Running(running) => running.state(),
        }
    }

    /// To be called after anything that may have changed it.
    pub(crate) fn state_may_have_changed(&mut self) {
        let state = self.state();
        if state != self.reported {
            self.reported = state;
            self.report(TurnEvent::TurnStateChanged { state });
        }
    }

    /// The obituary of the attempt, or the allocation, that has just ended.
    pub(crate) fn allocation_obituary(&self) -> Obituary {
        let again = self.config.again && self.is_wanted();
        let who = Mortal { part: Part::Allocation, round: self.round, again, ..self.who.clone() };
        Obituary::new(who, self.supervisor.clone())
    }

    pub(crate) fn no_allocation(&self) -> TurnError {
        let is_at_it = match self.phase {
            // When the next attempt is the supervisor has not said yet.
            Phase::Idle => self.ended.is_some() && self.config.again,
            _ => true,
        };
        TurnError::NoAllocation { retrying: self.is_wanted() && is_at_it }
    }

    pub(crate) fn info(&self) -> AllocationInfo {
        let now = now();
        let running = match &self.phase {
            Phase::Running(running) => Some(&running.core),
            _ => None,
        };
        let granted = running.and_then(|core| core.granted());
        let channels = running.map(|core| core.channels().all_bound(now)).unwrap_or_default();
        let connections = running.map(|core| core.connections().all_bound()).unwrap_or_default();
        AllocationInfo {
            server: self.config.server.uri.clone(),
            state: self.state(),
            relayed: granted.map(|granted| granted.relayed),
            mapped: granted.map(|granted| granted.mapped),
            local_udp: self.forwards.local_udp(),
            local_tcp: self.sockets.local_tcp(),
            permissions: running.map(|core| core.permissions().all_granted(now)).unwrap_or_default(),
            channels: channels.into_iter().map(|(number, peer)| (ChannelNumber(number), peer)).collect(),
            connections: connections.into_iter().map(|(id, peer)| (ConnectionId(id), peer)).collect(),
            counters: self.counters(),
        }
    }

    fn counters(&self) -> TurnCounters {
        self.forwards.expire(now());
        self.sockets.totals.snapshot().into()
    }

    fn report_stats(&mut self, ctx: &mut Context<Self>) {
        self.report(TurnEvent::TurnStats { counters: self.counters() });
        // Not `run_interval`: it would make up for missed ticks in a burst.
        ctx.run_later(self.stats_interval, Self::report_stats);
    }
}

impl Actor for TurnClientActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Err(ending) = self.open_forwards(ctx) {
            self.obituary.end(ending);
            ctx.stop();
            return;
        }
        self.report(TurnEvent::TurnStarted {
            server: self.config.server.uri.clone(),
            local_udp: self.forwards.local_udp(),
            local_tcp: self.sockets.local_tcp(),
        });
        ctx.spawn(Drive);
        if !self.stats_interval.is_zero() {
            ctx.run_later(self.stats_interval, Self::report_stats);
        }
        let token = self.supervised.clone();
        let gone = async move { token.cancelled().await }.into_actor(self);
        // Nobody is left to say that the allocation has been deleted: no waiting for it.
        ctx.spawn(gone.map(|(), _, ctx| ctx.stop()));
        self.allocate_if_wanted(ctx);
    }
}

/// However the client ends, by a panic too, its other actors end with it.
impl Drop for TurnClientActor {
    fn drop(&mut self) {
        self.forwards.close();
    }
}

impl Handler<Stop> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.stopping = true;
        // Nobody will tell an actor that is gone.
        self.allocation_ended(None, ctx);
        self.deallocate(ctx);
        self.stop_if_done(ctx);
    }
}

impl TurnClientActor {
    /// Ends the actor once the server has forgotten the allocation, as far as can be waited for.
    pub(crate) fn stop_if_done(&mut self, ctx: &mut Context<Self>) {
        if self.stopping && !matches!(self.phase, Phase::Running(_)) {
            self.obituary.end(Ending::new(Cause::Told, "stopped"));
            ctx.stop();
        }
    }
}

impl Handler<PartEnded> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: PartEnded, ctx: &mut Self::Context) {
        // Of a forward's endpoint the supervisor will say when it is to be started again.
        if message.part == Part::Allocation && message.round == self.round {
            self.allocation_ended(message.again_in, ctx);
        }
    }
}

impl Handler<RestartPart> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: RestartPart, ctx: &mut Self::Context) {
        match message.part {
            Part::Allocation => self.retry(ctx),
            Part::Endpoint(Some(forward)) => self.restart_forward(forward),
            _ => {}
        }
    }
}
