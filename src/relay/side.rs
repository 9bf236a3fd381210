//! The client's end of one connection to a TCP relay: presents itself, waits, is joined with its peer, and is told
//! why it ends.
//!
//! The first Join carries nothing: the relay's 401 names its realm. The second one, sealed, says whom to meet. From
//! then on LIFETIME runs while no peer is there; Refresh extends it. When the peer goes, this side stays, and sends a
//! Refresh at once: before that the relay forwards nothing of it, so that nothing meant for the old peer reaches a
//! new one. Datagrams wait for its answer, and for that of any other Refresh, which peers that come and go may cross:
//! what is sent before it would be dropped. Whatever the relay sends without an integrity is a hint, but that the
//! connection ends is believed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::RelayRemote;
use crate::relay::messages::{
    self, Challenge, Closing, Granted, Instance, Join, PairId, Peer, PeerStatus, Reason, Refresh, Refusal,
    SideId,
};
use crate::stun::{Class, Message, Method, Seal, TransactionId};
use crate::turn::transactions::Ids;
pub(crate) use error::SideError;

mod error;

/// From the connection to the success of Join.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A later request is answered within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without a byte the relay is asked whether it is there …
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(15);
/// … and so much later, still without a byte, it is not.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// A wait is extended this long before its end, or after half of it if that is later.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// A relay that grants next to nothing is not asked more often.
const REFRESH_MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Requests in a row that are answered with 438.
const MAX_STALE: u8 = 3;

/// What a connection begins with.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Who we are, and whom we want to meet.
    pub(crate) remote: RelayRemote,
    /// The relay's address, for the answers to its pings.
    pub(crate) relay: SocketAddr,
    /// The same for all connections of a session.
    pub(crate) instance: Instance,
    pub(crate) ids: Ids,
}

/// The peer, while it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) side: SideId,
    /// Its user, where the relay joins sides of different users.
    pub(crate) user: Option<String>,
    /// One of the relay's limits slows the pair, for so long.
    pub(crate) slowed: Option<Duration>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this message.
    Send(Vec<u8>),
    /// The relay has let this side in. A peer that is there is told of apart.
    Joined { lifetime: Duration },
    /// The peer has come, or is told of again: all channels end, and datagrams may come.
    PeerPresent(Present),
    /// And datagrams may go, to the peer told of last.
    MaySend,
    /// The peer has gone: all channels end. What waits to be sent is dropped, then what follows is sent.
    PeerGone,
    /// The relay has been told that this side leaves: close the connection.
    Left,
    /// Close the connection. Nothing follows.
    Ended(SideError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not let in yet.
    Joining,
    /// LIFETIME runs out then, and before it a Refresh is due.
    Waiting {
        refresh: Option<Instant>,
    },
    Paired,
    Leaving,
    Ended,
}

/// The request under way; a later one makes its answer a stray.
#[derive(Debug)]
struct Pending {
    id: TransactionId,
    ask: Ask,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// The Join that is to be refused.
    First,
    Join,
    Refresh,
    Leave,
}

impl Ask {
    fn request(self) -> &'static str {
        self.method().name()
    }

    fn method(self) -> Method {
        match self {
            Self::First | Self::Join => Method::JOIN,
            Self::Refresh | Self::Leave => Method::REFRESH,
        }
    }
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Side {
    setup: Setup,
    side: SideId,
    state: State,
    seal: Option<Seal>,
    pending: Option<Pending>,
    /// 438 in a row.
    stale: u8,
    /// An answer came that could not be believed.
    unbelieved: bool,
    began: Instant,
    heard: Instant,
    pinged: bool,
    outputs: VecDeque<Output>,
}

impl Side {
    /// The connection has just been made.
    pub(crate) fn new(now: Instant, setup: Setup) -> Self {
        let side = SideId::new(setup.remote.side.clone()).expect("the configuration was validated");
        let mut this = Self {
            setup,
            side,
            state: State::Joining,
            seal: None,
            pending: None,
            stale: 0,
            unbelieved: false,
            began: now,
            heard: now,
            pinged: false,
            outputs: VecDeque::new(),
        };
        this.ask(now, Ask::First);
        this
    }

    /// Bytes have come, of whatever kind.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = false;
    }

    /// Whether the relay has let this side in.
    pub(crate) fn is_joined(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Paired)
    }

    /// This side's name.
    pub(crate) fn name(&self) -> &SideId {
        &self.side
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.state == State::Ended {
            return None;
        }
        let silence = if self.pinged { PING_INTERVAL + PONG_TIMEOUT } else { PING_INTERVAL };
        let refresh = match self.state {
            State::Waiting { refresh } => refresh,
            _ => None,
        };
        [Some(self.heard + silence), self.answer_due(), refresh].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        if self.answer_due().is_some_and(|due| due <= now) {
            let ask = self.pending.as_ref().map_or(Ask::Join, |pending| pending.ask);
            let after = if self.state == State::Joining { JOIN_TIMEOUT } else { REQUEST_TIMEOUT };
            let (request, unbelieved) = (ask.request(), self.unbelieved);
            return self.end(SideError::NoAnswer { request, after, unbelieved });
        }
        if self.pinged && self.heard + PING_INTERVAL + PONG_TIMEOUT <= now {
            let id = self.setup.ids.next();
            self.send(Closing::new(Reason::Idle).encode(id));
            return self.end(SideError::Silent(PING_INTERVAL + PONG_TIMEOUT));
        }
        if !self.pinged && self.heard + PING_INTERVAL <= now {
            self.pinged = true;
            let id = self.setup.ids.next();
            self.send(messages::ping(id));
        }
        if let State::Waiting { refresh: Some(due) } = self.state
            && due <= now
        {
            self.refresh(now);
        }
    }

    /// Tells the relay that this side leaves, if it has been let in.
    pub(crate) fn leave(&mut self, now: Instant) {
        match self.state {
            State::Joining => {
                self.state = State::Ended;
                self.outputs.push_back(Output::Left);
            }
            State::Waiting { .. } | State::Paired => {
                self.state = State::Leaving;
                self.ask(now, Ask::Leave);
            }
            State::Leaving | State::Ended => {}
        }
    }

    /// The connection has ended, or its bytes cannot be understood any more.
    pub(crate) fn lost(&mut self, error: SideError) {
        let could_be_tls = matches!(error, SideError::Closed | SideError::Malformed(_));
        let is_unanswered = self.seal.is_none() && self.setup.remote.tls.is_none();
        self.end(match could_be_tls && is_unanswered {
            true => SideError::Unanswered(Box::new(error)),
            false => error,
        });
    }

    /// Takes one whole STUN message.
    pub(crate) fn handle_message(&mut self, now: Instant, bytes: &[u8]) {
        if self.state == State::Ended {
            return;
        }
        match messages::decode(bytes) {
            Ok(message) => {
                tracing::debug!(method = message.method.name(), class = ?message.class, "the relay says");
                match message.class {
                    Class::Request => self.request(&message),
                    Class::Indication => self.indication(now, &message),
                    Class::Success | Class::Error => self.response(now, &message),
                }
            }
            Err(error) => self.end(error.into()),
        }
    }

    /// The relay asks whether we are there; other requests it has none.
    fn request(&mut self, message: &Message<'_>) {
        self.send(if message.method == Method::BINDING {
            messages::pong(message.id, self.setup.relay)
        } else {
            Refusal::new(400).encode(message.method, message.id, None)
        });
    }

    fn indication(&mut self, now: Instant, message: &Message<'_>) {
        match message.method {
            Method::PEER => {
                if let Ok(peer) = Peer::read(message) {
                    self.peer(now, peer);
                }
            }
            Method::CLOSING => {
                if let Ok(Closing { reason, instance, retry_after }) = Closing::read(message) {
                    let own = instance == Some(self.setup.instance);
                    self.end(SideError::closing(reason, own, retry_after));
                }
            }
            _ => {}
        }
    }

    fn peer(&mut self, now: Instant, peer: Peer) {
        if !self.is_joined() {
            return;
        }
        match (peer.status, peer.side) {
            (PeerStatus::Present, Some(side)) if side != self.side => {
                self.state = State::Paired;
                let Peer { user, retry_after: slowed, .. } = peer;
                self.outputs.push_back(Output::PeerPresent(Present { side, user, slowed }));
                if self.pending.is_none() {
                    self.outputs.push_back(Output::MaySend);
                }
            }
            (PeerStatus::Gone, _) => {
                self.state = State::Waiting { refresh: None };
                // The relay's nonce ends with its peer.
                self.stale = 0;
                self.outputs.push_back(Output::PeerGone);
                self.refresh(now);
            }
            // Nobody to talk to: a name for the peer is needed, and another one than ours.
            (PeerStatus::Present | PeerStatus::Absent, _) => {}
        }
    }

    fn response(&mut self, now: Instant, message: &Message<'_>) {
        let is_answer =
            |pending: &&Pending| pending.id == message.id && pending.ask.method() == message.method;
        let Some(ask) = self.pending.as_ref().filter(is_answer).map(|pending| pending.ask) else { return };
        let is_sealed = self.seal.as_ref().is_some_and(|seal| message.is_sealed_with(&seal.key));
        if message.class == Class::Success {
            // Somebody in between could say so too. To the first Join no relay says it.
            if ask != Ask::First && !is_sealed {
                self.unbelieved = true;
                return;
            }
            return self.succeeded(now, ask, message);
        }
        let request = ask.request();
        let refusal = match Refusal::read(message) {
            Ok(refusal) => refusal,
            Err(error) => {
                return self.end(SideError::BadAnswer { request, why: error.to_string() });
            }
        };
        match (ask, refusal.code) {
            (Ask::First, 401) | (_, 438) => self.challenged(now, ask, refusal),
            (_, 401) => self.end(SideError::Unauthorized { user: self.shown_user() }),
            // The relay cannot seal them before it knows who asks.
            (Ask::First, code) | (_, code @ 400) => {
                self.end(SideError::Refused { request, code, retry_after: None });
            }
            _ if is_sealed => self.refused(request, refusal),
            _ => self.unbelieved = true,
        }
    }

    fn succeeded(&mut self, now: Instant, ask: Ask, message: &Message<'_>) {
        let request = ask.request();
        let granted = match (ask, Granted::read(message)) {
            (Ask::First, _) => Err("a success to a Join that says nothing".to_owned()),
            (_, Err(error)) => Err(error.to_string()),
            (_, Ok(granted)) => Ok(granted),
        };
        let granted = match granted {
            Ok(granted) => granted,
            Err(why) => return self.end(SideError::BadAnswer { request, why }),
        };
        self.pending = None;
        (self.stale, self.unbelieved) = (0, false);
        let lifetime = Duration::from_secs(granted.lifetime.into());
        let refresh = Some(now + (lifetime - REFRESH_BEFORE.min(lifetime / 2)).max(REFRESH_MIN_INTERVAL));
        match (ask, self.state) {
            (Ask::Leave, _) => {
                self.state = State::Ended;
                self.outputs.push_back(Output::Left);
            }
            (_, State::Joining) => {
                self.state = State::Waiting { refresh };
                self.outputs.push_back(Output::Joined { lifetime });
            }
            (_, State::Waiting { .. }) => self.state = State::Waiting { refresh },
            // The peer has come in the meantime: LIFETIME does not run.
            (_, State::Paired) => self.outputs.push_back(Output::MaySend),
            (_, State::Leaving | State::Ended) => {}
        }
    }

    /// A 401 to the first Join, or a 438: asks again with what the relay wants.
    fn challenged(&mut self, now: Instant, ask: Ask, refusal: Refusal) {
        let request = ask.request();
        let Some(challenge) = refusal.challenge else {
            let why = format!("{} without REALM, NONCE or PASSWORD-ALGORITHMS", refusal.code);
            return self.end(SideError::BadAnswer { request, why });
        };
        if let Err(error) = self.reseal(&challenge) {
            return self.end(error);
        }
        if refusal.code == 438 {
            self.stale += 1;
            if self.stale > MAX_STALE {
                let why = format!("438 {} times in a row", self.stale);
                return self.end(SideError::BadAnswer { request, why });
            }
        }
        self.ask(now, if ask == Ask::First { Ask::Join } else { ask });
    }

    fn reseal(&mut self, challenge: &Challenge) -> Result<(), SideError> {
        if !challenge.is_strong() {
            let why = "its NONCE or PASSWORD-ALGORITHMS lack SHA-256";
            return Err(SideError::WeakChallenge(why));
        }
        if self.seal.as_ref().is_some_and(|seal| seal.realm != challenge.realm) {
            return Err(SideError::WeakChallenge("its realm is another one than before"));
        }
        let seal = challenge.seal(&self.setup.remote.credentials);
        self.seal = Some(seal.map_err(|error| SideError::UnusableCredentials(error.to_string()))?);
        Ok(())
    }

    fn refused(&mut self, request: &'static str, refusal: Refusal) {
        let Refusal { code, retry_after, alternate, .. } = refusal;
        self.end(match alternate {
            Some(alternate) if code == 300 => {
                SideError::Redirected { to: alternate.server, domain: alternate.domain }
            }
            _ => SideError::Refused { request, code, retry_after },
        });
    }

    /// Also at once after the peer has gone, whatever is under way: what was sent before does not count.
    fn refresh(&mut self, now: Instant) {
        if matches!(self.state, State::Waiting { .. }) {
            self.state = State::Waiting { refresh: None };
        }
        self.ask(now, Ask::Refresh);
    }

    fn ask(&mut self, now: Instant, ask: Ask) {
        let id = self.setup.ids.next();
        tracing::debug!(request = ask.request(), "asking the relay");
        let encoded = match (ask, &self.seal) {
            (Ask::Join, Some(seal)) => {
                let pair = PairId::new(self.setup.remote.pair_id(&seal.realm)).expect("a hash has 32 bytes");
                let (side, instance) = (self.side.clone(), self.setup.instance);
                Join { pair, side, instance, lifetime: None }.encode(id, seal)
            }
            (Ask::Refresh, Some(seal)) => Refresh { lifetime: None }.encode(id, seal),
            (Ask::Leave, Some(seal)) => Refresh { lifetime: Some(0) }.encode(id, seal),
            (_, _) => Ok(Join::encode_first(id)),
        };
        match encoded {
            Ok(bytes) => {
                self.pending = Some(Pending { id, ask, since: now });
                self.send(bytes);
            }
            Err(error) => self.end(SideError::UnusableCredentials(error.to_string())),
        }
    }

    /// When what is asked for must have been answered.
    fn answer_due(&self) -> Option<Instant> {
        match self.state {
            State::Joining => Some(self.began + JOIN_TIMEOUT),
            _ => self.pending.as_ref().map(|pending| pending.since + REQUEST_TIMEOUT),
        }
    }

    /// What is behind a name's last colon may be a password that was given in the wrong place.
    fn shown_user(&self) -> String {
        let user = &self.setup.remote.credentials.user;
        match user.split_once(':') {
            Some((expiry, _)) if expiry.bytes().all(|digit| digit.is_ascii_digit()) => user.clone(),
            Some((shown, _)) => format!("{shown}:…"),
            None => user.clone(),
        }
    }

    fn send(&mut self, message: Vec<u8>) {
        self.outputs.push_back(Output::Send(message));
    }

    /// The one way to the end.
    fn end(&mut self, error: SideError) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.pending = None;
            self.outputs.push_back(Output::Ended(error));
        }
    }
}

#[cfg(test)]
#[path = "side_hostile_tests.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "side_refresh_tests.rs"]
mod refresh_tests;
#[cfg(test)]
#[path = "side_tests.rs"]
mod tests;
