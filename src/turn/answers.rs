//! What the server says, and what follows from it: the other half of [`Allocation`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::allocation::{Allocation, CREDENTIALS_TIMEOUT, Granted, Output, State};
use super::connections::Attempt;
use super::error::TurnError;
use super::transactions::{Pending, Request, seal_request};
use crate::stun::{Class, Family, Method, Received, Relayed, Seal};

/// A server that has answered to Allocate or Refresh knows the allocation, or will say no again, and is not asked for
/// this long.
const KNOWN_FOR: Duration = Duration::from_secs(10);

impl Allocation {
    /// One whole STUN message from the server. What cannot be read, or answers nothing, has no effect. Says
    /// whether it had one.
    pub(crate) fn handle_message(&mut self, now: Instant, bytes: &[u8]) -> bool {
        if self.state == State::Ended {
            return false;
        }
        let Ok(message) = Received::decode(bytes) else { return false };
        let used = match (message.class, message.method) {
            (Class::Success | Class::Error, _) => self.on_response(now, &message),
            // Some servers send the attempt as a request.
            (Class::Indication | Class::Request, Method::CONNECTION_ATTEMPT) => {
                self.on_attempt(now, &message)
            }
            _ => false,
        };
        self.pump(now);
        used
    }

    fn on_response(&mut self, now: Instant, message: &Received<'_>) -> bool {
        let has_account = self.login.has_account();
        let trusting = self.trust_unsealed_bind;
        let Some(pending) = self.transactions.find(message.id, message.method) else { return false };
        if !is_believed(message, &pending.request, pending.seal.as_ref(), has_account, trusting) {
            let code = message.error.as_ref().map_or(0, |(code, _)| *code);
            pending.unbelieved = Some(code);
            if code == 400 && pending.bare.is_none() {
                pending.bare = Some(true);
                let pending = self.transactions.take(message.id).and_then(|it| self.still_wanted(it));
                pending.into_iter().for_each(|pending| self.transactions.ask_again(pending));
            }
            return false;
        }
        let Some(pending) = self.transactions.take(message.id) else { return false };
        self.heard = now;
        let code = message.error.as_ref().map_or(0, |(code, _)| *code);
        tracing::debug!(request = pending.request.name(), code, "the TURN server answers");
        if !matches!(code, 401 | 438) {
            self.transactions.nonce_is_good();
        }
        match &message.error {
            None if message.class == Class::Success => self.on_success(now, &pending, message),
            Some((401 | 438, _)) => self.on_challenge(now, pending, message),
            Some((300, _)) if matches!(pending.request, Request::Allocate { .. }) => {
                match message.alternate_server {
                    Some(to) => self.end(TurnError::Redirected { to }),
                    None => self.fail(now, &pending, bad(&pending.request, "300 without ALTERNATE-SERVER")),
                }
            }
            Some((code, reason)) => {
                let (code, reason) = (*code, reason.clone());
                let error = TurnError::Refused { request: pending.request.name(), code, reason };
                self.fail(now, &pending, error);
            }
            None => self.fail(now, &pending, bad(&pending.request, "an error without ERROR-CODE")),
        }
        true
    }

    fn on_challenge(&mut self, now: Instant, mut pending: Pending, by: &Received<'_>) {
        let name = pending.request.name();
        pending.bare = pending.bare.map(|_| false);
        let code = by.error.as_ref().map_or(0, |(code, _)| *code);
        // Other credentials may have come since it was sealed: they have not been refused yet.
        let refused = pending.seal.as_ref().filter(|seal| code == 401 && self.login.uses(seal));
        if let Some(seal) = refused {
            // The nonce we used, and refused all the same: it is the password, or the name.
            if pending.refused_once || by.nonce.as_ref() == Some(&seal.nonce) {
                return self.wrong_credentials(now, pending);
            }
            pending.refused_once = true;
        } else if (code == 438 || pending.seal.is_some())
            && let Err(error) = pending.count_challenge(code)
        {
            return self.fail(now, &pending, error);
        }
        // Told to deallocate before the server knows us: there is nothing to undo.
        let unknown = matches!(pending.request, Request::Allocate { .. }) && pending.seal.is_none();
        if unknown && matches!(self.state, State::Deallocating { .. }) {
            return self.end(TurnError::Told);
        }
        match self.login.challenged(name, by) {
            Ok(()) => {
                if let Some(pending) = self.still_wanted(pending) {
                    self.transactions.challenged(now, pending);
                }
            }
            // Another server has taken the place of the one that made the allocation.
            Err(error) if matches!(pending.request, Request::Refresh { lifetime: 1.. }) => self.end(error),
            Err(error) => self.fail(now, &pending, error),
        }
    }

    fn wrong_credentials(&mut self, now: Instant, mut pending: Pending) {
        let user = self.login.user();
        if !self.can_ask || pending.asked || matches!(self.state, State::Deallocating { .. }) {
            let error = TurnError::Unauthorized { request: pending.request.name(), user };
            return self.fail(now, &pending, error);
        }
        pending.asked = true;
        pending.refused_once = false;
        self.parked.push(pending);
        if self.parked_until.is_none() {
            self.parked_until = Some(now + CREDENTIALS_TIMEOUT + Duration::from_secs(1));
            let (rejected, realm) = (self.login.whole_user(), self.login.realm());
            self.output(Output::WantCredentials { rejected, realm });
        }
    }

    fn on_success(&mut self, now: Instant, pending: &Pending, message: &Received<'_>) {
        if pending.seal.is_some() {
            self.confirmed = self.confirmed.max(Some(pending.sent));
        }
        let unknown = message.unknown_required.first().map(|kind| not_understood(*kind));
        match (&pending.request, unknown) {
            (Request::Refresh { lifetime: 0 }, _) => return self.end(TurnError::Told),
            (Request::Allocate { .. }, unknown) => return self.on_allocated(now, pending, message, unknown),
            (request, Some(why)) => return self.fail(now, pending, bad(request, why)),
            (request, None) => self.transactions.granted(now, request),
        }
        match &pending.request {
            Request::Refresh { .. } => match message.lifetime {
                Some(0) => self.end(TurnError::AllocationLost),
                Some(lifetime) => {
                    self.known = now;
                    self.refreshed(now, Duration::from_secs(lifetime.into()));
                }
                None => self.fail(now, pending, bad(&pending.request, "success without LIFETIME")),
            },
            Request::CreatePermission { peers } => {
                let peers = self.permissions.granted(now, peers);
                if !peers.is_empty() {
                    self.output(Output::Permitted { peers });
                }
            }
            Request::ChannelBind { channel, peer } => {
                let is_new = self.channels.bound(now, *peer);
                if self.channels.is_wanted(*peer) && self.permissions.granted_by_channel(now, peer.ip()) {
                    self.output(Output::Permitted { peers: vec![peer.ip()] });
                }
                if is_new {
                    self.output(Output::ChannelBound { channel: *channel, peer: *peer });
                }
            }
            Request::Connect { key, .. } => match message.connection_id {
                Some(id) => self.on_connected(now, *key, id),
                None => self.fail(now, pending, bad(&pending.request, "success without CONNECTION-ID")),
            },
            // Seen to above, or on data connections.
            Request::Allocate { .. } | Request::ConnectionBind { .. } => {}
        }
    }

    fn on_allocated(&mut self, now: Instant, pending: &Pending, by: &Received<'_>, unknown: Option<String>) {
        let is_other = |relayed: SocketAddr| self.family.is_some_and(|family| !is_of(family, relayed.ip()));
        let granted = match (unknown, by.xor_relayed, by.xor_mapped, by.lifetime) {
            (Some(why), ..) => Err(why),
            (_, None, ..) => Err("success without XOR-RELAYED-ADDRESS".into()),
            (_, _, None, _) => Err("success without XOR-MAPPED-ADDRESS".into()),
            (_, _, _, None | Some(0)) => Err("success without a LIFETIME".into()),
            (_, Some(relayed), ..) if is_other(relayed) => {
                Err("the relayed address is of another family than was asked for".into())
            }
            (_, Some(relayed), Some(mapped), Some(lifetime)) => Ok((relayed, mapped, lifetime)),
        };
        match granted {
            Ok(_) if matches!(self.state, State::Deallocating { .. }) => {
                self.transactions.ask(now, Request::Refresh { lifetime: 0 });
            }
            Ok((relayed, mapped, lifetime)) => {
                let lifetime = Duration::from_secs(lifetime.into());
                let expires = now + lifetime;
                self.state = State::Allocated(Granted { relayed, mapped, expires, refresh: None });
                self.known = now;
                self.refreshed(now, lifetime);
                self.output(Output::Allocated { relayed, mapped, lifetime });
            }
            Err(why) => {
                self.leave(pending);
                self.end(bad(&pending.request, why));
            }
        }
    }

    /// What the server holds for us is of no use to us; it need not keep it. No answer is awaited.
    fn leave(&mut self, allocate: &Pending) {
        let delete = Request::Refresh { lifetime: 0 };
        if let Ok(bytes) = seal_request(&delete, self.ids.next(), allocate.seal.as_deref()) {
            self.output(Output::Send(bytes));
        }
    }

    /// A request came to nothing.
    pub(super) fn fail(&mut self, now: Instant, pending: &Pending, error: TurnError) {
        if self.state == State::Ended {
            return;
        }
        let request = &pending.request;
        let is_allocate = matches!(request, Request::Allocate { .. });
        match &error {
            // The answer to a first try may have been lost, and this be the answer to a second; or it is what an
            // earlier user of our port has left.
            TurnError::Refused { code: 437, .. } if is_allocate => self.leave(pending),
            TurnError::Refused { code: 437, .. } => return self.end(TurnError::AllocationLost),
            TurnError::Refused { code: 441, .. }
            | TurnError::Unauthorized { .. }
            | TurnError::NoCredentials
            | TurnError::UnusableCredentials(_) => return self.end(error),
            TurnError::NoAnswer { .. } if !self.is_alive(pending) => return self.end(error),
            // It is this request, not the server; but that is to be seen.
            TurnError::NoAnswer { .. } => self.probe(now),
            _ => {}
        }
        let is_refusal = error.is_refusal();
        if is_refusal {
            self.transactions.refused(now, request);
        }
        match request {
            Request::Allocate { .. } | Request::Refresh { lifetime: 0 } => self.end(error),
            Request::Refresh { .. } => {
                if is_refusal {
                    self.known = now;
                }
                self.refresh_refused(now, matches!(error, TurnError::BadAnswer { .. }));
                self.output(Output::RefreshFailed { error });
            }
            Request::CreatePermission { peers } => {
                let is_about_peers = matches!(error, TurnError::Refused { .. });
                let is_bad_request = matches!(error, TurnError::Refused { code: 400, .. });
                let peers = self.permissions.failed(now, peers, is_refusal, is_about_peers);
                if !peers.is_empty() {
                    self.output(Output::PermissionsFailed { peers, error });
                }
                if is_bad_request {
                    self.probe_unless_known(now);
                }
            }
            Request::ChannelBind { peer, .. } => {
                let is_sent = !matches!(error, TurnError::NotSent { .. });
                self.channels.failed(now, *peer, is_refusal);
                self.output(Output::ChannelFailed { peer: *peer, error });
                if is_sent {
                    self.probe_unless_known(now);
                }
            }
            Request::Connect { key, .. } => self.connection_failed(*key, error),
            Request::ConnectionBind { .. } => {}
        }
    }

    /// coturn's answer to CreatePermission and ChannelBind without an allocation is 400. A server that has shown that
    /// it knows ours is asked later.
    fn probe_unless_known(&mut self, now: Instant) {
        let later = self.known + KNOWN_FOR;
        if now >= later {
            self.probe(now);
        } else if let State::Allocated(Granted { refresh: Some(refresh), .. }) = &mut self.state {
            *refresh = later.min(*refresh);
        }
    }

    fn on_attempt(&mut self, now: Instant, message: &Received<'_>) -> bool {
        let (Some(peer), Some(connection)) = (message.xor_peer, message.connection_id) else { return false };
        if self.relayed() != Relayed::Tcp || !matches!(self.state, State::Allocated(_)) {
            return false;
        }
        self.heard = now;
        match self.connections.attempt(now, peer, connection) {
            Attempt::New(key) => {
                self.output(Output::Attempt { key, connection, peer });
                true
            }
            Attempt::Known => false,
            Attempt::Refused => {
                self.output(Output::AttemptRefused { peer });
                true
            }
        }
    }
}

/// Whether an answer is the server's. The challenges 401 and 438 come without integrity, for the server may not
/// know our key, and are believed as far as they go: a new nonce, or a sentence about a wrong password.
fn is_believed(
    message: &Received<'_>,
    request: &Request,
    seal: Option<&Arc<Seal>>,
    has_account: bool,
    trust_unsealed_bind: bool,
) -> bool {
    let code = message.error.as_ref().map(|(code, _)| *code);
    match (seal, code) {
        (_, Some(401 | 438)) => true,
        (Some(seal), _) if message.is_sealed_with(&seal.key, seal.integrity) => true,
        (Some(_), code) => {
            code.is_none() && trust_unsealed_bind && matches!(request, Request::Connect { .. })
        }
        // A server that grants without asking who we are, although we have a password: not ours.
        (None, None) => !has_account,
        (None, Some(_)) => !has_account || matches!(request, Request::Allocate { .. }),
    }
}

pub(super) fn bad(request: &Request, why: impl Into<String>) -> TurnError {
    TurnError::BadAnswer { request: request.name(), why: why.into() }
}

pub(super) fn not_understood(attribute: u16) -> String {
    format!("it holds the attribute {attribute:#06x}, which must be understood and is not")
}

fn is_of(family: Family, ip: std::net::IpAddr) -> bool {
    ip.is_ipv4() == (family == Family::V4)
}
