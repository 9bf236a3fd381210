//! STUN messages (RFC 8489, 8656, 6062): the one room that knows stun-rs, with what it lacks.
//!
//! Control messages only. The data path (Send, Data, ChannelData) is written by hand in `stun/data.rs` and
//! `tcp/channel_data.rs`: stun-rs copies.

use std::net::SocketAddr;

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

/// Writes a message without credentials, or with them and sealed.
pub(crate) fn encode(
    method: Method,
    class: Class,
    id: TransactionId,
    attributes: &[Attribute],
    seal: Option<&Seal>,
) -> Result<Vec<u8>, StunError> {
    let _ = (method, class, id, attributes, seal);
    unimplemented!()
}

impl Key {
    /// The long-term key of user name, realm and password, all through OpaqueString.
    pub(crate) fn long_term(
        user: &str,
        realm: &str,
        password: &str,
        algorithm: Algorithm,
    ) -> Result<Self, StunError> {
        let _ = (user, realm, password, algorithm);
        unimplemented!()
    }
}

/// USERHASH of a user name and realm (RFC 8489 §14.4).
pub(crate) fn user_hash(user: &str, realm: &str) -> Result<[u8; 32], StunError> {
    let _ = (user, realm);
    unimplemented!()
}

/// A message from the server. What a server may leave out is an `Option`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received<'b> {
    pub(crate) method: Method,
    pub(crate) class: Class,
    pub(crate) id: TransactionId,
    /// ERROR-CODE: number and reason, control characters and NULs at its end removed, at most 128 characters.
    pub(crate) error: Option<(u16, String)>,
    pub(crate) realm: Option<String>,
    pub(crate) nonce: Option<String>,
    /// PASSWORD-ALGORITHMS, as it stands on the wire, and those of its algorithms that are known, in order.
    pub(crate) algorithms: Option<(Vec<u8>, Vec<Algorithm>)>,
    /// Seconds.
    pub(crate) lifetime: Option<u32>,
    pub(crate) xor_relayed: Option<SocketAddr>,
    pub(crate) xor_mapped: Option<SocketAddr>,
    /// The first XOR-PEER-ADDRESS.
    pub(crate) xor_peer: Option<SocketAddr>,
    pub(crate) connection_id: Option<u32>,
    pub(crate) alternate_server: Option<SocketAddr>,
    /// ICMP (RFC 8656 §18.13): type and code.
    pub(crate) icmp: Option<(u8, u8)>,
    /// Comprehension-required attributes (below 0x8000) that are not known.
    pub(crate) unknown_required: Vec<u16>,
    bytes: &'b [u8],
}

impl<'b> Received<'b> {
    /// Reads one whole message. Attributes behind the integrity do not count (RFC 8489 §14.5).
    pub(crate) fn decode(bytes: &'b [u8]) -> Result<Self, StunError> {
        let _ = bytes;
        unimplemented!()
    }

    /// Whether the message carries this integrity, and it is right. Compares in constant time.
    pub(crate) fn is_sealed_with(&self, key: &Key, integrity: Integrity) -> bool {
        let _ = (key, integrity, self.bytes);
        unimplemented!()
    }
}

/// The security feature bits of a nonce that begins with the cookie `obMatJos2` (RFC 8489 §9.2): bit 0, password
/// algorithms; bit 1, user name anonymity. `None` without the cookie.
pub(crate) fn nonce_features(nonce: &str) -> Option<NonceFeatures> {
    let _ = nonce;
    unimplemented!()
}

/// See [`nonce_features`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NonceFeatures {
    pub(crate) password_algorithms: bool,
    pub(crate) user_name_anonymity: bool,
}
