//! `SupervisorActor`: starts sessions, TURN clients and relays, restarts whatever ended, fans events out.
//!
//! It is the one owner of restarts. Children tell it how they ended (`link.rs`); `supervisor/restart.rs` says
//! when they come again; at that time the child is told to start its part afresh. What it keeps for each child
//! is in `slots.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use actix::prelude::*;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{ChildId, ConfigError, RelayConfig, SessionConfig, SupervisorConfig, TurnConfig};
use crate::event::{Event, EventKind};
use crate::link::ChildEnded;
use crate::relay::TcpRelayActor;
use crate::session::{GetSession, RelaySessionActor, SessionInfo};
use crate::slots::Slot;
use crate::sockopt::SocketError;
use crate::subscribers::{Filter, Subscribers};
use crate::turn::TurnClientActor;
use crate::workers::Workers;

pub use crate::renew::{ReadCertificates, SetAccounts, SetAccountsError};

pub(crate) mod restart;

/// A child told to stop has this long to send what it holds and to close.
const STOP_TIMEOUT: Duration = Duration::from_millis(1200);
/// Messages and events that may wait for the supervisor before events are lost (and counted).
const MAILBOX_CAPACITY: usize = 4096;

/// Starts a session. Its sockets are bound when the answer comes; the connection is made thereafter. The
/// address is good until the session's actor panics; [`InSession`] reaches the actor that replaced it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Addr<RelaySessionActor>, StartError>")]
pub struct StartSession {
    /// Its name must not be in use below this supervisor.
    pub config: SessionConfig,
}

/// Starts a TURN client. The sockets for its local applications are bound when the answer comes; the allocation
/// is made thereafter. The address is good until the client's actor panics; [`InTurn`] reaches the actor that
/// replaced it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Addr<TurnClientActor>, StartError>")]
pub struct StartTurn {
    /// Its name must not be in use below this supervisor, nor be that of a session.
    pub config: TurnConfig,
}

/// Starts a TCP relay. It listens when the answer comes. The address is good until the relay's actor panics;
/// [`InRelay`] reaches the actor that replaced it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Addr<TcpRelayActor>, StartError>")]
pub struct StartRelay {
    /// Its name must not be in use below this supervisor.
    pub config: RelayConfig,
}

/// Why a session, a TURN client or a relay could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is a session, a TURN client or a relay of this name.
    #[error("the name '{0}' is taken already")]
    NameTaken(ChildId),
    /// A socket could not be had: the port is in use, the address is not this machine's, …
    #[error("session '{session}': {source}")]
    Socket {
        /// The session's name.
        session: ChildId,
        /// Which address, which step, what the system said.
        source: SocketError,
    },
    /// The same for a TURN client.
    #[error("TURN client '{turn}': {source}")]
    TurnSocket {
        /// The client's name.
        turn: ChildId,
        /// Which address, which step, what the system said.
        source: SocketError,
    },
    /// The same for a relay.
    #[error("relay '{relay}': {source}")]
    RelaySocket {
        /// The relay's name.
        relay: ChildId,
        /// Which address, which step, what the system said.
        source: SocketError,
    },
    /// A realm, a user name or a password that no relay can have (RFC 8265).
    #[error("relay '{relay}': {why}")]
    RelayUsers {
        /// The relay's name.
        relay: ChildId,
        /// Which of them, and what is wrong. No password is repeated.
        why: String,
    },
    /// No thread could be started for it.
    #[error("starting a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The supervisor has been shut down.
    #[error("the supervisor is shut down")]
    ShutDown,
}

/// There is no such session, TURN client or relay, or it is between two lives, or the name is that of another kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such child '{0}' is running")]
pub struct NoSession(pub ChildId);

/// Ends a session, a TURN client or a relay: what it holds is sent (for at most 0.5 s), its connections are closed, its
/// allocation is deleted, a relay's sides are told to come back; its ports are free when the answer comes.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), NoSession>")]
pub struct StopSession {
    /// The name of the one that is meant.
    pub session: ChildId,
}

/// A message for a session's actor, whichever life it is in: [`GetSession`],
/// [`Connect`](crate::session::Connect), [`Listen`](crate::session::Listen) or
/// [`Disconnect`](crate::session::Disconnect).
#[derive(Clone, Debug)]
pub struct InSession<M> {
    /// The session's name.
    pub session: ChildId,
    /// What it is told or asked.
    pub message: M,
}

impl<M: Message + 'static> Message for InSession<M>
where
    M::Result: 'static,
{
    type Result = Result<M::Result, NoSession>;
}

/// A message for a TURN client's actor, whichever life it is in.
#[derive(Clone, Debug)]
pub struct InTurn<M> {
    /// The client's name.
    pub turn: ChildId,
    /// What it is told or asked.
    pub message: M,
}

impl<M: Message + 'static> Message for InTurn<M>
where
    M::Result: 'static,
{
    type Result = Result<M::Result, NoSession>;
}

/// A message for a relay's actor, whichever life it is in: [`GetRelay`](crate::relay::GetRelay) or
/// [`GetPairs`](crate::relay::GetPairs).
#[derive(Clone, Debug)]
pub struct InRelay<M> {
    /// The relay's name.
    pub relay: ChildId,
    /// What it is asked.
    pub message: M,
}

impl<M: Message + 'static> Message for InRelay<M>
where
    M::Result: 'static,
{
    type Result = Result<M::Result, NoSession>;
}

/// Asks all sessions how they are; one that does not answer within a second is left out.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<SessionInfo>")]
pub struct GetSessions;

/// Every event that the filter lets through is sent to the recipient. It is held weakly; at most
/// [`SUBSCRIBER_QUEUE`](crate::subscribers::SUBSCRIBER_QUEUE) events wait for it, and it is told how many it
/// missed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Subscribe {
    /// Who gets the events.
    pub recipient: Recipient<Event>,
    /// Which of them.
    pub filter: Filter,
}

/// No more events to this recipient.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Unsubscribe {
    /// As it was given to [`Subscribe`].
    pub recipient: Recipient<Event>,
}

/// Stops all sessions, TURN clients and relays in order, then their threads, then the supervisor; takes at most 2 s. When
/// the answer comes, the subscribers have had their last events. A thread that hangs in the system's resolver is
/// left behind; the end of the actix system may still wait for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Tells the supervisor what happened in a child. Never waits: what the supervisor's mailbox does not take
/// is counted, and the count is told.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    child: ChildId,
    to: Recipient<Event>,
    missed: Arc<AtomicU64>,
}

impl Reporter {
    pub(crate) fn new(child: ChildId, to: Recipient<Event>) -> Self {
        Self { child, to, missed: Arc::new(AtomicU64::new(0)) }
    }

    pub(crate) fn report(&self, kind: EventKind) {
        let count = self.missed.swap(0, Relaxed);
        let missed = EventKind::Missed { count };
        if count > 0 && self.to.try_send(Event::now(self.child.clone(), missed)).is_err() {
            self.missed.fetch_add(count, Relaxed);
        }
        if self.to.try_send(Event::now(self.child.clone(), kind)).is_err() {
            self.missed.fetch_add(1, Relaxed);
        }
    }
}

/// Supervises any number of sessions, TURN clients and relays. Lives until [`Shutdown`]; when it is gone, so are they.
#[derive(Debug)]
pub struct SupervisorActor {
    pub(crate) config: SupervisorConfig,
    pub(crate) slots: HashMap<ChildId, Slot>,
    pub(crate) subscribers: Subscribers,
    pub(crate) workers: Workers,
    pub(crate) lives: u64,
    pub(crate) shut_down: bool,
    /// Cancelled when the supervisor is gone, however it went.
    pub(crate) token: CancellationToken,
    _guard: DropGuard,
}

impl SupervisorActor {
    /// Not running yet: call `start()` of [`actix::Actor`].
    pub fn new(config: SupervisorConfig) -> Self {
        let token = CancellationToken::new();
        Self {
            workers: Workers::new(config.workers),
            config,
            slots: HashMap::new(),
            subscribers: Subscribers::default(),
            lives: 0,
            shut_down: false,
            _guard: token.clone().drop_guard(),
            token,
        }
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<StartSession> for SupervisorActor {
    type Result = Result<Addr<RelaySessionActor>, StartError>;

    fn handle(&mut self, message: StartSession, ctx: &mut Self::Context) -> Self::Result {
        self.start_session(message.config, ctx)
    }
}

impl Handler<StartTurn> for SupervisorActor {
    type Result = Result<Addr<TurnClientActor>, StartError>;

    fn handle(&mut self, message: StartTurn, ctx: &mut Self::Context) -> Self::Result {
        self.start_turn(message.config, ctx)
    }
}

impl Handler<StartRelay> for SupervisorActor {
    type Result = Result<Addr<TcpRelayActor>, StartError>;

    fn handle(&mut self, message: StartRelay, ctx: &mut Self::Context) -> Self::Result {
        self.start_relay(message.config, ctx)
    }
}

impl Handler<StopSession> for SupervisorActor {
    type Result = ResponseFuture<Result<(), NoSession>>;

    fn handle(&mut self, message: StopSession, _: &mut Self::Context) -> Self::Result {
        let stopped = self.stop_child(&message.session);
        Box::pin(async move {
            // A child that does not end in time is left to its own end; its name stays taken until then.
            let _ = tokio::time::timeout(STOP_TIMEOUT, stopped?).await;
            Ok(())
        })
    }
}

impl<M> Handler<InSession<M>> for SupervisorActor
where
    M: Message + Send + 'static,
    M::Result: Send,
    RelaySessionActor: Handler<M>,
{
    type Result = ResponseFuture<Result<M::Result, NoSession>>;

    fn handle(&mut self, message: InSession<M>, _: &mut Self::Context) -> Self::Result {
        let InSession { session, message } = message;
        let addr = self.slots.get(&session).and_then(Slot::session).cloned();
        Box::pin(async move {
            let addr = addr.ok_or_else(|| NoSession(session.clone()))?;
            addr.send(message).await.map_err(|_| NoSession(session))
        })
    }
}

impl<M> Handler<InTurn<M>> for SupervisorActor
where
    M: Message + Send + 'static,
    M::Result: Send,
    TurnClientActor: Handler<M>,
{
    type Result = ResponseFuture<Result<M::Result, NoSession>>;

    fn handle(&mut self, message: InTurn<M>, _: &mut Self::Context) -> Self::Result {
        let InTurn { turn, message } = message;
        let addr = self.slots.get(&turn).and_then(Slot::turn).cloned();
        Box::pin(async move {
            let addr = addr.ok_or_else(|| NoSession(turn.clone()))?;
            addr.send(message).await.map_err(|_| NoSession(turn))
        })
    }
}

impl<M> Handler<InRelay<M>> for SupervisorActor
where
    M: Message + Send + 'static,
    M::Result: Send,
    TcpRelayActor: Handler<M>,
{
    type Result = ResponseFuture<Result<M::Result, NoSession>>;

    fn handle(&mut self, message: InRelay<M>, _: &mut Self::Context) -> Self::Result {
        let InRelay { relay, message } = message;
        let addr = self.slots.get(&relay).and_then(Slot::relay).cloned();
        Box::pin(async move {
            let addr = addr.ok_or_else(|| NoSession(relay.clone()))?;
            addr.send(message).await.map_err(|_| NoSession(relay))
        })
    }
}

impl Handler<GetSessions> for SupervisorActor {
    type Result = ResponseFuture<Vec<SessionInfo>>;

    fn handle(&mut self, _: GetSessions, _: &mut Self::Context) -> Self::Result {
        // All are asked now, so one wait is enough for all.
        let asked: Vec<_> = self.slots.values().filter_map(Slot::session).cloned().collect();
        Box::pin(async move {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
            let answers: Vec<_> = asked.iter().map(|addr| actix_rt::spawn(addr.send(GetSession))).collect();
            let mut infos = Vec::new();
            for answer in answers {
                if let Ok(Ok(Ok(info))) = tokio::time::timeout_at(deadline, answer).await {
                    infos.push(info);
                }
            }
            infos.sort_by(|a, b| a.name.cmp(&b.name));
            infos
        })
    }
}

impl Handler<Subscribe> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, message: Subscribe, _: &mut Self::Context) {
        self.subscribers.add(&message.recipient, message.filter);
    }
}

impl Handler<Unsubscribe> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, message: Unsubscribe, _: &mut Self::Context) {
        self.subscribers.remove(&message.recipient);
    }
}

impl Handler<Shutdown> for SupervisorActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.shut_down = true;
        let names: Vec<_> = self.slots.keys().cloned().collect();
        let stopped: Vec<_> = names.iter().filter_map(|name| self.stop_child(name).ok()).collect();
        let all = async move {
            let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
            for child in stopped {
                let _ = tokio::time::timeout_at(deadline, child).await;
            }
        };
        Box::pin(
            all.into_actor(self)
                .then(|(), act, _| std::mem::take(&mut act.workers).join().into_actor(act))
                .then(|(), act, _| std::mem::take(&mut act.subscribers).flush().into_actor(act))
                .map(|(), _, ctx| ctx.stop()),
        )
    }
}

impl Handler<Event> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        self.subscribers.publish(&event);
    }
}

impl Handler<ChildEnded> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, message: ChildEnded, ctx: &mut Self::Context) {
        self.child_ended(message.who, message.ending, ctx);
    }
}
