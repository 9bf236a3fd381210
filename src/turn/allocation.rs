//! The pure core of the TURN client: one value is the life of one allocation on one control connection.
//!
//! It takes messages and the time, and gives back [`Output`]s and the next deadline. It begins with Allocate and
//! ends, whatever the cause, with exactly one [`Output::Ended`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::alive::{CHECK_INTERVAL, UNANSWERED_TIMEOUT};
use super::channels::{self, Channels};
use super::connections::{Connections, Key};
use super::error::TurnError;
use super::login::Login;
use super::permissions::{self, Permissions};
use super::transactions::{Ids, Pending, Request, Transactions};
use crate::credentials::UserPassword;
use crate::stun::{Family, Relayed};

/// The allocation is refreshed this long before its end, or halfway through where that is sooner.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// A Refresh that the server refused is tried again after this, or in half of what is left, but not before …
const REFRESH_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// … this, and where its answer was of no use, which took several requests, twice as late.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// From the order to deallocate to the end, whatever the server answers.
pub(crate) const DEALLOCATE_TIMEOUT: Duration = Duration::from_secs(1);
/// Whoever gives credentials has this long.
pub(crate) const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
/// What an allocation is made from.
#[derive(Debug)]
pub(crate) struct Setup {
    /// The control connection is TCP: what is sent arrives, or the connection ends.
    pub(crate) reliable: bool,
    pub(crate) relayed: Relayed,
    pub(crate) family: Option<Family>,
    /// Seconds to ask for.
    pub(crate) lifetime: Option<u32>,
    pub(crate) account: Option<UserPassword>,
    /// There is somebody who can be asked for other credentials.
    pub(crate) can_ask: bool,
    /// Success of Connect and ConnectionBind is believed without integrity (pion, icey).
    pub(crate) trust_unsealed_bind: bool,
    /// To be installed as soon as the allocation is there.
    pub(crate) permissions: Vec<IpAddr>,
    pub(crate) channels: Vec<SocketAddr>,
    /// Connections are numbered from here.
    pub(crate) first_key: u64,
    pub(crate) ids: Ids,
}

/// What the shell is to do, or to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// To the server on the control connection: one datagram, or bytes of the stream.
    Send(Vec<u8>),
    /// To the server on a data connection.
    SendData {
        key: Key,
        bytes: Vec<u8>,
    },
    /// The server has made the allocation. Addresses as the server sees them.
    Allocated {
        relayed: SocketAddr,
        mapped: SocketAddr,
        lifetime: Duration,
    },
    /// The server did not prolong the allocation, which goes on until it ends.
    RefreshFailed {
        error: TurnError,
    },
    /// These may send to us now, and might not before.
    Permitted {
        peers: Vec<IpAddr>,
    },
    PermissionsFailed {
        peers: Vec<IpAddr>,
        error: TurnError,
    },
    ChannelBound {
        channel: u16,
        peer: SocketAddr,
    },
    ChannelFailed {
        peer: SocketAddr,
        error: TurnError,
    },
    /// The channel is not to be used: it ran out, or its peer is forbidden.
    ChannelClosed {
        peer: SocketAddr,
    },
    /// A peer wants to connect: the gate is to be asked.
    Attempt {
        key: Key,
        connection: u32,
        peer: SocketAddr,
    },
    /// A peer wants to connect, and there is no room for it.
    AttemptRefused {
        peer: SocketAddr,
    },
    /// A data connection to the server is to be made.
    Dial {
        key: Key,
    },
    /// The data connection carries the peer's bytes from here on.
    Bound {
        key: Key,
        connection: u32,
        peer: SocketAddr,
    },
    /// It came to nothing; a data connection, if there is one, is to be closed.
    ConnectionFailed {
        key: Key,
        peer: SocketAddr,
        error: TurnError,
    },
    /// Other credentials are wanted: the server refuses `rejected`.
    WantCredentials {
        rejected: String,
        realm: Option<String>,
    },
    /// The last output.
    Ended {
        error: TurnError,
    },
}

/// Where the allocation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Allocating,
    Allocated(Granted),
    Deallocating { until: Instant },
    Ended,
}

/// What the server has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) relayed: SocketAddr,
    pub(crate) mapped: SocketAddr,
    pub(crate) expires: Instant,
    /// `None` while a Refresh is under way.
    pub(crate) refresh: Option<Instant>,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(super) state: State,
    relayed: Relayed,
    pub(super) family: Option<Family>,
    pub(super) lifetime: Option<u32>,
    pub(super) reliable: bool,
    pub(super) can_ask: bool,
    pub(super) trust_unsealed_bind: bool,
    pub(super) login: Login,
    pub(super) transactions: Transactions,
    pub(super) permissions: Permissions,
    pub(super) channels: Channels,
    pub(super) connections: Connections,
    pub(super) ids: Ids,
    /// Requests that wait for other credentials.
    pub(super) parked: Vec<Pending>,
    pub(super) parked_until: Option<Instant>,
    /// When the request was sent whose answer last showed that nonce and key are good.
    pub(super) confirmed: Option<Instant>,
    /// When the server was last heard, and when anything was last sent to it.
    pub(super) heard: Instant,
    pub(super) sent: Instant,
    /// When the server last answered whether it knows the allocation.
    pub(super) known: Instant,
    pub(super) data_sent: Option<Instant>,
    /// Data without an answer for so long makes the server be asked.
    pub(super) patience: Duration,
    pub(super) next_check: Instant,
    pub(super) unreachable: (u32, Option<Instant>),
    outputs: VecDeque<Output>,
}

impl Allocation {
    /// Begins: the first output is the Allocate request.
    pub(crate) fn new(now: Instant, setup: Setup) -> Self {
        let mut allocation = Self {
            state: State::Allocating,
            relayed: setup.relayed,
            family: setup.family,
            lifetime: setup.lifetime,
            reliable: setup.reliable,
            can_ask: setup.can_ask,
            trust_unsealed_bind: setup.trust_unsealed_bind,
            login: Login::new(setup.account),
            transactions: Transactions::new(setup.reliable),
            permissions: Permissions::default(),
            channels: Channels::default(),
            connections: Connections::starting_at(setup.first_key),
            ids: setup.ids,
            parked: Vec::new(),
            parked_until: None,
            confirmed: None,
            heard: now,
            sent: now,
            known: now,
            data_sent: None,
            patience: UNANSWERED_TIMEOUT,
            next_check: now + CHECK_INTERVAL,
            unreachable: (0, None),
            outputs: VecDeque::new(),
        };
        for peer in setup.permissions {
            allocation.permissions.want(now, peer);
        }
        for peer in setup.channels.into_iter().filter(|_| setup.relayed == Relayed::Udp) {
            allocation.channels.want(now, peer);
        }
        let Self { relayed, family, lifetime, .. } = allocation;
        allocation.transactions.ask(now, Request::Allocate { relayed, family, lifetime });
        allocation.pump(now);
        allocation
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn granted(&self) -> Option<Granted> {
        match self.state {
            State::Allocated(granted) => Some(granted),
            _ => None,
        }
    }

    pub(crate) fn relayed(&self) -> Relayed {
        self.relayed
    }

    pub(crate) fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.channels
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// The next thing to do or to tell; to be called until there is none after every other call.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Ended => return None,
            State::Allocating => None,
            State::Deallocating { until } => Some(until),
            State::Allocated(granted) => {
                let due = [self.permissions.poll_timeout(), self.channels.poll_timeout(), granted.refresh];
                let room = self.transactions.poll_room().filter(|_| self.parked_until.is_none());
                due.into_iter().chain([room]).flatten().chain([granted.expires, self.next_check]).min()
            }
        };
        let all = [own, self.transactions.poll_timeout(), self.connections.poll_timeout(), self.parked_until];
        all.into_iter().flatten().min()
    }

    /// Installs permissions, at once or as soon as the allocation is there, and keeps them. Says which of them are
    /// installed already.
    ///
    /// # Errors
    /// There are too many, or it has ended.
    pub(crate) fn permit(&mut self, now: Instant, peers: &[IpAddr]) -> Result<Vec<IpAddr>, TurnError> {
        if self.state == State::Ended {
            return Err(TurnError::NoAllocation { retrying: false });
        }
        for peer in peers {
            if !self.permissions.want(now, *peer) {
                let limit = super::permissions::MAX_PERMISSIONS;
                return Err(TurnError::TooMany { what: "permissions", limit });
            }
        }
        self.pump(now);
        Ok(peers.iter().copied().filter(|peer| self.permissions.is_granted(now, *peer)).collect())
    }

    /// Lets permissions, and channels to these addresses, run out.
    pub(crate) fn forbid(&mut self, now: Instant, peers: &[IpAddr]) {
        for peer in peers {
            self.permissions.forbid(*peer);
            for peer in self.channels.forbid(now, *peer) {
                self.output(Output::ChannelClosed { peer });
            }
            self.transactions.withdraw(*peer);
        }
    }

    /// Binds a channel, at once or as soon as the allocation is there, and keeps it. Says its number if it is
    /// bound already.
    ///
    /// # Errors
    /// There are too many, the allocation is not for UDP, or it has ended.
    pub(crate) fn bind_channel(&mut self, now: Instant, peer: SocketAddr) -> Result<Option<u16>, TurnError> {
        if self.relayed == Relayed::Tcp {
            return Err(TurnError::WrongTransport { request: "ChannelBind", needed: "a UDP" });
        }
        if self.state == State::Ended {
            return Err(TurnError::NoAllocation { retrying: false });
        }
        if self.channels.want(now, peer).is_none() {
            return Err(TurnError::TooMany { what: "channels", limit: super::channels::MAX_CHANNELS });
        }
        self.pump(now);
        let bound = self.channels.all_bound(now);
        Ok(bound.into_iter().find(|(_, bound)| *bound == peer).map(|(channel, _)| channel))
    }

    /// Deletes the allocation on the server; ended within [`DEALLOCATE_TIMEOUT`].
    pub(crate) fn deallocate(&mut self, now: Instant) {
        match self.state {
            State::Allocated(_) => {
                self.transactions.forget(|_| true);
                self.transactions.ask(now, Request::Refresh { lifetime: 0 });
            }
            // An Allocate that the server may grant is waited for, and then undone.
            State::Allocating
                if self.parked.is_empty() && (self.login.seal().is_some() || !self.login.has_account()) => {}
            State::Allocating => return self.end(TurnError::Told),
            State::Deallocating { .. } | State::Ended => return,
        }
        self.parked.clear();
        self.parked_until = None;
        self.state = State::Deallocating { until: now + DEALLOCATE_TIMEOUT };
        self.pump(now);
    }

    /// The control connection is gone, or could not be used.
    pub(crate) fn control_lost(&mut self, error: TurnError) {
        self.end(error);
    }

    /// The answer to [`Output::WantCredentials`].
    pub(crate) fn credentials(&mut self, now: Instant, account: Option<UserPassword>) {
        let Some(account) = account else { return self.no_other_credentials(now) };
        self.parked_until = None;
        if let Err(error) = self.login.set_account(account) {
            return self.end(error);
        }
        while let Some(pending) = self.parked.pop() {
            self.still_wanted(pending).into_iter().for_each(|pending| self.transactions.ask_again(pending));
        }
        self.pump(now);
    }

    /// A request that is to go out once more, without what has been forbidden meanwhile.
    pub(super) fn still_wanted(&self, mut pending: Pending) -> Option<Pending> {
        let is_wanted = match &mut pending.request {
            Request::CreatePermission { peers } => {
                peers.retain(|peer| self.permissions.is_wanted(*peer));
                !peers.is_empty()
            }
            Request::ChannelBind { peer, .. } => self.channels.is_wanted(*peer),
            _ => true,
        };
        is_wanted.then_some(pending)
    }

    pub(super) fn no_other_credentials(&mut self, now: Instant) {
        self.parked_until = None;
        let user = self.login.user();
        for pending in std::mem::take(&mut self.parked) {
            let error = TurnError::Unauthorized { request: pending.request.name(), user: user.clone() };
            self.fail(now, &pending, error);
        }
        self.pump(now);
    }

    pub(super) fn refreshed(&mut self, now: Instant, lifetime: Duration) {
        if let State::Allocated(granted) = &mut self.state {
            granted.expires = now + lifetime;
            granted.refresh = Some(now + lifetime - REFRESH_BEFORE.min(lifetime / 2));
        }
    }

    pub(super) fn refresh_refused(&mut self, now: Instant, is_answer_bad: bool) {
        if let State::Allocated(granted) = &mut self.state {
            let left = granted.expires.saturating_duration_since(now);
            let least = if is_answer_bad { 2 * MIN_REFRESH_INTERVAL } else { MIN_REFRESH_INTERVAL };
            granted.refresh = Some(now + REFRESH_RETRY_INTERVAL.min(left / 2).max(least));
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let mut given_up = Vec::new();
        for bytes in self.transactions.handle_timeout(now, &mut given_up) {
            self.send(now, bytes);
        }
        for pending in given_up {
            let error = pending.given_up(now);
            tracing::debug!(%error, "a request to the TURN server is given up");
            self.fail(now, &pending, error);
        }
        for (key, connection, error) in self.connections.take_late(now) {
            self.forget_connect(key);
            self.output(Output::ConnectionFailed { key, peer: connection.peer, error });
        }
        if self.parked_until.is_some_and(|until| until <= now) {
            self.no_other_credentials(now);
        }
        match self.state {
            State::Deallocating { until } if until <= now => self.end(TurnError::Told),
            State::Allocated(granted) if granted.expires <= now => self.end(TurnError::AllocationLost),
            State::Allocated(granted) => self.keep(now, granted),
            _ => {}
        }
        self.pump(now);
    }

    /// What is due while the allocation is there.
    fn keep(&mut self, now: Instant, granted: Granted) {
        if granted.refresh.is_some_and(|at| at <= now) {
            self.state = State::Allocated(Granted { refresh: None, ..granted });
            self.probe(now);
        }
        for peer in self.channels.take_lapsed(now) {
            self.output(Output::ChannelClosed { peer });
        }
        self.check(now);
    }

    pub(super) fn send(&mut self, now: Instant, bytes: Vec<u8>) {
        self.sent = now;
        self.output(Output::Send(bytes));
    }

    /// Sends what may be sent.
    pub(super) fn pump(&mut self, now: Instant) {
        if let State::Allocated(_) = self.state {
            for permissions::Due { peers, rank } in self.permissions.take_due(now) {
                self.transactions.ask_ranked(now, Request::CreatePermission { peers }, rank);
            }
            for channels::Due { channel, peer, rank } in self.channels.take_due(now) {
                self.transactions.ask_ranked(now, Request::ChannelBind { channel, peer }, rank);
            }
            self.bind_opened(now);
        }
        if self.parked_until.is_some() {
            return;
        }
        while self.state != State::Ended
            && let Some(sealed) = self.transactions.poll_send(now, &mut self.ids, self.login.seal())
        {
            match sealed {
                Ok(bytes) => self.send(now, bytes),
                Err((pending, error)) => self.fail(now, &pending, error),
            }
        }
    }

    /// The one road out.
    pub(super) fn end(&mut self, error: TurnError) {
        if self.state == State::Ended {
            return;
        }
        // Told to, and whatever came in between: that is what was wanted.
        let told = matches!(self.state, State::Deallocating { .. });
        let error = if told { TurnError::Told } else { error };
        self.state = State::Ended;
        self.transactions.forget(|_| true);
        self.parked.clear();
        self.parked_until = None;
        self.permissions = Permissions::default();
        self.channels = Channels::default();
        for (key, connection) in self.connections.clear() {
            if !matches!(connection.phase, super::connections::Phase::Bound) {
                let (peer, error) = (connection.peer, error.clone());
                self.output(Output::ConnectionFailed { key, peer, error });
            }
        }
        self.output(Output::Ended { error });
    }
}

#[cfg(test)]
#[path = "allocation_tests.rs"]
mod tests;
