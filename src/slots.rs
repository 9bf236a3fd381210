//! The supervisor's slots: what it keeps for each session, each TURN client and each relay, from one life to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_rt::ArbiterHandle;
use tokio::sync::oneshot;

use crate::clock::now;
use crate::config::{ChildId, RelayConfig, SessionConfig, SupervisorConfig, TurnConfig};
use crate::credentials::{Secret, UserPassword};
use crate::event::{Cause, Event, EventKind};
use crate::link::{Ending, Mortal, Part, Wait};
use crate::relay::accounts::{Accounts, AccountsError};
use crate::relay::connection::Shared;
use crate::relay::nonce::NonceKey;
use crate::relay::{RelaySeed, TcpRelayActor};
use crate::session::{PartEnded, RelaySessionActor, RestartPart, Seed, SessionState, Stop};
use crate::sockets::Sockets;
use crate::stun;
use crate::supervisor::restart::{Limits, Outcome, Restart, Verdict};
use crate::supervisor::{NoSession, Reporter, StartError, SupervisorActor};
use crate::turn::{TurnClientActor, TurnSeed};

/// One session, one TURN client, or one relay.
#[derive(Debug)]
pub(crate) struct Slot {
    config: Config,
    sockets: Arc<Sockets>,
    arbiter: ArbiterHandle,
    life: u64,
    /// `None` between two lives.
    main: Option<Main>,
    restarts: HashMap<Part, Restart>,
    stopping: Option<Vec<oneshot::Sender<()>>>,
}

/// What each life begins with.
#[derive(Clone, Debug)]
enum Config {
    Session(Box<SessionConfig>),
    Turn(Box<TurnConfig>),
    Relay(Relay),
}

#[derive(Clone, Debug)]
struct Relay {
    config: Arc<RelayConfig>,
    shared: Arc<Shared>,
    /// Its connections are spread over all threads.
    arbiters: Vec<ArbiterHandle>,
}

/// The actor that a slot is there for. It is told of the others, and its end is the end of a life.
#[derive(Debug)]
enum Main {
    Session(Addr<RelaySessionActor>),
    Turn(Addr<TurnClientActor>),
    Relay(Addr<TcpRelayActor>),
}

impl Main {
    fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        RelaySessionActor: Handler<M>,
        TurnClientActor: Handler<M>,
        TcpRelayActor: Handler<M>,
    {
        match self {
            Self::Session(addr) => addr.do_send(message),
            Self::Turn(addr) => addr.do_send(message),
            Self::Relay(addr) => addr.do_send(message),
        }
    }
}

impl Slot {
    /// The session's actor, while it lives.
    pub(crate) fn session(&self) -> Option<&Addr<RelaySessionActor>> {
        match &self.main {
            Some(Main::Session(addr)) => Some(addr),
            _ => None,
        }
    }

    /// The TURN client's actor, while it lives.
    pub(crate) fn turn(&self) -> Option<&Addr<TurnClientActor>> {
        match &self.main {
            Some(Main::Turn(addr)) => Some(addr),
            _ => None,
        }
    }

    /// The relay's actor, while it lives.
    pub(crate) fn relay(&self) -> Option<&Addr<TcpRelayActor>> {
        match &self.main {
            Some(Main::Relay(addr)) => Some(addr),
            _ => None,
        }
    }

    /// Reads the certificate's files again, and says what came of it; `None` where none are shown.
    pub(crate) fn read_certificate(&self) -> Option<EventKind> {
        self.sockets.acceptor()?.read_again()
    }

    /// From now on these may join; `None` if this is no relay.
    ///
    /// # Errors
    /// A relay cannot have them; all stays as it was.
    pub(crate) fn set_accounts(
        &mut self,
        users: Vec<UserPassword>,
        shared_key: Option<Secret>,
    ) -> Option<Result<(), StartError>> {
        let Config::Relay(relay) = &mut self.config else { return None };
        let config = RelayConfig { users, shared_key, ..(*relay.config).clone() };
        let accounts = config.validate().map_err(StartError::from).and_then(|()| {
            accounts_of(&config).map_err(|error| StartError::RelayUsers {
                relay: config.name.clone(),
                why: error.to_string(),
            })
        });
        Some(accounts.map(|accounts| {
            relay.shared.set_accounts(accounts);
            relay.config = Arc::new(config);
        }))
    }

    fn main_part(&self) -> Part {
        match self.config {
            Config::Session(_) => Part::Session,
            Config::Turn(_) => Part::Turn,
            Config::Relay(_) => Part::Relay,
        }
    }
}

impl SupervisorActor {
    pub(crate) fn start_session(
        &mut self,
        config: SessionConfig,
        ctx: &Context<Self>,
    ) -> Result<Addr<RelaySessionActor>, StartError> {
        self.check_open()?;
        config.validate()?;
        let name = config.name.clone();
        self.check_free(&name)?;
        let sockets =
            Sockets::open(&config).map_err(|source| StartError::Socket { session: name.clone(), source })?;
        let slot = self.fill_slot(&name, Config::Session(Box::new(config)), sockets, ctx)?;
        Ok(slot.session().expect("its life has begun").clone())
    }

    pub(crate) fn start_turn(
        &mut self,
        config: TurnConfig,
        ctx: &Context<Self>,
    ) -> Result<Addr<TurnClientActor>, StartError> {
        self.check_open()?;
        config.validate()?;
        let name = config.name.clone();
        self.check_free(&name)?;
        let socket = |source| StartError::TurnSocket { turn: name.clone(), source };
        let sockets = Sockets::open_turn(&config).map_err(socket)?;
        let slot = self.fill_slot(&name, Config::Turn(Box::new(config)), sockets, ctx)?;
        Ok(slot.turn().expect("its life has begun").clone())
    }

    pub(crate) fn start_relay(
        &mut self,
        config: RelayConfig,
        ctx: &Context<Self>,
    ) -> Result<Addr<TcpRelayActor>, StartError> {
        self.check_open()?;
        config.validate()?;
        let name = config.name.clone();
        self.check_free(&name)?;
        let shared = shared_of(&config)
            .map_err(|error| StartError::RelayUsers { relay: name.clone(), why: error.to_string() })?;
        let sockets = Sockets::open_relay(&config)
            .map_err(|source| StartError::RelaySocket { relay: name.clone(), source })?;
        let arbiters = self.workers.all().map_err(StartError::Thread)?;
        let relay = Relay { config: Arc::new(config), shared: Arc::new(shared), arbiters };
        let slot = self.fill_slot(&name, Config::Relay(relay), sockets, ctx)?;
        Ok(slot.relay().expect("its life has begun").clone())
    }

    fn check_open(&self) -> Result<(), StartError> {
        if self.shut_down {
            return Err(StartError::ShutDown);
        }
        Ok(self.config.validate()?)
    }

    fn check_free(&self, name: &ChildId) -> Result<(), StartError> {
        if self.slots.contains_key(name) { Err(StartError::NameTaken(name.clone())) } else { Ok(()) }
    }

    /// A slot for a new child, and the child's first life.
    fn fill_slot(
        &mut self,
        name: &ChildId,
        config: Config,
        sockets: Sockets,
        ctx: &Context<Self>,
    ) -> Result<&Slot, StartError> {
        let arbiter = self.workers.next().map_err(StartError::Thread)?;
        let slot = Slot {
            config,
            sockets: Arc::new(sockets),
            arbiter,
            life: 0,
            main: None,
            restarts: HashMap::new(),
            stopping: None,
        };
        self.slots.insert(name.clone(), slot);
        Ok(self.give_life(name, ctx.address()).expect("the slot was inserted above"))
    }

    /// Starts the slot's main actor, for the first time or again.
    fn give_life(&mut self, name: &ChildId, this: Addr<Self>) -> Option<&Slot> {
        let slot = self.slots.get_mut(name)?;
        self.lives += 1;
        slot.life = self.lives;
        let main = slot.main_part();
        // Its links begin anew, and so do their numbers. What a server refused it will refuse the next life too.
        slot.restarts.retain(|part, _| *part == main || *part == Part::Allocation);
        let (life, sockets, supervisor) = (slot.life, slot.sockets.clone(), this.clone());
        let stats_interval = self.config.stats_interval;
        let reporter = Reporter::new(name.clone(), this.recipient());
        let token = self.token.child_token();
        let who = Mortal { child: name.clone(), life, part: main, round: 0, again: true };
        slot.main = Some(match slot.config.clone() {
            Config::Session(config) => {
                let config = *config;
                let seed = Seed { config, sockets, life, stats_interval, supervisor, reporter, token };
                let start = |_: &mut _| RelaySessionActor::new(seed);
                Main::Session(RelaySessionActor::start_in_arbiter(&slot.arbiter, start))
            }
            Config::Relay(Relay { config, shared, arbiters }) => {
                let seed = RelaySeed {
                    config,
                    shared,
                    sockets,
                    arbiters,
                    who,
                    stats_interval,
                    supervisor,
                    reporter,
                    token,
                };
                let start = |_: &mut _| TcpRelayActor::new(seed);
                Main::Relay(TcpRelayActor::start_in_arbiter(&slot.arbiter, start))
            }
            Config::Turn(config) => {
                let config = *config;
                let seed = TurnSeed { config, sockets, who, stats_interval, supervisor, reporter, token };
                let start = |_: &mut _| TurnClientActor::new(seed);
                Main::Turn(TurnClientActor::start_in_arbiter(&slot.arbiter, start))
            }
        });
        Some(slot)
    }

    pub(crate) fn publish(&mut self, child: &ChildId, kind: EventKind) {
        self.subscribers.publish(&Event::now(child.clone(), kind));
    }

    /// The child's main actor is gone and is not to come back.
    fn remove(&mut self, name: &ChildId) {
        if let Some(mut slot) = self.slots.remove(name) {
            let (stopping, is_session) = (slot.stopping.take(), slot.main_part() == Part::Session);
            // Its sockets are closed before anybody hears that they are.
            drop(slot);
            stopping.into_iter().flatten().for_each(|waiting| {
                let _ = waiting.send(());
            });
            if is_session {
                self.publish(name, EventKind::StateChanged { state: SessionState::Closed });
            }
            self.publish(name, EventKind::SessionStopped);
        }
    }

    /// Tells the child to stop; ready when it has.
    pub(crate) fn stop_child(&mut self, name: &ChildId) -> Result<oneshot::Receiver<()>, NoSession> {
        let slot = self.slots.get_mut(name).ok_or_else(|| NoSession(name.clone()))?;
        let (done, stopped) = oneshot::channel();
        slot.stopping.get_or_insert_default().push(done);
        match &slot.main {
            Some(main) => main.tell(Stop),
            None => self.remove(name),
        }
        Ok(stopped)
    }

    fn give_up(&mut self, name: &ChildId, reason: String) {
        tracing::error!(child = %name, %reason, "given up");
        self.publish(name, EventKind::GaveUp { reason });
        // The receiver is not needed: nobody waits.
        let _ = self.stop_child(name);
    }

    pub(crate) fn child_ended(&mut self, who: Mortal, ending: Ending, ctx: &mut Context<Self>) {
        let limits = self.limits();
        let Some(slot) = self.slots.get_mut(&who.child).filter(|slot| slot.life == who.life) else {
            return;
        };
        let stopping = slot.stopping.is_some();
        let is_main = who.part == slot.main_part();
        if is_main {
            slot.main = None;
            if stopping {
                return self.remove(&who.child);
            }
        }
        let verdict = outcome(&who, &ending).filter(|_| !stopping).map(|outcome| {
            let history = slot.restarts.entry(who.part).or_default();
            match (history.ended(now(), outcome, fastrand::f64(), &limits), ending.wait) {
                (Verdict::After(wait), Wait::AtLeast(least)) => Verdict::After(wait.max(least)),
                (verdict, _) => verdict,
            }
        });
        if verdict.is_none() {
            slot.restarts.remove(&who.part);
        }
        let again_in = match verdict {
            Some(Verdict::After(wait)) => Some(wait),
            _ => None,
        };
        if let Some(main) = &slot.main {
            main.tell(PartEnded { part: who.part, round: who.round, ending: ending.clone(), again_in });
        }
        self.report_ending(&who, &ending, again_in);
        match verdict {
            Some(Verdict::After(wait)) => {
                ctx.run_later(wait, move |act, ctx| act.restart_due(&who, ctx));
            }
            Some(Verdict::GiveUp) => {
                self.give_up(&who.child, format!("{} panicked too often", who.part));
            }
            // A child that ended without a fault and untold: its thread is gone.
            None if is_main => self.give_up(&who.child, ending.detail),
            None => {}
        }
    }

    /// Of a link, and of an allocation, their owner itself tells, when it hears of it.
    fn report_ending(&mut self, who: &Mortal, ending: &Ending, retry_in: Option<Duration>) {
        let actor = who.part.to_string();
        match (ending.cause, who.part) {
            (Cause::Panicked, _) => self.publish(&who.child, EventKind::ActorPanicked { actor }),
            (Cause::Broken, Part::Session | Part::Turn | Part::Relay | Part::Endpoint(_)) => {
                let error = ending.detail.clone();
                self.publish(&who.child, EventKind::ActorFailed { actor, error, retry_in });
            }
            _ => {}
        }
    }

    fn restart_due(&mut self, who: &Mortal, ctx: &Context<Self>) {
        let Some(slot) = self.slots.get(&who.child) else { return };
        if slot.life != who.life || slot.stopping.is_some() {
            return;
        }
        match &slot.main {
            None if who.part == slot.main_part() => {
                self.give_life(&who.child, ctx.address());
            }
            None => {}
            Some(main) => main.tell(RestartPart { part: who.part }),
        }
    }

    fn limits(&self) -> Limits {
        let SupervisorConfig { backoff_min, backoff_max, max_panics, panic_window, .. } = self.config;
        Limits { backoff_min, backoff_max, max_panics, panic_window }
    }
}

/// What the connections of a relay have in common, from its configuration.
///
/// # Errors
/// Realm, user names or passwords hold what may not be in them.
fn shared_of(config: &RelayConfig) -> Result<Shared, AccountsError> {
    let accounts = accounts_of(config)?;
    let max_lifetime = u32::try_from(config.max_lifetime.as_secs()).unwrap_or(u32::MAX);
    Ok(Shared::new(accounts, NonceKey(stun::random_key()), max_lifetime, stun::random_id))
}

fn accounts_of(config: &RelayConfig) -> Result<Accounts, AccountsError> {
    let mut accounts = Accounts::new(&*config.realm)?;
    config.users.iter().try_for_each(|user| accounts.insert(user))?;
    if let Some(key) = &config.shared_key {
        accounts.set_shared_key(key.clone())?;
    }
    Ok(accounts)
}

/// Whether, and after what, the part is to be started again.
fn outcome(who: &Mortal, ending: &Ending) -> Option<Outcome> {
    if !who.again || ending.wait == Wait::ForEver {
        return None;
    }
    match ending.cause {
        Cause::Panicked => Some(Outcome::Panicked),
        Cause::Refused if ending.wait == Wait::ByCause => Some(Outcome::Refused { proven: ending.proven }),
        // However well it worked before: whoever took its place may be taken its place again.
        Cause::Superseded => Some(Outcome::Refused { proven: false }),
        Cause::Closed
        | Cause::Broken
        | Cause::UnfinishedFrame
        | Cause::UdpStuck
        | Cause::Refused
        | Cause::Restarting
        | Cause::Redirected => Some(Outcome::Failed { proven: ending.proven }),
        Cause::Told | Cause::Replaced | Cause::Forgotten => None,
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
pub(crate) mod tests;
