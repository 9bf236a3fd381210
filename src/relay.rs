//! `TcpRelayActor`: the TCP relay. Two sides that can only call out call it, and it joins them.
//!
//! The actor accepts, and keeps the directory: who waits for whom. Each connection is served by a future of its own on
//! one of the supervisor's threads (`relay_conn.rs`), which pushes datagrams straight into its peer's queue: none pass
//! this actor. Connections ask it by messages, and get its orders over their desk (`relay_desk.rs`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use actix_rt::ArbiterHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::{OncePerSecond, now};
use crate::config::RelayConfig;
use crate::counters::{Counters, RelayCounters};
use crate::event::{Cause, EventKind, JoinRefusal, LeaveCause, RelayEvent};
use crate::link::{Ending, Mortal, Obituary};
use crate::listen::Listener;
use crate::relay_accept::{Accept, Guest, Member};
use crate::relay_arrival::{ConnectionEnded, HandshakeFailed};
use crate::relay_conn::{JoinWanted, Rejected, SideLeaves, cause_of};
use crate::relay_desk::{Desk, Meeting, SharedRate, Told, Way};
use crate::relay_proxied::Proxied;
use crate::session::{PartEnded, RestartPart, Stop};
use crate::sockets::Sockets;
use crate::supervisor::{Reporter, SupervisorActor};
use connection::Shared;
use directory::{ConnectionKey, Directory, Joined, Limits, Met, Order, Refused};
pub use info::{PairInfo, PairLabel, RelayInfo, SideInfo};
use load::Load;
use lobby::Lobby;
use messages::PairId;
use rate::Rate;

pub(crate) mod accounts;
pub(crate) mod attributes;
pub(crate) mod channels;
mod checks;
pub(crate) mod connection;
pub(crate) mod directory;
mod info;
pub(crate) mod load;
pub(crate) mod lobby;
pub(crate) mod messages;
pub(crate) mod nonce;
pub(crate) mod pace;
pub(crate) mod proxy;
pub(crate) mod rate;
pub(crate) mod runs;
pub(crate) mod side;

/// Sides that are told to come back do so within this time, each at a moment of its own.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Asks a relay how it is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "RelayInfo")]
pub struct GetRelay;

/// Asks a relay for its pairs, in the order of their labels.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<PairInfo>")]
pub struct GetPairs {
    /// At most so many.
    pub max: usize,
}

/// What a relay's actor is made from; sockets and threads are the same in each of its lives.
#[derive(Debug)]
pub(crate) struct RelaySeed {
    pub(crate) config: Arc<RelayConfig>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) arbiters: Vec<ArbiterHandle>,
    pub(crate) who: Mortal,
    pub(crate) stats_interval: Duration,
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) reporter: Reporter,
    pub(crate) token: CancellationToken,
}

/// The TCP relay. Started by [`StartRelay`](crate::supervisor::StartRelay).
#[derive(Debug)]
pub struct TcpRelayActor {
    pub(crate) config: Arc<RelayConfig>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) reporter: Reporter,
    pub(crate) listeners: Vec<Listener>,
    /// Not yet in the lobby: it is not yet known whose they are.
    pub(crate) proxied: Proxied,
    pub(crate) lobby: Lobby,
    /// All connections, those included that have not joined or are being closed.
    pub(crate) guests: HashMap<ConnectionKey, Guest>,
    pub(crate) next_key: u64,
    /// Connections are spread over them.
    pub(crate) arbiters: Vec<ArbiterHandle>,
    pub(crate) load: Load,
    directory: Directory,
    /// What connections that are gone have carried, of pairs that are still here.
    past: HashMap<PairId, Counters>,
    /// Where the rate is limited: of the pairs that are here.
    rates: HashMap<PairId, SharedRate>,
    refusals: OncePerSecond,
    stopping: bool,
    obituary: Obituary,
    /// Cancelled when the supervisor is gone, however it went.
    supervised: CancellationToken,
    stats_interval: Duration,
}

impl TcpRelayActor {
    pub(crate) fn new(seed: RelaySeed) -> Self {
        let RelaySeed { config, shared, sockets, arbiters, who, .. } = seed;
        let RelaySeed { stats_interval, supervisor, reporter, token, .. } = seed;
        let limits = Limits {
            sessions_per_user: config.max_sessions_per_user,
            pairs: config.max_pairs,
            pairs_across_users: config.pairs_across_users,
        };
        Self {
            shared,
            lobby: Lobby::new(config.max_unjoined, config.max_unjoined_per_address),
            config,
            sockets,
            reporter,
            listeners: Vec::new(),
            proxied: Proxied::default(),
            guests: HashMap::new(),
            // Nonces of an earlier life, whose key is the same, are not for connections of this one.
            next_key: who.life << 40,
            load: Load::new(arbiters.len()),
            arbiters,
            directory: Directory::new(limits),
            past: HashMap::new(),
            rates: HashMap::new(),
            refusals: OncePerSecond::default(),
            stopping: false,
            obituary: Obituary::new(who, supervisor),
            supervised: token,
            stats_interval,
        }
    }

    pub(crate) fn report(&self, event: RelayEvent) {
        self.reporter.report(EventKind::Relay(event));
    }

    /// Counts a connection that is refused; tells of one a second.
    pub(crate) fn refuse(&mut self, peer: SocketAddr, reason: JoinRefusal) {
        if let Some(more) = self.refusals.pass(now()) {
            self.report(RelayEvent::JoinRefused { peer, reason, more });
        }
    }

    fn open(&mut self) -> Result<(), Ending> {
        let failed = |error: std::io::Error| Ending::new(Cause::Broken, format!("listening: {error}"));
        let listeners = self.sockets.listeners().map_err(failed)?;
        let listeners: Result<_, _> = listeners.into_iter().map(Listener::new).collect();
        self.listeners = listeners.map_err(failed)?;
        self.report(RelayEvent::RelayStarted { local_tcp: self.sockets.local_tcp() });
        if let Some(acceptor) = self.sockets.acceptor() {
            self.reporter.report(acceptor.shown());
        }
        Ok(())
    }

    fn join(&mut self, message: JoinWanted) {
        let JoinWanted { key, who } = message;
        // One that is out, or is being told that the relay stops, needs no answer.
        let Some(guest) = self.guests.get(&key).filter(|guest| !guest.is_out && !self.stopping) else {
            return;
        };
        let (desk, pair) = (guest.desk.clone(), who.pair.clone());
        let member = Member {
            pair: PairLabel::of(who.pair.as_bytes()),
            side: who.side.as_str().to_owned(),
            user: who.user.clone(),
        };
        match self.directory.join(key, who) {
            Err(refused) => {
                let retry_after = (refused == Refused::Full).then(spread_retry);
                desk.tell(Told::Refused(refused, retry_after));
                self.refuse(desk.peer, refused.into());
            }
            Ok(Joined { met, orders }) => {
                self.lobby.leave(key);
                // Its queue is open before its peer knows the way to it.
                let paired = met.is_some();
                if let Some(met) = &met {
                    self.move_to(key, met.peer);
                }
                let meeting = met.and_then(|met| self.meeting(&desk, met));
                for (to, order) in orders {
                    if let (Order::Superseded(_), Some(old)) = (&order, self.guests.get(&to)) {
                        old.desk.flow.part();
                        *self.past.entry(pair.clone()).or_default() += old.desk.counters.snapshot();
                    }
                    self.order(to, order);
                }
                let event = RelayEvent::SideJoined {
                    pair: member.pair,
                    side: member.side.clone(),
                    user: member.user.to_string(),
                    peer: desk.peer,
                    paired,
                };
                let rate = self.rate_of(pair);
                desk.tell(Told::Joined(meeting, rate));
                if let Some(guest) = self.guests.get_mut(&key) {
                    guest.member = Some(member);
                }
                self.report(event);
            }
        }
    }

    /// Sends a connection to its peer's thread.
    fn move_to(&mut self, key: ConnectionKey, peer: ConnectionKey) {
        let Some(thread) = self.guests.get(&peer).map(|peer| peer.thread) else { return };
        if let (Some(to), Some(guest)) = (self.arbiters.get(thread), self.guests.get_mut(&key))
            && guest.thread != thread
        {
            self.load.moves(guest.thread, thread);
            guest.thread = thread;
            guest.desk.tell(Told::Move(to.clone()));
        }
    }

    fn rate_of(&mut self, pair: PairId) -> Option<SharedRate> {
        let limit = self.config.max_rate?;
        let rate = self.rates.entry(pair).or_insert_with(|| Arc::new(Mutex::new(Rate::new(now(), limit))));
        Some(rate.clone())
    }

    fn order(&mut self, to: ConnectionKey, order: Order) {
        let Some(desk) = self.guests.get(&to).map(|guest| guest.desk.clone()) else { return };
        match order {
            Order::Superseded(instance) => {
                desk.tell(Told::Superseded(instance));
                self.left(to, LeaveCause::Superseded, false);
            }
            Order::PeerGone => {
                desk.flow.part();
                desk.tell(Told::PeerGone);
            }
            Order::PeerPresent(met) => {
                if let Some(meeting) = self.meeting(&desk, met) {
                    desk.tell(Told::PeerPresent(meeting));
                }
            }
        }
    }

    /// Opens a side's queue for what its peer sends from now on, and gives the way in the other direction.
    fn meeting(&self, desk: &Desk, met: Met) -> Option<Meeting> {
        let Met { pairing, peer, side, user } = met;
        let to = self.guests.get(&peer)?.desk.clone();
        desk.flow.meet(pairing);
        Some(Meeting { way: Way { pairing, to }, side, user })
    }

    /// The connection is no side any more; its peer waits again.
    fn leave(&mut self, key: ConnectionKey, cause: LeaveCause) {
        let pair = self.directory.pair_of(key).cloned();
        let peer = self.directory.leave(key);
        if let Some(guest) = self.guests.get(&key) {
            guest.desk.flow.part();
        }
        if let Some(pair) = pair {
            match (peer, self.guests.get(&key)) {
                (Some(_), Some(guest)) => {
                    *self.past.entry(pair).or_default() += guest.desk.counters.snapshot();
                }
                _ => {
                    self.past.remove(&pair);
                    self.rates.remove(&pair);
                }
            }
        }
        if let Some(peer) = peer {
            self.order(peer, Order::PeerGone);
        }
        self.left(key, cause, peer.is_some());
    }

    fn left(&mut self, key: ConnectionKey, cause: LeaveCause, parked: bool) {
        let Some(guest) = self.guests.get_mut(&key) else { return };
        let Some(Member { pair, side, user }) = guest.member.take() else { return };
        let (user, peer) = (user.to_string(), guest.desk.peer);
        self.report(RelayEvent::SideLeft { pair, side, user, peer, cause, parked });
    }

    fn info(&self) -> RelayInfo {
        RelayInfo {
            name: self.config.name.clone(),
            local_tcp: self.sockets.local_tcp(),
            unjoined: self.lobby.len() + self.proxied.len(),
            sides: self.directory.sides(),
            pairs: self.directory.pairs(),
            counters: self.sockets.totals.snapshot().into(),
        }
    }

    fn pairs(&self, max: usize) -> Vec<PairInfo> {
        let mut pairs: HashMap<&PairId, (PairInfo, Counters)> = HashMap::new();
        for (key, guest) in &self.guests {
            let (Some(pair), Some(member)) = (self.directory.pair_of(*key), &guest.member) else { continue };
            let (info, counters) = pairs.entry(pair).or_insert_with(|| {
                let counters = self.past.get(pair).copied().unwrap_or_default();
                let (sides, none) = (Vec::new(), RelayCounters::default());
                (PairInfo { pair: member.pair, sides, counters: none }, counters)
            });
            let (side, user) = (member.side.clone(), member.user.to_string());
            info.sides.push(SideInfo { side, user, peer: guest.desk.peer });
            *counters += guest.desk.counters.snapshot();
        }
        let with_sums =
            |(info, counters): (PairInfo, Counters)| PairInfo { counters: counters.into(), ..info };
        let mut pairs: Vec<_> = pairs.into_values().map(with_sums).collect();
        pairs.sort_by_key(|info| info.pair);
        pairs.truncate(max);
        pairs.iter_mut().for_each(|info| info.sides.sort_by(|a, b| a.side.cmp(&b.side)));
        pairs
    }

    #[cfg(feature = "test-panic")]
    pub(crate) fn guests_named(&self, side: &str) -> impl Iterator<Item = &Guest> {
        let is_it = move |guest: &&Guest| guest.member.as_ref().is_some_and(|member| member.side == side);
        self.guests.values().filter(is_it)
    }

    fn report_stats(&mut self, ctx: &mut Context<Self>) {
        let RelayInfo { unjoined, sides, pairs, counters, .. } = self.info();
        self.report(RelayEvent::RelayStats { unjoined, sides, pairs, counters });
        // Not `run_interval`: it would make up for missed ticks in a burst.
        ctx.run_later(self.stats_interval, Self::report_stats);
    }

    /// Ends the actor once all connections have.
    fn stop_if_done(&mut self, ctx: &mut Context<Self>) {
        if self.stopping && self.guests.is_empty() {
            self.obituary.end(Ending::new(Cause::Told, "stopped"));
            ctx.stop();
        }
    }
}

/// When somebody is to come back, so that not all do at once.
fn spread_retry() -> Duration {
    RETRY_MIN + (RETRY_MAX - RETRY_MIN).mul_f64(fastrand::f64())
}

impl From<Refused> for JoinRefusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotYours => Self::NotYours,
            Refused::TwoOthers => Self::TwoOthers,
            Refused::SessionsUsedUp => Self::SessionsUsedUp,
            Refused::Full => Self::Full,
        }
    }
}

impl Actor for TcpRelayActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Err(ending) = self.open() {
            self.obituary.end(ending);
            ctx.stop();
            return;
        }
        ctx.spawn(Accept);
        if !self.stats_interval.is_zero() {
            ctx.run_later(self.stats_interval, Self::report_stats);
        }
        let token = self.supervised.clone();
        let gone = async move { token.cancelled().await }.into_actor(self);
        ctx.spawn(gone.map(|(), _, ctx| ctx.stop()));
    }
}

/// However the relay ends, by a panic too, its connections end with it.
impl Drop for TcpRelayActor {
    fn drop(&mut self) {
        self.guests.values().for_each(|guest| guest.desk.tell(Told::Abandoned));
    }
}

impl Handler<Stop> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        if !self.stopping {
            self.stopping = true;
            self.listeners.clear();
            self.proxied.clear();
            self.report(RelayEvent::RelayDraining { sides: self.directory.sides(), within: RETRY_MAX });
            self.guests.values().for_each(|guest| guest.desk.tell(Told::Restarting(spread_retry())));
        }
        self.stop_if_done(ctx);
    }
}

impl Handler<JoinWanted> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, message: JoinWanted, _: &mut Self::Context) {
        self.join(message);
    }
}

impl Handler<HandshakeFailed> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, message: HandshakeFailed, _: &mut Self::Context) {
        let HandshakeFailed { peer, error } = message;
        if let Some(more) = self.refusals.pass(now()) {
            let error = error.to_string();
            self.reporter.report(EventKind::HandshakeFailed { peer, error, more });
        }
    }
}

impl Handler<Rejected> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, message: Rejected, _: &mut Self::Context) {
        self.refuse(message.peer, JoinRefusal::Unauthenticated);
    }
}

impl Handler<SideLeaves> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, message: SideLeaves, _: &mut Self::Context) {
        let SideLeaves { key, ending } = message;
        // One that has not joined stays in the lobby until it is gone: it costs a descriptor for as long.
        self.leave(key, cause_of(ending));
    }
}

impl Handler<ConnectionEnded> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, message: ConnectionEnded, ctx: &mut Self::Context) {
        let ConnectionEnded { key, cause } = message;
        if cause == LeaveCause::Panicked {
            self.reporter.report(EventKind::ActorPanicked { actor: format!("relay connection {}", key.0) });
        }
        self.lobby.leave(key);
        if let Some(guest) = self.guests.get(&key) {
            // What it holds still, the connection has not written to its end.
            guest.desk.flow.close();
        }
        self.leave(key, cause);
        if let Some(guest) = self.guests.remove(&key) {
            self.load.leaves(guest.thread);
        }
        self.stop_if_done(ctx);
    }
}

impl Handler<GetRelay> for TcpRelayActor {
    type Result = MessageResult<GetRelay>;

    fn handle(&mut self, _: GetRelay, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.info())
    }
}

impl Handler<GetPairs> for TcpRelayActor {
    type Result = MessageResult<GetPairs>;

    fn handle(&mut self, message: GetPairs, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.pairs(message.max))
    }
}

/// A relay has no parts that are restarted by themselves: connections are their sides' to make anew.
impl Handler<PartEnded> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, _: PartEnded, _: &mut Self::Context) {}
}

impl Handler<RestartPart> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, _: RestartPart, _: &mut Self::Context) {}
}
