//! The relay's side of one connection: who comes, is it still there, may it send, and why it ends.
//!
//! The shell gives in what has come ([`Connection::heard`], [`Connection::handle_message`]), what the directory said
//! ([`Connection::join_answered`], [`Connection::peer`], [`Connection::close`]) and that time has passed
//! ([`Connection::handle_timeout`]); then it takes [`Connection::poll_output`] until that is empty, and sets one timer
//! to [`Connection::poll_timeout`]. ChannelData does not come here: [`Connection::may_forward`] says whether it goes on
//! or is dropped.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::accounts::{Account, Accounts};
use super::checks::{self, Fault};
use super::messages::{
    self, Challenge, Closing, Granted, Instance, Join, PairId, Peer, PeerStatus, ProtocolError, Reason,
    Refusal, SideId,
};
use super::nonce::{Bound, NonceKey};
use crate::stun::{Class, Key, Message, Method, TransactionId};

/// A connection joins within this time after it was accepted. Nothing extends it.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// So many bytes a connection may send before it has joined.
pub(crate) const MAX_UNJOINED_LEN: usize = 4096;
/// So many refused Joins, and other requests whose user or password is wrong, close a connection; the first Join, which
/// only asks for a challenge, is not counted.
pub(crate) const MAX_REFUSED_JOINS: u8 = 4;
/// After this time without a byte the side is asked by Binding …
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// … and after this more, still without a byte, the connection is closed.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the shell reads and discards behind a Closing, unless FIN comes before. Closing a socket with unread input
/// would reset the connection, and lose the Closing.
pub(crate) const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);
/// LIFETIME where a request has none, in seconds.
const DEFAULT_LIFETIME: u32 = 600;
/// The longest LIFETIME of all, in seconds.
pub(crate) const MAX_LIFETIME: u32 = 3600;

/// What the connections of a relay have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    accounts: RwLock<Arc<Accounts>>,
    pub(crate) nonces: NonceKey,
    /// The longest wait that is granted, in seconds: 1 to [`MAX_LIFETIME`].
    pub(crate) max_lifetime: u32,
    /// Where transaction ids come from.
    pub(crate) ids: fn() -> TransactionId,
}

impl Shared {
    pub(crate) fn new(
        accounts: Accounts,
        nonces: NonceKey,
        max_lifetime: u32,
        ids: fn() -> TransactionId,
    ) -> Self {
        Self { accounts: RwLock::new(Arc::new(accounts)), nonces, max_lifetime, ids }
    }

    /// From now on these may join. Whoever has joined stays until he asks for more time.
    pub(crate) fn set_accounts(&self, accounts: Accounts) {
        *self.accounts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(accounts);
    }

    fn accounts(&self) -> Arc<Accounts> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send these bytes, in order, before data that has not yet begun.
    Send(Vec<u8>),
    /// Ask the directory, and answer by [`Connection::join_answered`].
    Join(JoinRequest),
    /// The last output: send what is to be sent, shut down writing, discard input until FIN or for
    /// [`CLOSING_TIMEOUT`], close. What the directory knows of this connection is to be forgotten at once.
    Close(Ending),
}

/// Somebody who is who he says wants to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JoinRequest {
    pub(crate) user: Arc<str>,
    pub(crate) pair: PairId,
    pub(crate) side: SideId,
    pub(crate) instance: Instance,
}

/// What the directory says to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JoinAnswer {
    /// It has joined; if the peer is there, [`Connection::peer`] is called next.
    Joined { is_peer_there: bool },
    /// 403, 409, 486, 508 with RETRY-AFTER, or 300 with ALTERNATE-SERVER.
    Refused(Refusal),
}

/// Why a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ending {
    #[error("it left")]
    Left,
    #[error("it heard nothing any more")]
    Deaf,
    #[error("it did not join within 10 seconds")]
    NotJoined,
    #[error("it sent more than 4 KiB before it had joined")]
    TooMuchUnjoined,
    #[error("too many of its Joins were refused")]
    TooManyRefused,
    #[error("it was silent and did not answer")]
    Idle,
    #[error("nobody came while it waited")]
    LifetimeOver,
    #[error("what it sent could not be understood: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the relay told it to go: {:?}", .0.reason)]
    Told(Closing),
}

impl Ending {
    /// What the side is told: nothing, if it ended the connection itself.
    fn closing(self) -> Option<Closing> {
        let reason = match self {
            Self::Left | Self::Deaf => return None,
            Self::Told(closing) => return Some(closing),
            Self::NotJoined | Self::TooMuchUnjoined | Self::TooManyRefused => Reason::Limit,
            Self::Idle => Reason::Idle,
            Self::LifetimeOver => Reason::LifetimeOver,
            Self::Protocol(_) => Reason::ProtocolError,
        };
        Some(Closing::new(reason))
    }
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// What its nonces are bound to. A Refresh that was under way when the peer went has an old one.
    bound: Bound,
    remote: SocketAddr,
    accepted: Instant,
    /// When the last byte came.
    heard: Instant,
    /// When it was asked whether it is there, if nothing has come since.
    pinged: Option<Instant>,
    /// Bytes that came before it had joined.
    unjoined_len: usize,
    is_challenged: bool,
    refused: u8,
    /// Since it was last asked for: somebody claimed to be a user and was not.
    rejected: bool,
    state: State,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    /// Nobody yet.
    Unjoined,
    /// The directory is asked.
    Joining(Pending),
    Joined(Joined),
    Ended,
}

/// A Join that the directory has yet to answer.
#[derive(Debug)]
struct Pending {
    id: TransactionId,
    account: Account,
    lifetime: u32,
}

/// A side of a pair.
#[derive(Debug)]
struct Joined {
    user: Arc<str>,
    /// How long it may wait, in seconds.
    lifetime: u32,
    /// When it has waited long enough; `None` while the peer is there.
    waits_until: Option<Instant>,
    /// Its peer has gone: what it sends may be meant for that one, until a Refresh shows that it knows.
    owes_refresh: bool,
}

impl Joined {
    fn wait(&mut self, now: Instant) {
        self.waits_until = Some(now + Duration::from_secs(self.lifetime.into()));
    }

    /// Takes a Refresh; with 0 the side leaves, and nothing matters any more.
    fn refresh(&mut self, now: Instant, lifetime: u32) -> Granted {
        self.lifetime = lifetime;
        self.owes_refresh = false;
        if self.waits_until.is_none() {
            return Granted { lifetime, peer: PeerStatus::Present };
        }
        self.wait(now);
        Granted { lifetime, peer: PeerStatus::Absent }
    }
}

impl Connection {
    /// One that has just been accepted from this address. No two of a relay have the same number.
    pub(crate) fn new(accepted: Instant, number: u64, remote: SocketAddr, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            bound: Bound { number, parted: 0 },
            remote,
            accepted,
            heard: accepted,
            pinged: None,
            unjoined_len: 0,
            is_challenged: false,
            refused: 0,
            rejected: false,
            state: State::Unjoined,
            outputs: VecDeque::new(),
        }
    }

    /// Whether ChannelData from this side goes to its peer: that is there, and if one was there before, the side has
    /// shown by a Refresh that it knows of the change.
    pub(crate) fn may_forward(&self) -> bool {
        matches!(&self.state, State::Joined(joined) if joined.waits_until.is_none() && !joined.owes_refresh)
    }

    #[cfg(test)]
    pub(crate) fn is_joined(&self) -> bool {
        matches!(self.state, State::Joined(_))
    }

    /// So many bytes have come, data or not; for every read, before what they say is handled.
    pub(crate) fn heard(&mut self, now: Instant, len: usize) {
        self.heard = now;
        self.pinged = None;
        if matches!(self.state, State::Unjoined | State::Joining(_)) {
            self.unjoined_len = self.unjoined_len.saturating_add(len);
            if self.unjoined_len > MAX_UNJOINED_LEN {
                self.end(Ending::TooMuchUnjoined);
            }
        }
    }

    /// One whole STUN message has come, as [`messages::message_len`] cut it off; `wall` is in seconds since 1970.
    pub(crate) fn handle_message(&mut self, now: Instant, wall: u64, bytes: &[u8]) {
        if matches!(self.state, State::Ended) {
            return;
        }
        let message = match messages::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.protocol_error(error),
        };
        match (message.method, message.class) {
            (Method::BINDING, Class::Request) => self.answer_binding(now, &message),
            (Method::JOIN, Class::Request) => self.join(now, wall, &message),
            (Method::REFRESH, Class::Request) => self.refresh(now, wall, &message),
            (_, Class::Request) => self.refuse(now, &message, Fault::of(400), None),
            (Method::CLOSING, Class::Indication) if Closing::read(&message).is_ok() => self.end(Ending::Deaf),
            // Unknown indications, and answers: that something came is all they say.
            _ => {}
        }
    }

    /// What came cannot be cut into messages.
    pub(crate) fn protocol_error(&mut self, error: ProtocolError) {
        self.end(Ending::Protocol(error));
    }

    /// The directory's answer to [`Output::Join`]. Ignored if the connection has ended since.
    pub(crate) fn join_answered(&mut self, now: Instant, answer: JoinAnswer) {
        let State::Joining(Pending { id, account: Account { user, key }, lifetime }) = &self.state else {
            return;
        };
        let (id, lifetime, user) = (*id, *lifetime, user.clone());
        let bytes = match &answer {
            JoinAnswer::Joined { is_peer_there } => {
                let peer = if *is_peer_there { PeerStatus::Present } else { PeerStatus::Absent };
                Granted { lifetime, peer }.encode(Method::JOIN, id, key)
            }
            JoinAnswer::Refused(refusal) => refusal.encode(Method::JOIN, id, Some(key)),
        };
        self.outputs.push_back(Output::Send(bytes));
        if let JoinAnswer::Refused(_) = answer {
            self.state = State::Unjoined;
            self.count_refused();
        } else {
            let mut joined = Joined { user, lifetime, waits_until: None, owes_refresh: false };
            joined.wait(now);
            self.state = State::Joined(joined);
        }
    }

    /// The directory says that the peer has come or gone, or that a limit slows the pair.
    pub(crate) fn peer(&mut self, now: Instant, peer: &Peer) {
        let State::Joined(joined) = &mut self.state else { return };
        if peer.status == PeerStatus::Present {
            joined.waits_until = None;
        } else {
            joined.wait(now);
            joined.owes_refresh = true;
            self.bound.parted += 1;
        }
        self.outputs.push_back(Output::Send(peer.encode((self.shared.ids)())));
    }

    /// The directory or the shell ends the connection: superseded, restarting, or a limit.
    pub(crate) fn close(&mut self, closing: Closing) {
        self.end(Ending::Told(closing));
    }

    /// When [`Connection::handle_timeout`] is to be called next; `None` once the connection has ended.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = match &self.state {
            State::Unjoined | State::Joining(_) => Some(self.accepted + JOIN_TIMEOUT),
            State::Joined(joined) => joined.waits_until,
            State::Ended => return None,
        };
        let silent = self.silent_at();
        Some(due.map_or(silent, |due| due.min(silent)))
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let over = match &self.state {
            State::Unjoined | State::Joining(_) if now >= self.accepted + JOIN_TIMEOUT => {
                Some(Ending::NotJoined)
            }
            State::Joined(joined) if joined.waits_until.is_some_and(|until| now >= until) => {
                Some(Ending::LifetimeOver)
            }
            State::Ended => return,
            _ => None,
        };
        if let Some(ending) = over {
            self.end(ending);
        } else if now >= self.silent_at() {
            if self.pinged.is_some() {
                return self.end(Ending::Idle);
            }
            self.pinged = Some(now);
            self.outputs.push_back(Output::Send(messages::ping((self.shared.ids)())));
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether, since the last call, somebody claimed to be a user and was not (401): whoever keeps the relay should know.
    pub(crate) fn take_rejected(&mut self) -> bool {
        std::mem::take(&mut self.rejected)
    }

    /// When it has been silent for too long: to be left unasked, or to be left alone.
    fn silent_at(&self) -> Instant {
        self.pinged.map_or(self.heard + SILENCE_TIMEOUT, |pinged| pinged + PING_TIMEOUT)
    }

    fn answer_binding(&mut self, now: Instant, request: &Message<'_>) {
        match checks::understood(request) {
            Ok(()) => self.outputs.push_back(Output::Send(messages::pong(request.id, self.remote))),
            Err(fault) => self.refuse(now, request, fault, None),
        }
    }

    fn join(&mut self, now: Instant, wall: u64, request: &Message<'_>) {
        let account = match self.authenticate(now, wall, request) {
            Ok(account) => account,
            Err(fault) => return self.refuse(now, request, fault, None),
        };
        let join = checks::read_join(request).and_then(|join| match self.state {
            State::Unjoined => Ok(join),
            _ => Err(Fault::of(437)),
        });
        let Join { pair, side, instance, lifetime } = match join {
            Ok(join) => join,
            Err(fault) => return self.refuse(now, request, fault, Some(&account.key)),
        };
        self.outputs.push_back(Output::Join(JoinRequest {
            user: account.user.clone(),
            pair,
            side,
            instance,
        }));
        tracing::debug!(peer = %self.remote, user = %account.user, "a side asks to join");
        let lifetime = self.granted(lifetime);
        self.state = State::Joining(Pending { id: request.id, account, lifetime });
    }

    fn refresh(&mut self, now: Instant, wall: u64, request: &Message<'_>) {
        let Account { user, key } = match self.authenticate(now, wall, request) {
            Ok(account) => account,
            Err(fault) => return self.refuse(now, request, fault, None),
        };
        let granted = checks::read_refresh(request).and_then(|refresh| {
            let lifetime = self.granted(refresh.lifetime);
            match &mut self.state {
                State::Joined(joined) if joined.user == user => Ok(joined.refresh(now, lifetime)),
                State::Joined(_) => Err(Fault::of(441)),
                _ => Err(Fault::of(437)),
            }
        });
        match granted {
            Err(fault) => self.refuse(now, request, fault, Some(&key)),
            Ok(granted) => {
                self.outputs.push_back(Output::Send(granted.encode(Method::REFRESH, request.id, &key)));
                if granted.lifetime == 0 {
                    self.end(Ending::Left);
                }
            }
        }
    }

    fn authenticate(&self, now: Instant, wall: u64, request: &Message<'_>) -> Result<Account, Fault> {
        let nonces = &self.shared.nonces;
        let is_fresh = |nonce: &[u8]| nonces.is_fresh(self.bound, self.age(now), nonce);
        checks::authenticate(&self.shared.accounts(), wall, is_fresh, request)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.accepted)
    }

    /// The LIFETIME that is granted when this one is asked for, in seconds.
    fn granted(&self, asked: Option<u32>) -> u32 {
        asked.unwrap_or(DEFAULT_LIFETIME).min(self.shared.max_lifetime.clamp(1, MAX_LIFETIME))
    }

    /// Answers with an error, sealed if the request was authenticated; 401 and 438 with a new nonce.
    fn refuse(&mut self, now: Instant, request: &Message<'_>, fault: Fault, key: Option<&Key>) {
        let Fault { code, unknown } = fault;
        self.rejected |= code == 401 && request.has_sha256();
        let challenge = matches!(code, 401 | 438).then(|| {
            let nonce = self.shared.nonces.nonce(self.bound, self.age(now));
            Challenge::new(self.shared.accounts().realm(), nonce)
        });
        tracing::debug!(peer = %self.remote, request = request.method.name(), code, "a side is refused");
        let refusal = Refusal { challenge, unknown, ..Refusal::new(code) };
        self.outputs.push_back(Output::Send(refusal.encode(request.method, request.id, key)));
        // Another Join too, and each guess at a password.
        let is_first = request.method == Method::JOIN
            && !std::mem::replace(&mut self.is_challenged, true)
            && !request.has_sha256();
        if !is_first && (request.method == Method::JOIN || code == 401 && request.has_sha256()) {
            self.count_refused();
        }
    }

    fn count_refused(&mut self) {
        self.refused += 1;
        if self.refused >= MAX_REFUSED_JOINS {
            self.end(Ending::TooManyRefused);
        }
    }

    /// The one way to the end.
    fn end(&mut self, ending: Ending) {
        if matches!(self.state, State::Ended) {
            return;
        }
        self.state = State::Ended;
        if let Some(closing) = ending.closing() {
            self.outputs.push_back(Output::Send(closing.encode((self.shared.ids)())));
        }
        self.outputs.push_back(Output::Close(ending));
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod life_tests;
#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
