//! STUN messages (RFC 8489, 8656, 6062): the one room that knows stun-rs, with what it lacks.
//!
//! Control messages only. The data path (Send, Data, ChannelData) is written by hand in `stun/data.rs` and
//! `tcp/channel_data.rs`: stun-rs copies.
//!
//! stun-rs writes and reads the attributes it is good at, and prepares and hashes strings. The rest is done
//! here: what it lacks, what it reads more strictly than a client can afford, and integrity, for it neither
//! demands that it is there nor compares it in constant time.

use std::fmt;
use std::net::SocketAddr;

use stun_rs::attributes::turn::{
    ChannelNumber, LifeTime, RequestedAddressFamily, RequestedTrasport, XorPeerAddress,
};
use stun_rs::{
    AddressFamily, MessageClass, MessageEncoder, MessageMethod, StunAttribute, StunMessageBuilder, protocols,
};

use raw::{ATTRIBUTE_HEADER_LEN, HEADER_LEN};

pub(crate) mod data;
mod draft;
mod keys;
mod message;
pub(crate) mod raw;
mod received;

pub(crate) use draft::Draft;
pub(crate) use keys::{nonce_features, opaque_string, user_hash};
pub(crate) use message::Message;
pub(crate) use received::{Received, algorithms_of, error_of};

/// More than any request has. So many of the longest leave room for credentials and integrity.
const MAX_ATTRIBUTES: usize = 1000;
/// The longest attribute of a request: an IPv6 address.
const LONGEST_ATTRIBUTE: usize = ATTRIBUTE_HEADER_LEN + 20;
/// What errors call it.
const USER_NAME: &str = "the user name";
/// The longest user name in bytes (RFC 8489 §14.3).
const MAX_USER_LEN: usize = 508;
/// The longest REALM and NONCE in bytes (RFC 8489 §14.9, §14.10).
const MAX_TEXT_LEN: usize = 763;
/// The longest PASSWORD-ALGORITHMS that counts. Each request returns it, so it is bounded.
const MAX_ALGORITHMS_LEN: usize = 256;

/// A STUN method, by its number (RFC 8489 §5, RFC 8656 §17, RFC 6062 §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Method(pub(crate) u16);

impl Method {
    pub(crate) const BINDING: Self = Self(0x001);
    pub(crate) const ALLOCATE: Self = Self(0x003);
    pub(crate) const REFRESH: Self = Self(0x004);
    pub(crate) const SEND: Self = Self(0x006);
    pub(crate) const DATA: Self = Self(0x007);
    pub(crate) const CREATE_PERMISSION: Self = Self(0x008);
    pub(crate) const CHANNEL_BIND: Self = Self(0x009);
    pub(crate) const CONNECT: Self = Self(0x00a);
    pub(crate) const CONNECTION_BIND: Self = Self(0x00b);
    pub(crate) const CONNECTION_ATTEMPT: Self = Self(0x00c);
    // Our own relay's: unassigned numbers of the Expert Review range (RFC 8489 §18.1), used privately.
    pub(crate) const JOIN: Self = Self(0x0f1);
    pub(crate) const PEER: Self = Self(0x0f2);
    pub(crate) const CLOSING: Self = Self(0x0f3);

    /// As the RFCs spell it, for errors and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BINDING => "Binding",
            Self::ALLOCATE => "Allocate",
            Self::REFRESH => "Refresh",
            Self::SEND => "Send",
            Self::DATA => "Data",
            Self::CREATE_PERMISSION => "CreatePermission",
            Self::CHANNEL_BIND => "ChannelBind",
            Self::CONNECT => "Connect",
            Self::CONNECTION_BIND => "ConnectionBind",
            Self::CONNECTION_ATTEMPT => "ConnectionAttempt",
            Self::JOIN => "Join",
            Self::PEER => "Peer",
            Self::CLOSING => "Closing",
            _ => "unknown",
        }
    }
}

/// The class of a message (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// 96 random bits (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TransactionId(pub(crate) [u8; 12]);

/// A new one, from the system's randomness: whoever cannot read our requests cannot answer them.
pub(crate) fn random_id() -> TransactionId {
    TransactionId(*stun_rs::TransactionId::default().as_bytes())
}

/// 32 bytes from the same source: a key that nobody can guess.
pub(crate) fn random_key() -> [u8; 32] {
    let ids = [random_id(), random_id(), random_id()].map(|TransactionId(id)| id);
    *ids.as_flattened().first_chunk().expect("3 times 12 are 36")
}

/// REQUESTED-TRANSPORT: what the relayed address speaks towards peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Relayed {
    Udp,
    Tcp,
}

/// REQUESTED-ADDRESS-FAMILY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What a request of ours may carry besides its credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    RequestedTransport(Relayed),
    RequestedAddressFamily(Family),
    /// Seconds.
    Lifetime(u32),
    XorPeerAddress(SocketAddr),
    ChannelNumber(u16),
    ConnectionId(u32),
}

/// The algorithm of a long-term key (RFC 8489 §18.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    Md5,
    Sha256,
}

/// Which attribute seals a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Integrity {
    /// MESSAGE-INTEGRITY: HMAC-SHA1.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256, 32 bytes.
    Sha256,
}

/// Everything that makes a request an authenticated one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seal {
    /// USERNAME, or USERHASH in its place.
    pub(crate) user: User,
    pub(crate) realm: String,
    pub(crate) nonce: String,
    /// PASSWORD-ALGORITHMS as the server sent it, returned unchanged, and the one chosen.
    pub(crate) algorithms: Option<(Vec<u8>, Algorithm)>,
    pub(crate) integrity: Integrity,
    /// The long-term key (RFC 8489 §9.2.2). Secret.
    pub(crate) key: Key,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// USERNAME, after OpaqueString.
    Name(String),
    /// USERHASH (RFC 8489 §14.4).
    Hash([u8; 32]),
}

/// A long-term key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key(Vec<u8>);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal")
            .field("user", &self.user)
            .field("realm", &self.realm)
            .field("nonce", &self.nonce)
            .field("algorithms", &self.algorithms)
            .field("integrity", &self.integrity)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A message that cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StunError {
    /// Not a STUN message, cut short, or one of its attributes is malformed.
    #[error("not a STUN message: {0}")]
    Malformed(String),
    /// A user name, realm or password that STUN does not allow (RFC 8489 §9.2.2: OpaqueString, length).
    #[error("{what} cannot be used with STUN: {why}")]
    Text { what: &'static str, why: String },
}

/// Writes a message without credentials, or with them and sealed; never with FINGERPRINT.
///
/// # Errors
/// A user name that STUN does not allow, a method above 0xFFF, or more than a message can hold.
pub(crate) fn encode(
    method: Method,
    class: Class,
    id: TransactionId,
    attributes: &[Attribute],
    seal: Option<&Seal>,
) -> Result<Vec<u8>, StunError> {
    let draft = Draft::of(encode_attributes(method, class, id, attributes)?);
    match seal {
        Some(seal) => draft.authenticated(seal),
        None => Ok(draft.unsealed()),
    }
}

/// The message as far as the request's own attributes. Those that stun-rs has no way to write come last.
fn encode_attributes(
    method: Method,
    class: Class,
    id: TransactionId,
    attributes: &[Attribute],
) -> Result<Vec<u8>, StunError> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(malformed("too many attributes"));
    }
    let method = MessageMethod::try_from(method.0).map_err(malformed)?;
    let mut message = StunMessageBuilder::new(method, class.into()).with_transaction_id(id.0.into());
    let mut by_hand = Vec::new();
    for attribute in attributes {
        let attribute: StunAttribute = match *attribute {
            Attribute::RequestedTransport(Relayed::Udp) => RequestedTrasport::from(protocols::UDP).into(),
            Attribute::RequestedTransport(Relayed::Tcp) => {
                raw::put_attribute(&mut by_hand, raw::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
                continue;
            }
            Attribute::ConnectionId(id) => {
                raw::put_attribute(&mut by_hand, raw::CONNECTION_ID, &id.to_be_bytes());
                continue;
            }
            Attribute::RequestedAddressFamily(family) => {
                RequestedAddressFamily::new(AddressFamily::from(family)).into()
            }
            Attribute::Lifetime(seconds) => LifeTime::new(seconds).into(),
            Attribute::XorPeerAddress(peer) => XorPeerAddress::from(peer).into(),
            Attribute::ChannelNumber(number) => ChannelNumber::new(number).into(),
        };
        message = message.with_attribute(attribute);
    }
    let mut bytes = vec![0; HEADER_LEN + attributes.len() * LONGEST_ATTRIBUTE];
    let len = MessageEncoder::default().encode(&mut bytes, &message.build()).map_err(malformed)?;
    bytes.truncate(len);
    bytes.extend(by_hand);
    Ok(bytes)
}

impl From<Class> for MessageClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Request => Self::Request,
            Class::Indication => Self::Indication,
            Class::Success => Self::SuccessResponse,
            Class::Error => Self::ErrorResponse,
        }
    }
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPv4,
            Family::V6 => Self::IPv6,
        }
    }
}

impl Algorithm {
    fn number(self) -> u8 {
        match self {
            Self::Md5 => 1,
            Self::Sha256 => 2,
        }
    }
}

fn malformed(what: impl fmt::Display) -> StunError {
    StunError::Malformed(what.to_string())
}

#[cfg(test)]
#[path = "stun/tests.rs"]
mod tests;
