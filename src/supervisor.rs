//! `SupervisorActor`: starts sessions, restarts whatever ended, fans events out.
//!
//! It is the one owner of restarts. Children tell it how they ended (`link.rs`); `supervisor/restart.rs` says
//! when they come again; at that time the session is told to start its part afresh.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use actix::prelude::*;
use actix_rt::ArbiterHandle;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::now;
use crate::config::{ChildId, ConfigError, SessionConfig, SupervisorConfig};
use crate::event::{Cause, Event, EventKind};
use crate::link::{ChildEnded, Ending, Mortal, Part};
use crate::session::{
    GetSession, PartEnded, RelaySessionActor, RestartPart, Seed, SessionInfo, SessionState, Stop,
};
use crate::sockets::Sockets;
use crate::sockopt::SocketError;
use crate::subscribers::{Filter, Subscribers};
use crate::workers::Workers;
use restart::{Limits, Outcome, Restart, Verdict};

pub(crate) mod restart;

/// A session told to stop has this long to send what it holds and to close.
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

/// Why a session could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is a session of this name.
    #[error("there is a session '{0}' already")]
    NameTaken(ChildId),
    /// A socket could not be had: the port is in use, the address is not this machine's, …
    #[error("session '{session}': {source}")]
    Socket {
        /// The session's name.
        session: ChildId,
        /// Which address, which step, what the system said.
        source: SocketError,
    },
    /// No thread could be started for it.
    #[error("starting a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The supervisor has been shut down.
    #[error("the supervisor is shut down")]
    ShutDown,
}

/// There is no such session, or it is between two lives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no session '{0}' is running")]
pub struct NoSession(pub ChildId);

/// Ends a session: what it holds is sent (for at most 0.5 s), its connections are closed, its ports are free
/// when the answer comes.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), NoSession>")]
pub struct StopSession {
    /// Its name.
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

/// Stops all sessions in order, then their threads, then the supervisor; takes at most 2 s. When the answer comes,
/// the subscribers have had their last events. A thread that hangs in the system's resolver is left behind; the
/// end of the actix system may still wait for it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Tells the supervisor what happened in a session. Never waits: what the supervisor's mailbox does not take
/// is counted, and the count is told.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    child: ChildId,
    to: Recipient<Event>,
    missed: Arc<AtomicU64>,
}

impl Reporter {
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

/// Supervises any number of sessions. Lives until [`Shutdown`]; when it is gone, so are they.
#[derive(Debug)]
pub struct SupervisorActor {
    config: SupervisorConfig,
    slots: HashMap<ChildId, Slot>,
    subscribers: Subscribers,
    workers: Workers,
    lives: u64,
    shut_down: bool,
    /// Cancelled when the supervisor is gone, however it went.
    token: CancellationToken,
    _guard: DropGuard,
}

/// One session.
#[derive(Debug)]
struct Slot {
    config: SessionConfig,
    sockets: Arc<Sockets>,
    arbiter: ArbiterHandle,
    life: u64,
    /// `None` between two lives.
    addr: Option<Addr<RelaySessionActor>>,
    restarts: HashMap<Part, Restart>,
    stopping: Option<Vec<oneshot::Sender<()>>>,
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

    fn start_session(
        &mut self,
        config: SessionConfig,
        ctx: &Context<Self>,
    ) -> Result<Addr<RelaySessionActor>, StartError> {
        if self.shut_down {
            return Err(StartError::ShutDown);
        }
        self.config.validate()?;
        config.validate()?;
        let name = config.name.clone();
        if self.slots.contains_key(&name) {
            return Err(StartError::NameTaken(name));
        }
        let sockets =
            Sockets::open(&config).map_err(|source| StartError::Socket { session: name.clone(), source })?;
        let arbiter = self.workers.next().map_err(StartError::Thread)?;
        let slot = Slot {
            config,
            sockets: Arc::new(sockets),
            arbiter,
            life: 0,
            addr: None,
            restarts: HashMap::new(),
            stopping: None,
        };
        self.slots.insert(name.clone(), slot);
        Ok(self.give_life(&name, ctx.address()).expect("the slot was inserted above"))
    }

    /// Starts the session's actor, for the first time or again.
    fn give_life(&mut self, name: &ChildId, this: Addr<Self>) -> Option<Addr<RelaySessionActor>> {
        let slot = self.slots.get_mut(name)?;
        self.lives += 1;
        slot.life = self.lives;
        // Its links begin anew, and so do their numbers.
        slot.restarts.retain(|part, _| *part == Part::Session);
        let reporter = Reporter {
            child: name.clone(),
            to: this.clone().recipient(),
            missed: Arc::new(AtomicU64::new(0)),
        };
        let seed = Seed {
            config: slot.config.clone(),
            sockets: slot.sockets.clone(),
            life: slot.life,
            stats_interval: self.config.stats_interval,
            supervisor: this,
            reporter,
            token: self.token.child_token(),
        };
        let addr = RelaySessionActor::start_in_arbiter(&slot.arbiter, |_| RelaySessionActor::new(seed));
        slot.addr = Some(addr.clone());
        Some(addr)
    }

    fn publish(&mut self, child: &ChildId, kind: EventKind) {
        self.subscribers.publish(&Event::now(child.clone(), kind));
    }

    /// The session's actor is gone and is not to come back.
    fn remove(&mut self, name: &ChildId) {
        if let Some(mut slot) = self.slots.remove(name) {
            let stopping = slot.stopping.take();
            // Its sockets are closed before anybody hears that they are.
            drop(slot);
            stopping.into_iter().flatten().for_each(|waiting| {
                let _ = waiting.send(());
            });
            self.publish(name, EventKind::StateChanged { state: SessionState::Closed });
            self.publish(name, EventKind::SessionStopped);
        }
    }

    /// Tells the session to stop; ready when it has.
    fn stop_session(&mut self, name: &ChildId) -> Result<oneshot::Receiver<()>, NoSession> {
        let slot = self.slots.get_mut(name).ok_or_else(|| NoSession(name.clone()))?;
        let (done, stopped) = oneshot::channel();
        slot.stopping.get_or_insert_default().push(done);
        match &slot.addr {
            Some(addr) => addr.do_send(Stop),
            None => self.remove(name),
        }
        Ok(stopped)
    }

    fn give_up(&mut self, name: &ChildId, reason: String) {
        tracing::error!(session = %name, %reason, "given up");
        self.publish(name, EventKind::GaveUp { reason });
        // The receiver is not needed: nobody waits.
        let _ = self.stop_session(name);
    }

    fn child_ended(&mut self, who: Mortal, ending: Ending, ctx: &mut Context<Self>) {
        let limits = self.limits();
        let Some(slot) = self.slots.get_mut(&who.session).filter(|slot| slot.life == who.life) else {
            return;
        };
        let stopping = slot.stopping.is_some();
        if who.part == Part::Session {
            slot.addr = None;
            if stopping {
                return self.remove(&who.session);
            }
        }
        let verdict = outcome(&who, &ending).filter(|_| !stopping).map(|outcome| {
            let history = slot.restarts.entry(who.part).or_default();
            history.ended(now(), outcome, fastrand::f64(), &limits)
        });
        if verdict.is_none() {
            slot.restarts.remove(&who.part);
        }
        let again_in = match verdict {
            Some(Verdict::After(wait)) => Some(wait),
            _ => None,
        };
        if let Some(addr) = &slot.addr {
            addr.do_send(PartEnded { part: who.part, round: who.round, ending: ending.clone(), again_in });
        }
        self.report_ending(&who, &ending, again_in);
        match verdict {
            Some(Verdict::After(wait)) => {
                ctx.run_later(wait, move |act, ctx| act.restart_due(&who, ctx));
            }
            Some(Verdict::GiveUp) => {
                self.give_up(&who.session, format!("{} panicked too often", who.part));
            }
            // A session that ended without a fault and untold: its thread is gone.
            None if who.part == Part::Session => self.give_up(&who.session, ending.detail),
            None => {}
        }
    }

    /// Of a link the session itself tells, when it hears of it.
    fn report_ending(&mut self, who: &Mortal, ending: &Ending, retry_in: Option<Duration>) {
        let actor = who.part.to_string();
        match (ending.cause, who.part) {
            (Cause::Panicked, _) => self.publish(&who.session, EventKind::ActorPanicked { actor }),
            (Cause::Broken, Part::Session | Part::Endpoint(_)) => {
                let error = ending.detail.clone();
                self.publish(&who.session, EventKind::ActorFailed { actor, error, retry_in });
            }
            _ => {}
        }
    }

    fn restart_due(&mut self, who: &Mortal, ctx: &Context<Self>) {
        let Some(slot) = self.slots.get(&who.session) else { return };
        if slot.life != who.life || slot.stopping.is_some() {
            return;
        }
        match (who.part, &slot.addr) {
            (Part::Session, None) => {
                self.give_life(&who.session, ctx.address());
            }
            (part, Some(addr)) => addr.do_send(RestartPart { part }),
            (_, None) => {}
        }
    }

    fn limits(&self) -> Limits {
        let SupervisorConfig { backoff_min, backoff_max, max_panics, panic_window, .. } = self.config;
        Limits { backoff_min, backoff_max, max_panics, panic_window }
    }
}

/// Whether, and after what, the child is to be started again.
fn outcome(who: &Mortal, ending: &Ending) -> Option<Outcome> {
    if !who.again {
        return None;
    }
    match ending.cause {
        Cause::Panicked => Some(Outcome::Panicked),
        Cause::Closed | Cause::Broken | Cause::UnfinishedFrame | Cause::UdpStuck => {
            Some(Outcome::Failed { proven: ending.proven })
        }
        Cause::Told | Cause::Replaced | Cause::Forgotten => None,
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

impl Handler<StopSession> for SupervisorActor {
    type Result = ResponseFuture<Result<(), NoSession>>;

    fn handle(&mut self, message: StopSession, _: &mut Self::Context) -> Self::Result {
        let stopped = self.stop_session(&message.session);
        Box::pin(async move {
            // A session that does not end in time is left to its own end; its name stays taken until then.
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
        let addr = self.slots.get(&session).and_then(|slot| slot.addr.clone());
        Box::pin(async move {
            let addr = addr.ok_or_else(|| NoSession(session.clone()))?;
            addr.send(message).await.map_err(|_| NoSession(session))
        })
    }
}

impl Handler<GetSessions> for SupervisorActor {
    type Result = ResponseFuture<Vec<SessionInfo>>;

    fn handle(&mut self, _: GetSessions, _: &mut Self::Context) -> Self::Result {
        // All are asked now, so one wait is enough for all.
        let asked: Vec<_> = self.slots.values().filter_map(|slot| slot.addr.as_ref()).cloned().collect();
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
        let stopped: Vec<_> = names.iter().filter_map(|name| self.stop_session(name).ok()).collect();
        let all = async move {
            let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
            for session in stopped {
                let _ = tokio::time::timeout_at(deadline, session).await;
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
