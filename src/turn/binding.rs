//! Data connections (RFC 6062 §4.3 – §4.5): ConnectionBind, and what comes before the peer's bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::allocation::{Allocation, Output, State};
use super::answers::{bad, not_understood};
use super::connections::{Key, Phase};
use super::error::TurnError;
use super::transactions::{Request, seal_request};
use crate::stun::{Class, Method, Received, Relayed};

/// Nonce and key are good if an answer showed so this short a time ago. A server may let a nonce run out between
/// any two requests, but on a data connection it may answer with a reset.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// The answer to ConnectionBind is at most this long.
const MAX_ANSWER_LEN: usize = 2048;
/// Length of a STUN header.
const HEADER_LEN: usize = 20;

impl Allocation {
    /// Asks the server to connect to a peer.
    ///
    /// # Errors
    /// There is no allocation, it is not for TCP, or there are too many connections.
    pub(crate) fn connect(&mut self, now: Instant, peer: SocketAddr) -> Result<Key, TurnError> {
        if self.granted().is_none() {
            return Err(TurnError::NoAllocation { retrying: self.state() == State::Allocating });
        }
        if self.relayed() == Relayed::Udp {
            return Err(TurnError::WrongTransport { request: "Connect", needed: "a TCP" });
        }
        let key = self.connections.connect(now, peer)?;
        self.transactions.ask(now, Request::Connect { key, peer });
        self.pump(now);
        Ok(key)
    }

    /// The gate lets an attempt in.
    pub(crate) fn accept(&mut self, now: Instant, key: Key) {
        if self.connections.get(key).is_some_and(|connection| matches!(connection.phase, Phase::Asked)) {
            self.connections.dial(now, key);
            self.output(Output::Dial { key });
            // While that is under way.
            if !self.is_confirmed(now) {
                self.probe(now);
                self.pump(now);
            }
        }
    }

    /// The gate does not. Nothing is sent: the server drops the peer's connection in time.
    pub(crate) fn reject(&mut self, key: Key) {
        if self.connections.get(key).is_some_and(|connection| matches!(connection.phase, Phase::Asked)) {
            self.connection_failed(key, TurnError::NotAccepted);
        }
    }

    pub(super) fn on_connected(&mut self, now: Instant, key: Key, id: u32) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.id = Some(id);
            self.connections.dial(now, key);
            self.output(Output::Dial { key });
            // The peer may have taken its time.
            if !self.is_confirmed(now) {
                self.probe(now);
            }
        }
    }

    /// The data connection is up.
    pub(crate) fn data_opened(&mut self, now: Instant, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && matches!(connection.phase, Phase::Dialing)
        {
            connection.phase = Phase::Opened { asked: false };
            self.pump(now);
        }
    }

    fn is_confirmed(&self, now: Instant) -> bool {
        self.login.seal().is_none() || self.confirmed.is_some_and(|at| now < at + CONFIRMED_FOR)
    }

    /// Sends ConnectionBind on all data connections that are up, if nonce and key are known to be good; else asks
    /// the server first, once for each.
    pub(super) fn bind_opened(&mut self, now: Instant) {
        let is_refresh = |request: &Request| matches!(request, Request::Refresh { .. });
        for key in self.connections.opened() {
            let confirmed = self.is_confirmed(now);
            if !confirmed && self.transactions.has(is_refresh) {
                continue;
            }
            match self.connections.get_mut(key).map(|connection| &mut connection.phase) {
                Some(Phase::Opened { asked }) if !confirmed && !*asked => {
                    *asked = true;
                    self.probe(now);
                }
                _ => self.send_bind(key),
            }
        }
    }

    fn send_bind(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key).and_then(|connection| connection.id) else { return };
        let (id, seal) = (self.ids.next(), self.login.seal().cloned());
        match seal_request(&Request::ConnectionBind { key, connection }, id, seal.as_deref()) {
            Ok(bytes) => {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.phase = Phase::Binding { id, seal };
                }
                self.output(Output::SendData { key, bytes });
            }
            Err(error) => self.connection_failed(key, error),
        }
    }

    /// What has come on a data connection and was not used before. Says how much of it is used now: what is behind
    /// that when [`Output::Bound`] comes is the peer's.
    pub(crate) fn handle_data(&mut self, now: Instant, key: Key, bytes: &[u8]) -> usize {
        let Some(connection) = self.connections.get(key) else { return bytes.len() };
        let Phase::Binding { id, seal } = connection.phase.clone() else { return 0 };
        let Some(len) =
            bytes.get(2..4).map(|len| HEADER_LEN + usize::from(u16::from_be_bytes([len[0], len[1]])))
        else {
            return 0;
        };
        let request = Request::ConnectionBind { key, connection: 0 };
        let is_stun = bytes[0] < 0x40 && len <= MAX_ANSWER_LEN && len.is_multiple_of(4);
        if is_stun && bytes.len() < len {
            return 0;
        }
        let message = is_stun.then(|| Received::decode(&bytes[..len]).ok()).flatten();
        let message = message.filter(|it| it.method == Method::CONNECTION_BIND && it.id == id);
        let Some(message) = message else {
            self.connection_failed(key, bad(&request, "not the answer that was asked for"));
            return bytes.len();
        };
        let code = message.error.as_ref().map(|(code, _)| *code);
        let sealed = seal.as_ref().is_none_or(|seal| message.is_sealed_with(&seal.key, seal.integrity));
        match (message.class, code) {
            (Class::Success, None) if !message.unknown_required.is_empty() => {
                self.connection_failed(key, bad(&request, not_understood(message.unknown_required[0])));
            }
            (Class::Success, None) if sealed || self.trust_unsealed_bind => self.on_bound(key),
            (Class::Error, Some(code @ (401 | 438))) => self.on_bind_challenged(now, key, code, &message),
            // On a connection of its own nobody but the server can answer, or all is lost anyway.
            (Class::Error, Some(code)) => {
                let reason = message.error.map(|(_, reason)| reason).unwrap_or_default();
                let error = TurnError::Refused { request: "ConnectionBind", code, reason };
                self.connection_failed(key, error);
                if code == 437 {
                    self.probe(now);
                    self.pump(now);
                }
            }
            (Class::Success, None) => {
                let why =
                    "success without a valid MESSAGE-INTEGRITY (the option trust_unsealed_bind accepts it)";
                self.connection_failed(key, bad(&request, why));
            }
            _ => self.connection_failed(key, bad(&request, "neither success nor an error")),
        }
        len
    }

    fn on_bound(&mut self, key: Key) {
        self.connections.bound(key);
        if let Some(connection) = self.connections.get(key)
            && let Some(id) = connection.id
        {
            let peer = connection.peer;
            self.output(Output::Bound { key, connection: id, peer });
        }
    }

    fn on_bind_challenged(&mut self, now: Instant, key: Key, code: u16, by: &Received<'_>) {
        let counted = self.connections.get_mut(key).map(|connection| connection.count_challenge(code));
        let counted = counted.unwrap_or(Ok(()));
        match counted.and_then(|()| self.login.challenged("ConnectionBind", by)) {
            Ok(()) => self.send_bind(key),
            Err(error) => self.connection_failed(key, error),
        }
        self.pump(now);
    }

    /// A data connection could not be made, or ended before it was bound.
    pub(crate) fn data_failed(&mut self, key: Key, why: String) {
        let is_bound = |phase: &Phase| matches!(phase, Phase::Bound);
        if self.connections.get(key).is_some_and(|connection| !is_bound(&connection.phase)) {
            self.forget_connect(key);
            self.connection_failed(key, TurnError::DataConnection { why });
        }
    }

    /// A bound connection has ended.
    pub(crate) fn stream_ended(&mut self, key: Key) {
        self.connections.remove(key);
    }

    /// Nobody waits for this Connect any more, also where it waits for other credentials.
    pub(super) fn forget_connect(&mut self, key: Key) {
        let is_it = |request: &Request| matches!(request, Request::Connect { key: it, .. } if *it == key);
        self.transactions.forget(is_it);
        self.parked.retain(|pending| !is_it(&pending.request));
    }

    pub(super) fn connection_failed(&mut self, key: Key, error: TurnError) {
        if let Some(connection) = self.connections.remove(key) {
            self.output(Output::ConnectionFailed { key, peer: connection.peer, error });
        }
    }
}
