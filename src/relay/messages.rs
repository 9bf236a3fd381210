//! The messages of the relay's protocol, to and from bytes, for both ends of a connection: STUN (RFC 8489) with three
//! methods and six attributes of our own. Between them stands ChannelData (RFC 8656 §12.4).
//!
//! | message | class | direction |
//! |---|---|---|
//! | Join | request | side → relay: "with whoever has the same PAIR-ID" |
//! | Refresh | request | side → relay: extends the wait; LIFETIME 0 leaves |
//! | Binding | request | either way: are you there? |
//! | Peer | indication | relay → side: the other side has come, or gone |
//! | Closing | indication | relay → side: why the connection ends; side → relay: it heard nothing any more |
//!
//! Every request but Binding, and every response behind the authentication, ends with MESSAGE-INTEGRITY-SHA256.
//! Indications carry none.

use std::net::SocketAddr;
use std::time::Duration;

use super::attributes::{
    INSTANCE, PAIR_ID, PEER_STATUS, REASON, SIDE_ID, instance_of, lifetime_of, name_of, retry_after_of,
    side_of, status_of, text_of, u32_of, understood, with_bytes, with_retry_after, with_u32,
};
use crate::credentials::UserPassword;
use crate::stun::{
    self, Algorithm, Class, Draft, Integrity, Key, Message, Method, Seal, StunError, TransactionId, User, raw,
};
use crate::tcp::channel_data::{self, NotTurn};

pub(crate) use super::attributes::{Instance, Malformed, PairId, PeerStatus, Reason, SideId};

/// The longest STUN message: its header, and 2 KiB.
pub(crate) const MAX_STUN_LEN: usize = 20 + 2048;
/// PASSWORD-ALGORITHMS as the relay offers it: SHA-256, without parameters, and nothing else.
pub(crate) const PASSWORD_ALGORITHMS: [u8; 4] = [0, 2, 0, 0];
/// What every NONCE of a relay begins with: the cookie, and the bit that announces PASSWORD-ALGORITHMS (RFC 8489 §9.2).
pub(crate) const NONCE_COOKIE: &str = "obMatJos2gAAA";
/// The longest ALTERNATE-DOMAIN that counts: DNS has no longer names.
const MAX_DOMAIN_LEN: usize = 255;

/// Bytes after which the rest of a stream cannot be understood, or will not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error(transparent)]
    NotTurn(#[from] NotTurn),
    #[error("a STUN message of more than 2 KiB")]
    TooLong,
    #[error("a STUN message with an attribute past its end")]
    CutShort,
}

/// The length of the first message in a stream, padding included, as soon as so much of it is there that this is
/// known: at most [`MAX_STUN_LEN`] for a STUN message, 64 KiB for ChannelData.
///
/// # Errors
/// The first two bits are 1x, the channel is from 0x5000, the cookie is wrong, or a STUN message's length is no
/// multiple of 4 or over 2 KiB.
pub(crate) fn message_len(bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let len = channel_data::message_len(bytes)?;
    let is_stun = bytes.first().is_some_and(|byte| *byte < 0x40);
    match len {
        Some(len) if is_stun && len > MAX_STUN_LEN => Err(ProtocolError::TooLong),
        len => Ok(len),
    }
}

/// Takes one whole STUN message, for the `read` functions of this file.
///
/// # Errors
/// It is too long, or no STUN message, or one of its attributes goes past its end.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message<'_>, ProtocolError> {
    if message_len(bytes)? != Some(bytes.len()) {
        return Err(ProtocolError::CutShort);
    }
    Message::decode(bytes).map_err(|_| ProtocolError::CutShort)
}

/// Join: a side presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) pair: PairId,
    pub(crate) side: SideId,
    pub(crate) instance: Instance,
    /// How long to wait for the other side, in seconds; `None` leaves it to the relay. 0 is malformed.
    pub(crate) lifetime: Option<u32>,
}

impl Join {
    /// The first Join of a connection, which is to be refused: it tells nobody who comes, or whom he wants to meet.
    pub(crate) fn encode_first(id: TransactionId) -> Vec<u8> {
        Draft::new(Method::JOIN, Class::Request, id).unsealed()
    }

    /// # Errors
    /// The seal holds what STUN does not allow.
    pub(crate) fn encode(&self, id: TransactionId, seal: &Seal) -> Result<Vec<u8>, StunError> {
        let draft = Draft::new(Method::JOIN, Class::Request, id)
            .with(PAIR_ID, self.pair.as_bytes())
            .with(SIDE_ID, self.side.as_str().as_bytes())
            .with(INSTANCE, &self.instance.0);
        with_u32(draft, raw::LIFETIME, self.lifetime).authenticated(seal)
    }

    /// # Errors
    /// An attribute is missing or malformed, or LIFETIME is 0.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        let pair = from.attribute(PAIR_ID).and_then(PairId::new).ok_or(Malformed("PAIR-ID"))?;
        let side = side_of(from)?.ok_or(Malformed("SIDE-ID"))?;
        let instance = instance_of(from)?.ok_or(Malformed("INSTANCE"))?;
        let lifetime = lifetime_of(from)?;
        if lifetime == Some(0) {
            return Err(Malformed("LIFETIME"));
        }
        Ok(Self { pair, side, instance, lifetime })
    }
}

/// Refresh: the wait is extended, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refresh {
    /// How long to wait for the other side, in seconds; 0 leaves; `None` leaves it to the relay.
    pub(crate) lifetime: Option<u32>,
}

impl Refresh {
    /// # Errors
    /// The seal holds what STUN does not allow.
    pub(crate) fn encode(&self, id: TransactionId, seal: &Seal) -> Result<Vec<u8>, StunError> {
        with_u32(Draft::new(Method::REFRESH, Class::Request, id), raw::LIFETIME, self.lifetime)
            .authenticated(seal)
    }

    /// # Errors
    /// LIFETIME is malformed.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        Ok(Self { lifetime: lifetime_of(from)? })
    }
}

/// The success response to Join and to Refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// How long the relay lets this side wait, in seconds; 0: it has left.
    pub(crate) lifetime: u32,
    /// Whether the other side is there.
    pub(crate) peer: PeerStatus,
}

impl Granted {
    /// The response to a request of this method and id, sealed with its key.
    pub(crate) fn encode(&self, method: Method, id: TransactionId, key: &Key) -> Vec<u8> {
        Draft::new(method, Class::Success, id)
            .with_u32(raw::LIFETIME, self.lifetime)
            .with_u32(PEER_STATUS, self.peer as u32)
            .sealed(key, Integrity::Sha256)
    }

    /// Whoever reads it must have seen that it is sealed.
    ///
    /// # Errors
    /// An attribute is missing or malformed, or one is there that must be understood and is not.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        understood(from)?;
        let lifetime = lifetime_of(from)?.ok_or(Malformed("LIFETIME"))?;
        Ok(Self { lifetime, peer: status_of(from)? })
    }
}

/// What a relay asks of who comes: part of a 401 and of a 438.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) realm: String,
    pub(crate) nonce: String,
    /// PASSWORD-ALGORITHMS as it stands on the wire: it goes back unchanged.
    pub(crate) algorithms: Vec<u8>,
}

impl Challenge {
    /// What a relay asks: SHA-256 and nothing else.
    pub(crate) fn new(realm: impl Into<String>, nonce: impl Into<String>) -> Self {
        Self { realm: realm.into(), nonce: nonce.into(), algorithms: PASSWORD_ALGORITHMS.into() }
    }

    /// Whether NONCE announces password algorithms and SHA-256 is one of them. A side answers no other challenge: it
    /// may come from someone in between, who wants less.
    pub(crate) fn is_strong(&self) -> bool {
        let announced = stun::nonce_features(&self.nonce).is_some_and(|it| it.password_algorithms);
        let known = stun::algorithms_of(&self.algorithms).unwrap_or_default();
        announced && known.contains(&Algorithm::Sha256)
    }

    /// What requests are sealed with from now on.
    ///
    /// # Errors
    /// User name, password or realm hold what STUN does not allow.
    pub(crate) fn seal(&self, account: &UserPassword) -> Result<Seal, StunError> {
        let UserPassword { user, password } = account;
        Ok(Seal {
            user: User::Name(user.clone()),
            realm: self.realm.clone(),
            nonce: self.nonce.clone(),
            algorithms: Some((self.algorithms.clone(), Algorithm::Sha256)),
            integrity: Integrity::Sha256,
            key: Key::long_term(user, &self.realm, password.expose(), Algorithm::Sha256)?,
        })
    }

    /// `None` if one of the three is missing or is no text.
    fn read(from: &Message<'_>) -> Option<Self> {
        Some(Self {
            realm: text_of(from, raw::REALM)?,
            nonce: text_of(from, raw::NONCE)?,
            algorithms: from.attribute(raw::PASSWORD_ALGORITHMS)?.to_vec(),
        })
    }
}

/// Another relay, where a side is to go: part of a 300.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alternate {
    pub(crate) server: SocketAddr,
    /// The name that its certificate must have; `None`: the one that the relay asked had.
    pub(crate) domain: Option<String>,
}

/// An error response. What does not go with its number is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// 300, 400, 401, 403, 409, 420, 437, 438, 441, 486 or 508; a reader may find others.
    pub(crate) code: u16,
    /// With 401 and 438.
    pub(crate) challenge: Option<Challenge>,
    /// With 420: the attributes that were not understood.
    pub(crate) unknown: Vec<u16>,
    /// With 508: when to come back. A reader takes at most 60 s.
    pub(crate) retry_after: Option<Duration>,
    /// With 300.
    pub(crate) alternate: Option<Alternate>,
}

impl Refusal {
    pub(crate) fn new(code: u16) -> Self {
        Self { code, challenge: None, unknown: Vec::new(), retry_after: None, alternate: None }
    }

    /// The words that go with the number. They are the relay's own; a reader need not look at them.
    pub(crate) fn phrase(&self) -> &'static str {
        match self.code {
            300 => "Try Alternate",
            400 => "Bad Request",
            401 => "Unauthenticated",
            403 => "Forbidden",
            409 => "Conflict",
            420 => "Unknown Attribute",
            437 => "Mismatch",
            438 => "Stale Nonce",
            441 => "Wrong Credentials",
            486 => "Quota Reached",
            508 => "Insufficient Capacity",
            _ => "",
        }
    }

    /// The response to a request of this method and id; sealed with its key, where it was authenticated.
    pub(crate) fn encode(&self, method: Method, id: TransactionId, key: Option<&Key>) -> Vec<u8> {
        let mut draft = Draft::new(method, Class::Error, id).with_error(self.code, self.phrase());
        if let Some(Challenge { realm, nonce, algorithms }) = &self.challenge {
            draft = draft
                .with(raw::REALM, realm.as_bytes())
                .with(raw::NONCE, nonce.as_bytes())
                .with(raw::PASSWORD_ALGORITHMS, algorithms);
        }
        if !self.unknown.is_empty() {
            let kinds: Vec<u8> = self.unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
            draft = draft.with(raw::UNKNOWN_ATTRIBUTES, &kinds);
        }
        if let Some(Alternate { server, domain }) = &self.alternate {
            draft = draft.with_address(raw::ALTERNATE_SERVER, *server);
            draft = with_bytes(draft, raw::ALTERNATE_DOMAIN, domain.as_deref());
        }
        draft = with_retry_after(draft, self.retry_after);
        match key {
            Some(key) => draft.sealed(key, Integrity::Sha256),
            None => draft.unsealed(),
        }
    }

    /// Whoever reads it must have seen whether it is sealed: all but 400, 401 and 438 are.
    ///
    /// # Errors
    /// ERROR-CODE is missing or malformed, or an attribute is there that must be understood and is not.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        understood(from)?;
        let code = from.attribute(raw::ERROR_CODE).and_then(|value| stun::error_of(value).ok());
        let (code, _) = code.ok_or(Malformed("ERROR-CODE"))?;
        let unknown = from.attribute(raw::UNKNOWN_ATTRIBUTES).unwrap_or_default();
        let unknown = unknown.as_chunks::<2>().0.iter().map(|kind| u16::from_be_bytes(*kind)).collect();
        let server = from.attribute(raw::ALTERNATE_SERVER).and_then(raw::address);
        let domain = name_of(from, raw::ALTERNATE_DOMAIN).filter(|name| name.len() <= MAX_DOMAIN_LEN);
        Ok(Self {
            code,
            challenge: Challenge::read(from),
            unknown,
            retry_after: retry_after_of(from),
            alternate: server.map(|server| Alternate { server, domain }),
        })
    }
}

/// Peer: the other side has come, has gone, or is slowed by a limit. Each ends all channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) status: PeerStatus,
    /// The other side's SIDE-ID.
    pub(crate) side: Option<SideId>,
    /// The other side's user, where pairs across users are allowed. At most 508 bytes.
    pub(crate) user: Option<String>,
    /// With [`PeerStatus::Present`]: a limit slows the pair. A reader takes at most 60 s.
    pub(crate) retry_after: Option<Duration>,
}

impl Peer {
    pub(crate) fn encode(&self, id: TransactionId) -> Vec<u8> {
        let draft = Draft::new(Method::PEER, Class::Indication, id).with_u32(PEER_STATUS, self.status as u32);
        let draft = with_bytes(draft, SIDE_ID, self.side.as_ref().map(SideId::as_str));
        let draft = with_bytes(draft, raw::USERNAME, self.user.as_deref());
        with_retry_after(draft, self.retry_after).unsealed()
    }

    /// # Errors
    /// An attribute is missing or malformed, or one is there that must be understood and is not: such an indication
    /// is ignored.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        understood(from)?;
        Ok(Self {
            status: status_of(from)?,
            side: side_of(from)?,
            user: name_of(from, raw::USERNAME),
            retry_after: retry_after_of(from),
        })
    }
}

/// Closing: why the connection it comes on ends. Nothing but FIN follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closing {
    pub(crate) reason: Reason,
    /// With [`Reason::Superseded`]: the newcomer's.
    pub(crate) instance: Option<Instance>,
    /// With [`Reason::Restarting`]. A reader takes at most 60 s.
    pub(crate) retry_after: Option<Duration>,
}

impl Closing {
    /// With a reason and nothing else.
    pub(crate) fn new(reason: Reason) -> Self {
        Self { reason, instance: None, retry_after: None }
    }

    pub(crate) fn encode(&self, id: TransactionId) -> Vec<u8> {
        let mut draft =
            Draft::new(Method::CLOSING, Class::Indication, id).with_u32(REASON, self.reason as u32);
        if let Some(Instance(instance)) = &self.instance {
            draft = draft.with(INSTANCE, instance);
        }
        with_retry_after(draft, self.retry_after).unsealed()
    }

    /// # Errors
    /// An attribute is missing or malformed, or one is there that must be understood and is not: such an indication
    /// is ignored.
    pub(crate) fn read(from: &Message<'_>) -> Result<Self, Malformed> {
        understood(from)?;
        let reason = u32_of(from, REASON)?.and_then(Reason::of).ok_or(Malformed("REASON"))?;
        Ok(Self { reason, instance: instance_of(from)?, retry_after: retry_after_of(from) })
    }
}

/// A Binding request: are you there?
pub(crate) fn ping(id: TransactionId) -> Vec<u8> {
    Draft::new(Method::BINDING, Class::Request, id).unsealed()
}

/// The answer to a Binding request that came from this address.
pub(crate) fn pong(id: TransactionId, from: SocketAddr) -> Vec<u8> {
    Draft::new(Method::BINDING, Class::Success, id).with_xor_address(raw::XOR_MAPPED_ADDRESS, from).unsealed()
}

#[cfg(test)]
#[path = "hostile_tests.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
